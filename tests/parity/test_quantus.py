"""Measures of explanations against Quantus in two dimensions; where it departs from a definition, a minimal case."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medxai.trust import complexity, localisation
from medxai.trust.additive import infidelity
from medxai.trust.curves import aopc, deletion, irof
from medxai.trust.likeness import ssim
from medxai.trust.probe import Probe, open_run
from medxai.trust.randomisation import efficient_mprt, histogram_entropy
from medxai.trust.robustness import max_sensitivity
from medxai.trust.units import Units, blocks
from tests.explain.nets import Pooled
from tests.parity.peers import peer
from tests.trust.linear import Linear

BATCH, SIZE = 3, (24, 20)
CLOSE = 1e-6


def metric(name: str, **given: Any) -> Callable[..., np.ndarray]:
    """A metric of Quantus on arrays with the channels first."""
    made = getattr(peer("quantus"), name)(disable_warnings=True, **given)

    def call(**arrays: Any) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(made(channel_first=True, **arrays))

    return call


@pytest.fixture
def trapezoid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantus integrates with a function that NumPy 2.4 no longer has."""
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)


@pytest.fixture
def maps() -> np.ndarray:
    """Positive maps ``[B, *S]`` without ties, the strongest value of each 1: Quantus scales by that of the batch."""
    found = np.random.default_rng(0).gamma(0.7, size=(BATCH, *SIZE)) + 1e-3
    return np.asarray(found / found.max((1, 2), keepdims=True))


@pytest.fixture
def masks(maps: np.ndarray) -> np.ndarray:
    """Regions that the maps know something about."""
    return np.asarray(maps + np.random.default_rng(1).uniform(0, 0.5, maps.shape) > 0.6)


def about(maps: np.ndarray, masks: np.ndarray | None = None, **given: Any) -> dict[str, Any]:
    """What a metric that asks no network is called with."""
    x = np.zeros((len(maps), 1, *maps.shape[1:]))
    truth = None if masks is None else masks[:, None]
    return {"model": None, "x_batch": x, "y_batch": np.zeros(len(maps), int), "a_batch": maps[:, None],
            "s_batch": truth, **given}  # fmt: skip


def asked(network: nn.Module, x: Tensor, maps: Tensor | None, index: int = 1, **given: Any) -> dict[str, Any]:
    """What a metric that asks a network about one class is called with."""
    return {"model": network.eval(), "x_batch": x.numpy(), "y_batch": np.full(len(x), index),
            "a_batch": None if maps is None else maps[:, None].numpy(), **given}  # fmt: skip


