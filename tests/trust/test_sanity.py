"""Randomisation, robustness, complexity, controls, likeness, body and truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from medxai.errors import TrustError
from medxai.explain import explain
from medxai.study import Volume, image_affine
from medxai.trust import complexity, controls
from medxai.trust.body import anatomy, graphics
from medxai.trust.likeness import pearson, ranks, spearman, ssim
from medxai.trust.randomisation import (
    cascade,
    efficient_mprt,
    histogram_entropy,
    mprt,
    other_class,
    parametrised,
    random_logit,
    randomised,
)  # fmt: skip
from medxai.trust.robustness import consistency, families, local_lipschitz, max_sensitivity, rotate
from medxai.trust.truth import place_mask
from tests.explain.nets import Pooled, fingerprint

SHAPES = {2: (2, 1, 24, 20), 3: (2, 1, 8, 16, 12)}


def explainer(network: nn.Module, index: int = 0, method: str = "gradcam") -> object:
    """Signed maps on the image's grid."""
    from medxai.explain.resize import resize

    def run(x: torch.Tensor) -> torch.Tensor:
        return resize(explain(network, x, methods=method, classes=index, layers="act")[0].raw, x.shape[2:])

    return run


class _Normed(nn.Module):
    """A batch normalisation whose statistics must follow new weights."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dims]
        self.first, self.norm, self.act = conv(1, 6, 3, padding=1), norm(6), nn.ReLU()
        self.fc = nn.Linear(6, 3)
        self.spare = nn.Linear(2, 2)  # never runs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.norm(self.first(x))).flatten(2).mean(-1))


@pytest.mark.parametrize("dims", [2, 3])
def test_randomised_copies(dims: int) -> None:
    network = _Normed(dims).eval()
    x = torch.randn(SHAPES[dims])
    before = fingerprint(network)
    assert parametrised(network, x) == ["first", "norm", "fc"]
    steps = list(cascade(network, x))
    assert [name for name, _ in steps] == ["fc", "norm", "first"]
    assert torch.equal(steps[0][1].first.weight, network.first.weight)
    assert not torch.equal(steps[0][1].fc.weight, network.fc.weight)
    assert not torch.equal(steps[2][1].first.weight, network.first.weight)
    assert torch.equal(steps[2][1].spare.weight, network.spare.weight)
    made = randomised(network, ["first", "norm", "fc"], x)
    with torch.no_grad():
        normed = made.norm(made.first(x))
    assert float(normed.std()) > 0.3  # neither constant nor dead
    assert fingerprint(network) == before
    state = torch.random.get_rng_state()
    randomised(network, ["fc"], x)
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(list(cascade(network, x, steps=2))) == 2


def test_mprt_tells_a_map_that_reads_the_network_from_one_that_does_not() -> None:
    network = Pooled(2).eval()
    x = torch.randn(2, 1, 24, 20)
    blind = lambda _network: lambda images: images[:, 0]  # noqa: E731
    found, values = mprt(network, x, blind, steps=2)
    np.testing.assert_allclose(found.values, 1)
    assert values.shape == (2, 2)
    read, _ = mprt(network, x, explainer, steps=2)
    assert (read.values < 0.95).all()
    smooth, _ = mprt(network, x, explainer, steps=2, noisy=3)
    assert smooth.name == "smooth_mprt"
    assert efficient_mprt(network, x, blind).values == pytest.approx([0, 0])
    assert np.isfinite(efficient_mprt(network, x, explainer).values).all()


def test_random_logit() -> None:
    network, x = Pooled(2).eval(), torch.randn(2, 1, 24, 20)
    one, other = explainer(network, 0)(x), explainer(network, 1)(x)
    np.testing.assert_allclose(random_logit(one, one).values, 1)
    assert (random_logit(one, other).values < 0.999).all()
    for seed in range(20):
        classes = torch.tensor([0, 1, 2, 2])
        drawn = other_class(classes, 3, seed)
        assert bool((drawn != classes).all())
        assert bool(((drawn >= 0) & (drawn < 3)).all())
    with pytest.raises(ValueError, match="single class"):
        other_class(torch.tensor([0]), 1)


def test_entropy_of_a_histogram() -> None:
    values = torch.arange(1000.0).view(1, 10, 100)
    assert float(histogram_entropy(values)[0]) == pytest.approx(np.log(100))
    assert float(histogram_entropy(torch.ones(1, 5))[0]) == pytest.approx(0)


def test_sensitivity_of_a_linear_map() -> None:
    """The map is the image: its relative change is that of the image."""
    x = torch.randn(2, 1, 8, 9)
    found = max_sensitivity(lambda images: images[:, 0], x, radius=0.1, samples=5, seed=3)
    span = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    source = torch.Generator().manual_seed(3)
    by_hand = []
    for _ in range(5):
        noise = (2 * torch.rand(x.shape, generator=source) - 1) * 0.1 * span.view(-1, 1, 1, 1)
        by_hand.append(noise.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1))
    np.testing.assert_allclose(found.values, torch.stack(by_hand).amax(0), rtol=1e-5)
    mean = max_sensitivity(lambda images: images[:, 0], x, radius=0.1, samples=5, seed=3, mean=True)
    np.testing.assert_allclose(mean.values, torch.stack(by_hand).mean(0), rtol=1e-5)
    np.testing.assert_allclose(local_lipschitz(lambda images: 3 * images[:, 0], x, samples=4).values, 3, rtol=1e-4)


def test_draws_that_change_the_decision_are_left_out() -> None:
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0, 0, 0] = 1
    sign = lambda images: (images.flatten(1).sum(1) > 0.5).long()  # noqa: E731
    flips = lambda images: torch.arange(2) + torch.randint(0, 1, (2,)) + (images != x).flatten(1).any(1).long()  # noqa: E731
    kept = max_sensitivity(lambda images: images[:, 0] + 1, x, decide=sign, samples=3)
    assert np.isfinite(kept.values).all()
    lost = max_sensitivity(lambda images: images[:, 0] + 1, x, decide=flips, samples=3)
    assert lost.reasons[0] == "every draw changed the decision"
    assert max_sensitivity(lambda images: images[:, 0] * 0, x, samples=2).undefined == 2


def test_a_map_that_follows_the_image_is_consistent() -> None:
    x = torch.nn.functional.interpolate(torch.randn(2, 1, 6, 7), (48, 40), mode="bilinear")
    for scores in consistency(lambda images: images[:, 0], x).values():
        assert (scores.values > 0.97).all()
    fixed = controls.random_map(2, (48, 40), (6, 7))
    for scores in consistency(lambda _images: fixed, x).values():
        assert (scores.values < 0.7).all()


def test_rotation_and_back() -> None:
    x = torch.nn.functional.interpolate(torch.randn(1, 1, 5, 4), (40, 60), mode="bilinear")
    back = rotate(rotate(x, 8), -8)
    middle = (..., slice(12, 28), slice(18, 42))
    assert float((back[middle] - x[middle]).abs().mean()) < 0.03 * float(x.std())
    point = torch.zeros(1, 1, 41, 61)
    point[0, 0, 20, 50] = 1  # 20 to the right of the centre
    turned = rotate(point, 90).flatten().argmax()
    row, column = divmod(int(turned), 61)
    assert column == 30
    assert abs(row - 20) == 20


@pytest.mark.parametrize("dims", [2, 3])
def test_complexity_of_known_maps(dims: int) -> None:
    shape = (1, 9, 14, 11)[: dims + 1]
    n = int(np.prod(shape))
    flat, one = torch.ones(shape), torch.zeros(shape)
    one.view(-1)[5] = 3
    assert complexity.sparseness(flat).values[0] == pytest.approx(0, abs=1e-9)
    assert complexity.sparseness(one).values[0] == pytest.approx(1 - 1 / n, abs=1e-3)
    assert complexity.entropy(flat).values[0] == pytest.approx(np.log(n))
    assert complexity.entropy(flat, relative=True).values[0] == pytest.approx(1)
    assert complexity.entropy(one).values[0] == pytest.approx(0, abs=1e-9)
    assert complexity.effective_complexity(one).values[0] == 1
    zero = torch.zeros(shape)
    faint = 1e-9 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    for measure in (complexity.sparseness, complexity.entropy, complexity.effective_complexity):
        np.testing.assert_allclose(measure(faint).values, measure(1e9 * faint).values, rtol=1e-6)
        assert measure(zero).why == {"the map is zero everywhere": 1}
        np.testing.assert_allclose(measure(one[:, None]).values, measure(one).values, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), levels=st.integers(2, 50))
def test_spearman_is_that_of_scipy(seed: int, levels: int) -> None:
    source = np.random.default_rng(seed)
    a, b = source.integers(0, levels, (2, 40)).astype(float)
    got = float(spearman(torch.tensor(a)[None], torch.tensor(b)[None])[0])
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert np.isnan(got)
    else:
        assert got == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)


def test_likeness() -> None:
    a = torch.randn(2, 9, 12)
    np.testing.assert_allclose(ssim(a, a), 1)
    np.testing.assert_allclose(pearson(a, 3 * a + 2), 1)
    np.testing.assert_allclose(pearson(a, -a), -1)
    assert ranks(torch.tensor([[3.0, 1.0, 3.0]])).tolist() == [[2.5, 1.0, 2.5]]
    np.testing.assert_allclose(ssim(a[:, None], -a[:, None]), ssim(a, -a), atol=1e-6)
    assert torch.isnan(spearman(torch.ones(1, 4), torch.rand(1, 4)))[0]


def test_agreement_between_families() -> None:
    a = torch.rand(2, 32, 32)
    assert families({"one": a, "two": a * 2 + 1}, (8, 8)).tolist() == pytest.approx([1, 1])
    assert abs(float(families({"one": a, "two": torch.rand(2, 32, 32)}, (8, 8))[0])) < 0.5


def test_controls() -> None:
    x = torch.zeros(1, 2, 10, 16, 12)
    x[..., 8:, :] = 1
    found = controls.all_controls(x, (3, 4, 3))
    assert set(found) == set(controls.NAMES)
    assert all(m.shape == (1, 10, 16, 12) and float(m.min()) >= 0 for m in found.values())
    edge = found["edges"][0]
    assert float(edge[:, 7:9].min()) > 0
    assert float(edge[:, :6].max()) == float(edge[:, 10:].max()) == 0
    centre = found["centred_gaussian"][0]
    torch.testing.assert_close(centre.flip(0), centre)
    assert int(centre.flatten().argmax()) // (16 * 12) in (4, 5)
    assert torch.equal(controls.random_map(2, (8, 8), (4, 4)), controls.random_map(2, (8, 8), (4, 4)))
    flat = torch.rand(1, 1, 12, 9)
    torch.testing.assert_close(controls.edges(flat[:, :, None])[:, 0], controls.edges(flat))


def volume(pixels: np.ndarray, modality: str, axes: str = "HW") -> Volume:
    """A volume without a place."""
    return Volume(pixels[None].astype(np.float32), axes, image_affine(), modality)  # type: ignore[arg-type]


def test_body_of_a_ct() -> None:
    pixels = np.full((4, 40, 50), -1000.0)
    pixels[:, 8:32, 10:40] = 40
    pixels[:, 14:24, 16:30] = -850  # lung
    pixels[1:3, 2:4, 2:30] = 0  # table
    found = anatomy(volume(pixels, "CT", "DHW"))
    assert found is not None
    expected = np.zeros(pixels.shape, bool)
    expected[:, 8:32, 10:40] = True
    assert (found == expected).all()


def test_sector_of_an_ultrasound_without_its_graphics() -> None:
    pixels = np.zeros((60, 80))
    pixels[10:50, 10:70] = np.random.default_rng(0).uniform(20, 200, (40, 60))
    pixels[20:30, 20:40] = 0  # a cyst
    pixels[44:49, 60:69] = 255  # burnt-in letters
    found = anatomy(volume(pixels, "US"))
    assert found is not None
    assert found[25, 30]
    assert not found[46, 64]
    assert not found[5, 5]
    assert graphics(pixels[None].astype(np.float32))[46, 64]
    assert anatomy(volume(np.zeros((20, 20)), "US")) is None


def test_masks_are_placed_by_their_affine() -> None:
    affine = np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
    study = Volume(np.zeros((1, 10, 20, 24), np.float32), "DHW", affine, "MR")
    region = np.zeros((1, 20, 20, 24), np.float32)
    region[0, 8:12, 5:9, 6:10] = 1
    finer = affine.copy()
    finer[:, 0] /= 2
    finer[:3, 3] -= finer[:3, 0] / 2
    placed = place_mask(Volume(region, "DHW", finer, "SEG"), study)
    assert sorted(set(np.argwhere(placed)[:, 0].tolist())) == [4, 5]
    assert placed.sum() == 2 * 4 * 4
    far = finer.copy()
    far[:3, 3] += 1000
    with pytest.raises(TrustError, match="outside the image"):
        place_mask(Volume(region, "DHW", far, "SEG"), study)
    with pytest.raises(TrustError, match="not a mask"):
        place_mask(Volume(np.random.default_rng(0).random((1, 20, 20, 24), np.float32), "DHW", finer, "MR"), study)
    with pytest.raises(TrustError, match="cannot be aligned"):
        place_mask(volume(np.ones((5, 6)), "US"), volume(np.ones((5, 7)), "US"))
    same = place_mask(volume(np.eye(6), "US"), volume(np.ones((6, 6)), "US"))
    assert (same == np.eye(6, dtype=bool)).all()
