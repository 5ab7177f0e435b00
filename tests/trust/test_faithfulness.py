"""Curves, additive measures and drops against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medxai.explain.resize import resize
from medxai.trust.additive import faithfulness_correlation, infidelity, sensitivity_n
from medxai.trust.curves import agreement, aopc, area, deletion, insertion, irof, road
from medxai.trust.drops import adcc, arcc, average_drop, increase, necessity, scaled, sufficiency
from medxai.trust.probe import Probe, open_run
from medxai.trust.units import Units, blocks, segments
from tests.trust.linear import Constant, Linear

SHAPES = {2: (2, 15, 21), 3: (1, 6, 13, 10)}


def setup(dims: int, batch: int = 3, **given: str) -> tuple[Linear, torch.Tensor, Probe, Units, torch.Tensor]:
    """A linear network, images, a probe for class 1, units and the exact attribution."""
    shape = SHAPES[dims]
    network = Linear(shape).eval()
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
    probe = Probe(open_run(network, x, 1), score=given.get("score", "logit"), masking=given.get("masking"))
    return network, x, probe, blocks(shape[1:], 3), network.attribution(x, 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_exact_attribution_of_a_linear_network(dims: int) -> None:
    _, _, probe, units, exact = setup(dims)
    np.testing.assert_allclose(faithfulness_correlation(probe, exact, units).values, 1, atol=1e-6)
    np.testing.assert_allclose(sensitivity_n(probe, exact, units, runs=8).values, 1, atol=1e-6)
    np.testing.assert_allclose(infidelity(probe, exact, units).values, 0, atol=1e-9)
    np.testing.assert_allclose(infidelity(probe, 5 * exact, units).values, 0, atol=1e-9)  # scale is free
    np.testing.assert_allclose(faithfulness_correlation(probe, -exact, units).values, -1, atol=1e-6)
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(5))
    assert (np.abs(faithfulness_correlation(probe, noise, units).values) < 0.6).all()
    assert (infidelity(probe, noise, units, relative=True).values > 0.5).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_exact_order_gives_the_extreme_areas(dims: int) -> None:
    _, _, probe, units, exact = setup(dims)
    falls = area(deletion(probe, exact, units, 12), "deletion", better="lower").values
    rises = area(insertion(probe, exact, units, 12), "insertion", better="higher").values
    sums = units.sums(exact)
    for seed in range(6):
        other = torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed))
        assert (area(deletion(probe, other, units, 12), "d", better="lower").values > falls - 1e-9).all()
        assert (area(insertion(probe, other, units, 12), "i", better="higher").values < rises + 1e-9).all()
    # By hand: removing units in falling order of their mean.
    order = (sums / units.sizes).argsort(1, descending=True)
    curve = deletion(probe, exact, units, units.count)
    by_hand = probe.clean[:, None] - torch.cat([torch.zeros(3, 1), sums.gather(1, order).cumsum(1)], 1)
    torch.testing.assert_close(curve.scores, by_hand, atol=1e-5, rtol=0)
    np.testing.assert_allclose(aopc(curve).values, (by_hand[:, :1] - by_hand[:, 1:]).mean(1), atol=1e-5)


def test_ends_of_the_curves() -> None:
    network, x, probe, units, exact = setup(3)
    removed = network(torch.zeros_like(x))[:, 1].detach().double()
    for curve, first, last in (
        (deletion(probe, exact, units, 4), probe.clean, removed),
        (insertion(probe, exact, units, 4), removed, probe.clean),
    ):
        torch.testing.assert_close(curve.scores[:, 0], first, atol=1e-5, rtol=0)
        torch.testing.assert_close(curve.scores[:, -1], last, atol=1e-5, rtol=0)
        scaled_curve = curve.normalised()
        np.testing.assert_allclose(scaled_curve.scores[:, 0], 1)
        np.testing.assert_allclose(scaled_curve.scores[:, -1], 0, atol=1e-12)


def test_steps_are_the_forwards() -> None:
    _, _, probe, units, exact = setup(2, batch=1)
    deletion(probe, exact, units, 16)
    assert probe.forwards == 16
    insertion(probe, exact, units, 16)
    assert probe.forwards == 32


def test_road_prefers_the_exact_map() -> None:
    _, _, probe, units, exact = setup(2, masking="noise_inpaint")
    good = road(probe, exact, units, [0.2, 0.5]).values
    bad = road(probe, -exact, units, [0.2, 0.5]).values
    assert (good > 0).all()
    np.testing.assert_allclose(bad, -good, atol=0.2 * np.abs(good).max())


def test_a_rectified_map_does_not_remove_the_whole_image() -> None:
    """Most of a map is zero: the least important share is drawn from the ties, not all of them."""
    _, x, _, units, _ = setup(2, batch=1)
    network = Linear(SHAPES[2])
    maps = torch.zeros(1, *SHAPES[2][1:])
    maps[0, :3, :3] = 1
    seen: list[float] = []
    run = open_run(network, x, 1)
    probe = Probe(run, score="logit")
    inner = probe.scores
    probe.scores = lambda masks, rows: (seen.extend((1 - masks).flatten(1).mean(1).tolist()), inner(masks, rows))[1]  # type: ignore[method-assign]
    road(probe, maps, units, [0.2])
    assert all(abs(share - 0.2) < 0.06 for share in seen)


def test_irof_of_a_network_that_ignores_the_image_is_zero() -> None:
    x = torch.rand(2, 1, 20, 24)
    probe = Probe(open_run(Constant(), x, 2), masking="mean")
    units = segments(x[0], 12)
    np.testing.assert_allclose(irof(probe, torch.rand(2, 20, 24), units).values, 0, atol=1e-9)


@pytest.mark.parametrize("dims", [2, 3])
def test_drop_by_hand(dims: int) -> None:
    network, x, probe, _, exact = setup(dims, score="prob")
    maps = exact.clamp_min(0)
    soft = maps / maps.flatten(1).amax(1).view(-1, *[1] * dims)
    before = network(x).softmax(1)[:, 1].detach().double()
    after = network(x * soft[:, None]).softmax(1)[:, 1].detach().double()
    np.testing.assert_allclose(average_drop(probe, maps).values, (before - after).clamp_min(0) / before, atol=1e-6)
    np.testing.assert_array_equal(increase(probe, maps).values, (after > before).double())
    np.testing.assert_allclose(average_drop(probe, torch.ones_like(maps)).values, 0, atol=1e-6)  # easily gamed
    torch.testing.assert_close(scaled(exact), soft)


def test_adcc_and_arcc_are_harmonic_means() -> None:
    network, x, probe, units, exact = setup(2, score="prob")
    maps = exact.clamp_min(0)
    again = lambda images: network.attribution(images, 1)  # noqa: E731
    soft = scaled(maps)
    drop = torch.from_numpy(average_drop(probe, maps).values)
    other = scaled(again(x * soft[:, None]))
    coherency = torch.tensor(
        [(1 + np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1]) / 2 for a, b in zip(soft, other, strict=True)]
    )
    simple = 1 - soft.double().flatten(1).mean(1)
    expected = 3 / (1 / coherency + 1 / simple + 1 / (1 - drop))
    np.testing.assert_allclose(adcc(probe, maps, again).values, expected, atol=1e-6)
    found = road(probe, maps, units, [0.3])
    term = torch.from_numpy(np.clip(2 * found.values, 0, 1))
    expected = torch.where(term > 0, 3 / (1 / coherency + 1 / simple + 1 / term.clamp_min(1e-30)), 0)
    np.testing.assert_allclose(arcc(probe, maps, again, found).values, expected, atol=1e-6)
    # A map of ones is coherent with itself but as complex as can be.
    np.testing.assert_allclose(adcc(probe, torch.ones_like(maps), again).values, 0)


def test_sufficiency_and_necessity() -> None:
    network, x, probe, _, _ = setup(3, score="prob")
    lesion = torch.zeros(3, *SHAPES[3][1:], dtype=torch.bool)
    lesion[0, 1:3, 2:7, 3:8] = True
    lesion[1] = True
    kept, lost = sufficiency(probe, lesion), necessity(probe, lesion)
    before = network(x).softmax(1)[:, 1].detach().double()
    only = network(x * lesion[:, None]).softmax(1)[:, 1].detach().double()
    without = network(x * ~lesion[:, None]).softmax(1)[:, 1].detach().double()
    np.testing.assert_allclose(kept.values[:2], (only / before)[:2], atol=1e-6)
    np.testing.assert_allclose(lost.values[:2], (1 - without / before)[:2], atol=1e-6)
    assert kept.values[1] == pytest.approx(1)
    assert kept.undefined == lost.undefined == 1
    assert kept.why == {"the mask is empty": 1}


def test_what_has_no_order_has_no_value() -> None:
    _, _, probe, units, _ = setup(2)
    maps = torch.rand(3, *SHAPES[2][1:])
    maps[0], maps[1, 3, 4] = 0, math.nan
    found = [
        area(deletion(probe, maps, units, 3), "d", better="lower"), road(probe, maps, units, [0.5]),
        faithfulness_correlation(probe, maps, units, runs=4), sensitivity_n(probe, maps, units, runs=4),
        infidelity(probe, maps, units, runs=4), average_drop(probe, maps), increase(probe, maps),
        adcc(probe, maps, lambda images: images[:, 0]),
    ]  # fmt: skip
    for scores in found:
        assert np.isnan(scores.values[:2]).all(), scores.name
        assert np.isfinite(scores.values[2]), scores.name
        assert scores.undefined == 2
        assert scores.reasons[0] == "the map is zero everywhere"
        assert scores.reasons[1] == "the map holds NaN or infinite values"


def test_a_constant_network_correlates_with_nothing() -> None:
    x = torch.rand(2, 1, 12, 12)
    probe = Probe(open_run(Constant(), x, 0), score="logit")
    found = faithfulness_correlation(probe, torch.rand(2, 12, 12), blocks((12, 12), 3))
    assert found.undefined == 2
    assert set(found.why) == {"sums or changes of the score do not vary"}


@pytest.mark.parametrize("operator", ["zero", "blur", "mean", "noise_inpaint"])
def test_a_volume_of_one_slice_is_an_image(operator: str) -> None:
    shape = (1, 18, 15)
    flat = Linear(shape)
    deep = Linear((1, 1, 18, 15))
    deep.fc = flat.fc
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    maps = torch.rand(2, *shape[1:], generator=torch.Generator().manual_seed(4))
    found = []
    for network, images, values in ((flat, x, maps), (deep, x[:, :, None], maps[:, None])):
        probe = Probe(open_run(network, images, 1), masking=operator, score="prob")
        units = blocks(values.shape[1:])
        found.append(
            [
                area(deletion(probe, values, units, 5), "d", better="lower").values,
                area(insertion(probe, values, units, 5), "i", better="higher").values,
                road(probe, values, units, [0.3]).values,
                average_drop(probe, values).values if operator in ("zero", "blur", "mean") else 0,
                faithfulness_correlation(probe, values, units, runs=9).values,
                sensitivity_n(probe, values, units, runs=4).values,
                infidelity(probe, values, units, runs=9).values,
            ]
        )
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_units_are_a_partition() -> None:
    for units in (blocks((7, 9, 5), 3), blocks((33, 20)), segments(torch.rand(1, 8, 12, 10), 20, (4.0, 1.0, 1.0))):
        assert sorted(units.labels.unique().tolist()) == list(range(units.count))
        assert int(units.sizes.sum()) == units.labels.numel()
        maps = torch.rand(2, *units.labels.shape)
        torch.testing.assert_close(units.sums(maps).sum(1), maps.double().flatten(1).sum(1))
        back = units.masks(units.means(maps))
        torch.testing.assert_close(units.means(back), units.means(maps), atol=1e-6, rtol=0)


def test_ties_are_broken_the_same_way_every_time() -> None:
    units = blocks((8, 8), 2)
    order = units.order(torch.ones(2, 8, 8))
    assert torch.equal(order, units.order(torch.ones(2, 8, 8)))
    assert sorted(order[0].tolist()) == list(range(16))
    assert order[0].tolist() != list(range(16))
    large = resize(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), (8, 8))
    assert int(units.order(large)[0, 0]) == 0


def test_agreement_of_baselines() -> None:
    assert agreement(np.array([1.0, 2, 3]), np.array([10.0, 20, 30])) == 1
    assert agreement(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == -1