def case(channels: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images away from zero and maps for them."""
    source = torch.Generator().manual_seed(3)
    x = torch.rand(BATCH, channels, *SIZE, generator=source) + 0.5
    return Pooled(2, cin=channels).eval(), x, torch.randn(BATCH, *SIZE, generator=source)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (complexity.sparseness, "Sparseness"),
        (complexity.entropy, "Complexity"),
        (complexity.effective_complexity, "EffectiveComplexity"),
    ],
)
@pytest.mark.parametrize("scale", [1, 1e-7])
def test_complexity(ours: Callable[..., Any], theirs: str, scale: float, maps: np.ndarray) -> None:
    signed = maps * np.random.default_rng(2).choice([-scale, scale], maps.shape)
    signed[maps < 0.05] *= 1e-5
    reference = metric(theirs)(**about(signed))
    np.testing.assert_allclose(ours(torch.from_numpy(signed)).values, reference, rtol=CLOSE)


def test_scaling_of_quantus_mixes_the_samples_of_a_batch(maps: np.ndarray) -> None:
    """A map 1e4 times weaker than its neighbour is all below the threshold; alone it is not."""
    pair = np.stack([maps[0], maps[1] * 1e-4])
    together, alone = metric("EffectiveComplexity")(**about(pair)), metric("EffectiveComplexity")(**about(pair[1:]))
    assert together[1] < alone[0]
    np.testing.assert_array_equal(complexity.effective_complexity(torch.from_numpy(pair)).values[1:], alone)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (localisation.mass_accuracy, "RelevanceMassAccuracy"),
        (localisation.rank_accuracy, "RelevanceRankAccuracy"),
        (localisation.auroc, "AUC"),
        (localisation.pointing_game, "PointingGame"),
    ],
)
def test_localisation(ours: Callable[..., Any], theirs: str, maps: np.ndarray, masks: np.ndarray) -> None:
    masks[1] = ~masks[1]
    reference = metric(theirs)(**about(maps, masks))
    np.testing.assert_allclose(ours(maps, masks).values, reference, rtol=CLOSE)


def test_auroc_with_ties(maps: np.ndarray, masks: np.ndarray) -> None:
    coarse = np.ceil(maps * 5)
    np.testing.assert_allclose(
        localisation.auroc(coarse, masks).values, metric("AUC")(**about(coarse, masks)), rtol=CLOSE
    )


def test_pointing_game_of_quantus_counts_an_empty_mask_as_a_hit(maps: np.ndarray) -> None:
    none = np.zeros(maps.shape, bool)
    none[0].flat[maps[0].argmin()] = True  # a miss
    reference = metric("PointingGame")(**about(maps, none))
    assert reference.tolist() == [False, True, True]
    ours = localisation.pointing_game(maps, none)
    np.testing.assert_array_equal(ours.values, [0, np.nan, np.nan])
    assert ours.reasons[1] == "the mask is empty"


def test_attribution_localisation_of_quantus_takes_evidence_against_for_evidence() -> None:
    """With -3 inside the mask and 1 outside, none of the evidence lies inside; three quarters of the sizes do."""
    values, inside = np.zeros((1, 4, 4)), np.zeros((1, 4, 4), bool)
    values[0, 0, 0], values[0, 3, 3], inside[0, 0, 0] = -3, 1, True
    with np.errstate(divide="ignore"):
        plain = metric("AttributionLocalisation")(**about(values, inside))
        right = metric("AttributionLocalisation", abs=False, positive_attributions=True)(**about(values, inside))
        # The share of the image comes from a slice of the batch, which is empty here.
        weighted = metric("AttributionLocalisation", weighted=True)(**about(values, inside))
    np.testing.assert_allclose(plain, 0.75, rtol=CLOSE)
    assert right.tolist() == [0.0]
    assert np.isinf(weighted).all()
    assert localisation.mass_accuracy(values, inside).values.tolist() == [0.0]
    values[0, 0, 0] = 3
    np.testing.assert_allclose(localisation.mass_accuracy(values, inside).values, 0.75)
    np.testing.assert_allclose(localisation.mass_lift(values, inside).values, 0.75 * 16)


def test_ssim(maps: np.ndarray) -> None:
    """Quantus takes the range of both maps together; ours scales each, so they are given scaled."""
    low = maps.min((1, 2), keepdims=True)
    a = (maps - low) / (1 - low)
    b = np.roll(a, 1, 2) ** 2
    reference = peer("quantus").ssim(a, b, batched=True)
    np.testing.assert_allclose(ssim(torch.from_numpy(a), torch.from_numpy(b)), reference, rtol=CLOSE)


def test_max_sensitivity() -> None:
    network, x, _ = case(2)
    span = (x.flatten(1).amax(1) - x.flatten(1).amin(1))[:, None]
    source = torch.Generator().manual_seed(7)

    def ours(images: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            return (torch.autograd.grad(network(leaf)[:, 1].sum(), leaf)[0] * leaf).sum(1).detach()

    def theirs(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        assert model is network
        assert (np.asarray(targets) == 1).all()
        return ours(torch.as_tensor(inputs))[:, None].numpy()

    def same_noise(arr: np.ndarray, **_: Any) -> np.ndarray:
        noise = 2 * torch.rand(x.shape, generator=source) - 1
        return (torch.from_numpy(arr) + noise.flatten(1) * 0.05 * span).numpy()

    reference = metric("MaxSensitivity", nr_samples=6, perturb_func=same_noise)(
        **asked(network, x, ours(x), explain_func=theirs)
    )
    found = max_sensitivity(ours, x, radius=0.05, samples=6, seed=7)
    assert (found.values > 0).all()
    np.testing.assert_allclose(found.values, reference, rtol=CLOSE)


@pytest.mark.parametrize("channels", [1, 3])
def test_region_perturbation(channels: int) -> None:
    network, x, maps = case(channels)
    units = blocks(SIZE, 4)
    reference = metric("RegionPerturbation", patch_size=4, perturb_baseline=0.0)(
        **asked(network, x, maps, softmax=True)
    )
    curve = deletion(Probe(open_run(network, x, 1)), maps, units, units.count)
    drops = curve.scores[:, :1] - curve.scores[:, 1:]
    assert reference.shape == (BATCH, units.count)
    np.testing.assert_allclose(drops, reference, atol=CLOSE)
    np.testing.assert_allclose(aopc(curve).values, reference.mean(1), atol=CLOSE)


def test_pixel_flipping(trapezoid: None) -> None:
    """Pixels of one channel; with several Quantus sorts every channel's values by themselves."""
    network, x, maps = case()
    steps, units = 16, blocks(SIZE, 1)
    given = {"features_in_step": units.count // steps, "perturb_baseline": 0.0}
    reference = metric("PixelFlipping", **given)(**asked(network, x, maps, softmax=True))
    curve = deletion(Probe(open_run(network, x, 1)), maps, units, steps)
    assert reference.shape == (BATCH, steps)
    np.testing.assert_allclose(curve.scores[:, 1:], reference, atol=CLOSE)
    below = metric("PixelFlipping", return_auc_per_sample=True, **given)(**asked(network, x, maps, softmax=True))
    # Its area has no clean score in it and a unit step.
    ours = steps * curve.area - (curve.scores[:, 0] + curve.scores[:, 1]) / 2
    np.testing.assert_allclose(ours, below, rtol=CLOSE)


def segmented(monkeypatch: pytest.MonkeyPatch, units: Units) -> None:
    """Give Quantus our segments."""
    labels = units.labels.numpy()
    monkeypatch.setattr(peer("quantus.helpers.utils"), "get_superpixel_segments", lambda **_: labels)


def test_irof(trapezoid: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, maps = case()
    units = blocks(SIZE, (5, 7))
    segmented(monkeypatch, units)
    reference = metric("IROF", return_aggregate=False, perturb_baseline=0.0)(**asked(network, x, maps))
    probe = Probe(open_run(network, x, 1))
    relative = deletion(probe, maps, units, units.count).scores[:, 1:] / probe.clean[:, None]
    # Quantus: segments less the area by trapezoids between the first removal and the last, not divided.
    np.testing.assert_allclose(units.count - torch.trapezoid(relative, dim=1), reference, rtol=CLOSE)
    ends = (relative[:, 0] + relative[:, -1]).numpy() / 2
    np.testing.assert_allclose(irof(probe, maps, units).values, (reference - ends) / units.count, atol=CLOSE)


def test_mean_of_quantus_is_that_of_the_whole_batch(trapezoid: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its IROF of an image changes with what else is in the batch; ours does not."""
    network, x, maps = case()
    units = blocks(SIZE, (5, 7))
    segmented(monkeypatch, units)
    x[1:] += 3
    together, alone = (
        metric("IROF", return_aggregate=False)(**asked(network, x[:n], maps[:n]))[0] / units.count for n in (BATCH, 1)
    )
    assert abs(together - alone) > 1e-3
    ours = [irof(Probe(open_run(network, x[:n], 1, masking="mean")), maps[:n], units).values[0] for n in (BATCH, 1)]
    assert ours[0] == pytest.approx(ours[1], abs=CLOSE)


def test_infidelity_of_quantus_removes_one_block_on_top_of_the_other() -> None:
    """The sum of two blocks of 16 ones, and an attribution that knows the second alone.

    Sums of 0 and 16 against changes of 16 and 16: (256 + 0) / 2. Quantus leaves the first block out when it removes
    the second, a change of 32: (256 + 256) / 2.
    """
    network, x = Linear((1, 4, 8), 2).eval(), torch.ones(1, 1, 4, 8)
    with torch.no_grad():
        network.fc.weight.copy_(torch.stack([torch.zeros(32), torch.ones(32)]))
        network.fc.bias.zero_()
    second = torch.zeros(1, 4, 8)
    second[..., 4:] = 1
    reference = metric("Infidelity", perturb_patch_sizes=[4], n_perturb_samples=1, perturb_baseline=0.0,
                       normalise=False)(**asked(network, x, second, softmax=False))  # fmt: skip
    np.testing.assert_allclose(reference, 256, rtol=CLOSE)
    ours = infidelity(Probe(open_run(network, x, 1), score="logit"), second, blocks((4, 8), 4))
    np.testing.assert_allclose(ours.values, 128, rtol=CLOSE)


def test_efficient_mprt() -> None:
    network, x, _ = case()
    source = np.random.default_rng(4)
    before, after = source.gamma(0.5, size=(BATCH, *SIZE)), source.normal(size=(BATCH, *SIZE))

    def theirs(model: nn.Module, **_: Any) -> np.ndarray:
        return (before if model is network else after)[:, None]

    def ours(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda _x: torch.from_numpy(before if model is network else after)

    entropy = peer("quantus.functions.complexity_func").discrete_entropy
    np.testing.assert_allclose(histogram_entropy(torch.from_numpy(before)), [entropy(m, m) for m in before], rtol=CLOSE)
    reference = metric("EfficientMPRT")(**asked(network, x, torch.from_numpy(before), explain_func=theirs))
    np.testing.assert_allclose(efficient_mprt(network, x, ours).values, reference, rtol=CLOSE)
