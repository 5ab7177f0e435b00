from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from medxai.errors import SettingsError
from medxai.learn.agreement import Agreement, Outcome, agreement, by_class, difference, percentile, suspicions
from medxai.learn.loop import Batch, Recipe, fit
from medxai.learn.prior_guided import MODES, Mode, PriorGuidedLoss, class_map, mean_map, misalignment, spatial, to_grid

SHAPES = st.sampled_from([(5, 7), (3, 4, 6), (9,)])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@given(SHAPES, st.floats(1e-6, 1e6), st.integers(0, 99))
def test_a_map_that_is_the_prior_at_any_scale_costs_nothing(shape: tuple[int, ...], scale: float, seed: int) -> None:
    prior = drawn(2, *shape, seed=seed)
    assert float(misalignment(scale * prior, list(prior))) == pytest.approx(0, abs=2e-6)
    other = drawn(2, *shape, seed=seed + 100)
    kept = float(misalignment(other, list(prior)))
    assert float(misalignment(scale * other, list(prior))) == pytest.approx(kept, abs=1e-5)


@given(SHAPES, st.integers(0, 99))
def test_disjoint_supports_cost_one_in_every_measure(shape: tuple[int, ...], seed: int) -> None:
    prior = (drawn(2, *shape, seed=seed) > 0.5).float()
    prior[:, ..., 0], prior[:, ..., 1] = 1, 0
    values = (1 - prior) * (0.1 + drawn(2, *shape, seed=seed + 1))
    for outside in (False, True):
        assert float(misalignment(values, list(prior), outside)) == pytest.approx(1)


@pytest.mark.parametrize("outside", [False, True])
def test_samples_without_a_prior_have_no_gradient_and_do_not_count(outside: bool) -> None:
    values = drawn(4, 5, 6).requires_grad_()
    prior = drawn(5, 6, seed=1)
    priors = [None, prior, torch.full((5, 6), torch.inf), torch.zeros(5, 6)]
    term = misalignment(values, priors, outside)
    term.backward()
    assert float(term) == pytest.approx(float(misalignment(values[1:2], [prior], outside)))
    assert torch.count_nonzero(values.grad[[0, 2, 3]]) == 0
    assert torch.count_nonzero(values.grad[1]) > 0

    values.grad = None
    (misalignment(values, [None] * 4, outside) + 0 * values.sum()).backward()
    assert torch.count_nonzero(values.grad) == 0


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 99))
def test_a_uniform_map_has_the_cosine_of_the_closed_form(rows: int, columns: int, seed: int) -> None:
    prior = np.random.default_rng(seed).random((rows, columns)) ** 3
    found = agreement(np.full((rows, columns), 0.3), prior)
    assert found.cosine == pytest.approx(prior.mean() / np.sqrt((prior**2).mean()))
    assert found.uniform == pytest.approx(found.cosine)
    assert found.inside == pytest.approx(prior.mean()) == pytest.approx(found.area)
    term = float(misalignment(torch.ones(1, rows, columns), [torch.from_numpy(prior)]))
    assert 1 - term == pytest.approx(found.uniform, abs=1e-5)


def test_the_share_outside_is_the_sum_of_the_evidence_there() -> None:
    values = torch.tensor([[[3.0, 1.0], [0.0, 4.0]]])
    prior = torch.tensor([[1.0, 0.5], [0.0, 0.0]])
    assert float(misalignment(values, [prior], True)) == pytest.approx((1 * 0.5 + 4) / 8)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(2, 20), st.integers(2, 20))
def test_resizing_is_pytorchs_where_there_is_one(rows: int, columns: int, new_rows: int, new_columns: int) -> None:
    prior = drawn(rows, columns)
    expected = functional.interpolate(
        prior[None, None], size=(new_rows, new_columns), mode="bilinear", antialias=True, align_corners=False
    )[0, 0]
    assert torch.allclose(to_grid(prior, (new_rows, new_columns)), expected, atol=1e-4)


def test_resizing_a_volume_is_linear_per_axis_and_keeps_the_range() -> None:
    prior = (drawn(9, 14, 5) > 0.6).float()
    small = to_grid(prior, (4, 3, 5))
    assert small.shape == (4, 3, 5)
    assert 0 <= float(small.min()) <= float(small.max()) <= 1
    slope = torch.arange(12.0)[:, None, None].expand(12, 4, 6)
    assert torch.allclose(to_grid(slope, (6, 2, 3))[1:-1, 0, 0], torch.arange(0.5, 12, 2.0)[1:-1], atol=1e-5)


def test_the_class_map_of_a_linear_head_averages_to_its_logit() -> None:
    features, head = drawn(3, 4, 5, 6), nn.Linear(4, 2, bias=False)
    labels = torch.tensor([1, 0, 1])
    logits = head(features.mean((2, 3)))
    with torch.no_grad():
        head.weight.abs_()
        logits = head(features.mean((2, 3)))
        found = class_map(features, head.weight, labels).mean((1, 2))
    assert torch.allclose(found, logits[torch.arange(3), labels], atol=1e-6)
    single = class_map(features, head.weight[:1], labels)
    assert torch.count_nonzero(single[1]) == 0  # class 0 of a single logit is its negative, here nowhere positive
    assert torch.count_nonzero(single[0]) > 0


class Tokens(nn.Module):
    """Patches of a picture as tokens behind a class token, mixed by one layer: ``[B, 1 + 12, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Conv2d(1, 8, 4, stride=4), nn.Parameter(torch.zeros(1, 1, 8))
        self.last = nn.ReLU()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        patches = self.embed(inputs).flatten(2).transpose(1, 2)
        return self.last(torch.cat([self.first.expand(len(inputs), -1, -1), patches], 1))


class Classifier(nn.Module):
    """Trunk with a linear head behind the mean over positions, in 2D, 3D or of tokens."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        if kind == "tokens":
            self.trunk: nn.Module = Tokens()
        else:
            conv = nn.Conv3d if kind == "3D" else nn.Conv2d
            self.trunk = nn.Sequential(conv(1, 8, 3, stride=2, padding=1), nn.ReLU())
        self.kind, self.head = kind, nn.Linear(8, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.trunk(inputs)
        pooled = features[:, 1:].mean(1) if self.kind == "tokens" else features.flatten(2).mean(2)
        logits: torch.Tensor = self.head(pooled)
        return logits


INPUTS = {"2D": (1, 12, 16), "3D": (1, 6, 8, 10), "tokens": (1, 12, 16)}


def half_prior(batch: Batch) -> list[torch.Tensor | None]:
    """The left half of the image; the first sample of a batch has none."""
    prior = torch.zeros(batch.inputs.shape[2:])
    prior[..., : prior.shape[-1] // 2] = 1
    return [None, *[prior] * (len(batch.positions) - 1)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", INPUTS)
def test_guidance_moves_the_map_and_adds_nothing_to_the_network(kind: str, mode: Mode) -> None:
    images = drawn(40, *INPUTS[kind])
    labels = [i % 2 for i in range(40)]
    images[1::2] += 0.3

    def sample(positions: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        return images[list(positions)]

    recipe = Recipe(epochs=12, batch_size=8, learning_rate=0.01)
    maps, counts = {}, {}
    for weight in (0.0, 5.0):
        network = Classifier(kind)
        before = {name: value.shape for name, value in network.state_dict().items()}
        loss = PriorGuidedLoss(
            network.trunk, mode, weight, half_prior, head=network.head, grid=(3, 4) if kind == "tokens" else None
        )
        with loss:
            fit(network, sample, labels, recipe, extra=loss)
        assert {name: value.shape for name, value in network.state_dict().items()} == before
        assert not network.trunk._forward_hooks  # nothing is left to run at inference
        counts[weight] = sum(p.numel() for p in network.parameters())
        with torch.no_grad():
            features = spatial(network.trunk(images), (3, 4) if kind == "tokens" else None)
        chosen = torch.tensor(labels)
        maps[weight] = mean_map(features) if mode != "cam" else class_map(features, network.head.weight, chosen)
        assert (len(loss.history) > 0) == (weight > 0)
    prior = torch.zeros(maps[0.0].shape[1:])
    prior[..., : prior.shape[-1] // 2] = 1
    with_evidence = [i for i in range(40) if all(float(found[i].max()) > 0 for found in maps.values())]
    cost = {w: float(misalignment(m[with_evidence], [prior] * len(with_evidence), mode == "outside"))
            for w, m in maps.items()}  # fmt: skip
    assert counts[0.0] == counts[5.0]
    assert cost[5.0] < cost[0.0]


def test_the_weight_rises_and_nothing_happens_before(tmp_path: Path) -> None:
    network = Classifier("2D")
    loss = PriorGuidedLoss(network.trunk, "attention", 4.0, half_prior, warm_up=2)
    assert [loss.weight_at(epoch) for epoch in range(4)] == [0, 2, 4, 4]
    assert PriorGuidedLoss(network.trunk, "attention", 4.0, half_prior, warm_up=0).weight_at(0) == 4

    images, recipe = drawn(16, *INPUTS["2D"]), Recipe(epochs=1, batch_size=8, learning_rate=0.01)
    plain = fit(Classifier("2D"), lambda chosen, _: images[list(chosen)], [0, 1] * 8, recipe)
    with loss:
        fit(network, lambda chosen, _: images[list(chosen)], [0, 1] * 8, recipe, extra=loss)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), network.parameters(), strict=True))


def test_samples_that_say_only_where_are_judged_by_the_share_outside() -> None:
    network = Classifier("2D")
    images, labels = drawn(6, *INPUTS["2D"]), torch.tensor([0, 1] * 3)
    flags = [False, True, False, False, True, False]
    loss = PriorGuidedLoss(network.trunk, "attention", 2.0, half_prior, warm_up=0, outside_only=lambda batch: flags)
    with loss:
        batch = Batch(0, range(6), images, network(images), labels, 1.0)
        found = loss(batch)
        expected = misalignment(mean_map(network.trunk(images)), half_prior(batch), flags)
    assert found is not None
    assert float(found) == pytest.approx(2 * float(expected))


def test_an_interrupted_guided_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    images, labels = drawn(24, *INPUTS["2D"]), [0, 1] * 12
    recipe = Recipe(epochs=4, batch_size=8, learning_rate=0.01)

    def run(checkpoint: Path | None, stop_after: int | None = None) -> nn.Module:
        network = Classifier("2D")

        def progress(epoch: int, epochs: int, loss: float) -> None:
            if epoch == stop_after:
                raise KeyboardInterrupt

        with PriorGuidedLoss(network.trunk, "attention", 4.0, half_prior) as loss:
            return fit(network, lambda chosen, _: images[list(chosen)], labels, recipe, checkpoint=checkpoint,
                       progress=progress, extra=loss)  # fmt: skip

    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.ckpt", stop_after=3)
    resumed = run(tmp_path / "run.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_what_cannot_be_guided_is_refused() -> None:
    network = Classifier("2D")
    images, labels = drawn(4, *INPUTS["2D"]), torch.tensor([0, 1] * 2)
    with pytest.raises(SettingsError, match="is one of"):
        PriorGuidedLoss(network.trunk, "grad", 1.0, half_prior)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="needs the linear layer"):
        PriorGuidedLoss(network.trunk, "cam", 1.0, half_prior)
    loss = PriorGuidedLoss(network.trunk, "attention", 1.0, half_prior, warm_up=0)
    with pytest.raises(SettingsError, match="enter the loss"):
        loss(Batch(0, range(4), images, network(images), labels, 1.0))
    with loss, pytest.raises(SettingsError, match="mixup"):
        loss(Batch(0, range(4), images, network(images), labels, 0.7))
    with pytest.raises(SettingsError, match="no tokens"):
        spatial(drawn(2, 5, 8), (3, 4))


def test_figures_of_agreement_are_those_of_hand_made_maps() -> None:
    prior = np.zeros((8, 12))
    prior[:4, :6] = 1
    values = np.zeros((8, 12))
    values[1, 1], values[6, 9] = 3, 1
    found = agreement(values, prior)
    assert found == Agreement(
        cosine=pytest.approx(3 / np.sqrt(10 * 24)),
        uniform=pytest.approx(0.5),
        inside=pytest.approx(0.75),
        area=pytest.approx(0.25),
        pointing=1.0,
    )
    below = agreement(values - 1, prior)  # shifted to 0 for the cosine; what is negative is no evidence
    assert below.cosine == pytest.approx(found.cosine)
    assert below.inside == 1.0
    assert agreement(-values, prior).inside != agreement(-values, prior).inside
    with pytest.raises(SettingsError, match="a prior in"):
        agreement(values, 0 * prior)


def test_means_over_classes_and_places_among_training_cases() -> None:
    assert by_class([1.0, 0.0, 0.5, np.nan], [0, 0, 1, 1]) == pytest.approx(0.5)
    assert percentile(0.3, [0.1, 0.2, 0.4, np.nan]) == pytest.approx(2 / 3)
    assert difference([1, 2, np.nan], [0, 0, 0]).value == pytest.approx(1.5)


@pytest.mark.parametrize("wrong", ["accuracy", "deletion", None])
def test_agreement_that_costs_is_flagged(wrong: str | None) -> None:
    random = np.random.default_rng(0)
    plain = Outcome(random.uniform(0.3, 0.5, 200), random.random(200) < 0.8, random.uniform(0.3, 0.4, 200))
    guided = replace(plain, cosine=plain.cosine + 0.3)
    if wrong == "accuracy":
        guided = replace(guided, correct=plain.correct & (random.random(200) < 0.8))
    elif wrong == "deletion":
        guided = replace(guided, deletion=plain.deletion + random.uniform(0.05, 0.2, 200))
    found = suspicions(plain, guided)
    assert bool(found) == (wrong is not None)
    assert any("accuracy fell" in line for line in found) == (wrong == "accuracy")
    assert any("deletion area" in line for line in found) == (wrong == "deletion")
    assert suspicions(plain, replace(guided, cosine=plain.cosine)) == ()
    assert suspicions(replace(plain, correct=np.zeros(200, bool)), replace(guided, correct=plain.correct)) == ()
