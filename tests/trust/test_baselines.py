"""Several ways of removing, pixel flipping, and inputs that have no answer: a reason each, never a number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from medxai.errors import ExplainError
from medxai.explain.split import Forward
from medxai.explain.target import resolve
from medxai.trust import localisation
from medxai.trust.additive import faithfulness_correlation, infidelity, sensitivity_n
from medxai.trust.baselines import blur_mm, compare
from medxai.trust.boxes import free_response, max_box_accuracy
from medxai.trust.concepts import clm
from medxai.trust.curves import aopc, area, deletion, insertion, irof, pixel_flipping, road
from medxai.trust.drops import adcc, arcc, average_drop, increase, necessity, sufficiency
from medxai.trust.gate.assess import open_bench
from medxai.trust.gate.figures import NAMES, REMOVAL, Candidate, log_odds
from medxai.trust.gate.verdict import judge
from medxai.trust.probe import Baseline, Probe, open_run
from medxai.trust.randomisation import efficient_mprt, mprt
from medxai.trust.robustness import consistency, local_lipschitz, max_sensitivity
from medxai.trust.scores import Scores
from medxai.trust.units import blocks
from tests.explain.nets import Pooled
from tests.explain.test_layer_masking import vit
from tests.trust.linear import Constant, Linear
from tests.trust.test_gate import GOOD, drawn

SHAPE = (2, 12, 15)
OPERATORS = (
    "air", "blur", "layer_mask", "mean", "mirror", "neighbour", "noise_inpaint", "shuffle", "token_drop", "zero",
)  # fmt: skip


def linear() -> tuple[Linear, torch.Tensor, torch.Tensor]:
    """A network, images and the exact attribution of class 1 for a zero baseline."""
    network = Linear(SHAPE).eval()
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    return network, x, network.attribution(x, 1)


def test_pixel_flipping_of_a_linear_network() -> None:
    """Each step takes away the largest values that are left."""
    network, x, exact = linear()
    probe = Probe(open_run(network, x, 1), score="logit")
    ordered = exact.flatten(1).double().sort(1, descending=True).values
    by_hand = torch.stack([ordered[:, : 45 * k].sum(1) for k in range(1, 5)], 1).mean(1)
    np.testing.assert_allclose(pixel_flipping(probe, exact, 4).values, by_hand, atol=1e-4)
    assert probe.forwards == 12
    other = pixel_flipping(probe, torch.rand(exact.shape), 4)
    assert (other.values < by_hand.numpy()).all()
    assert pixel_flipping(probe, torch.zeros_like(exact), 4).why == {"the map is zero everywhere": 3}


def test_a_baseline_of_ones_own() -> None:
    network, x, exact = linear()
    run = open_run(network, x, 1)
    units = blocks(SHAPE[1:], 3)
    zero, own = Probe(run, "zero", "logit"), Probe(run, Baseline("nothing", torch.zeros(1)), "logit")
    assert own.name == "nothing"
    np.testing.assert_allclose(deletion(own, exact, units, 5).scores, deletion(zero, exact, units, 5).scores, atol=1e-6)
    kept = Probe(run, Baseline("itself", x), "logit")  # removing changes nothing
    np.testing.assert_allclose(aopc(deletion(kept, exact, units, 5)).values, 0, atol=1e-5)
    rows, half = torch.tensor([2, 0]), torch.full((2, *SHAPE[1:]), 0.25)
    ones = Probe(run, Baseline("ones", torch.ones_like(x)))
    torch.testing.assert_close(ones.images(half, rows), 0.25 * x[rows] + 0.75)


def test_blur_is_stated_in_the_patient() -> None:
    """The same point at half the voxel size is as wide in mm; an axis of one position stays as it is."""
    fine, coarse = torch.zeros(1, 1, 1, 81, 81), torch.zeros(1, 1, 1, 41, 41)
    fine[..., 40, 40] = coarse[..., 20, 20] = 1.0
    small, large = blur_mm(fine, (5.0, 1.0, 1.0), 6.0), blur_mm(coarse, (5.0, 2.0, 2.0), 6.0)
    assert small.name == "blur 6 mm"

    def width_mm(values: torch.Tensor, step: float) -> float:
        line = values[0, 0, 0].sum(0)
        place = (torch.arange(len(line)) - len(line) // 2) * step
        return float(((line * place**2).sum() / line.sum()).sqrt())

    assert width_mm(small.values, 1.0) == pytest.approx(6, abs=0.2)
    assert width_mm(large.values, 2.0) == pytest.approx(6, abs=0.2)


def test_two_baselines_and_the_agreement_of_their_ranks() -> None:
    network, x, exact = linear()
    units = blocks(SHAPE[1:], 3)
    maps = {
        "exact": exact,
        "noise": torch.randn(exact.shape, generator=torch.Generator().manual_seed(2)),
        "opposite": -exact,
    }
    measure = lambda probe, values: faithfulness_correlation(probe, values, units)  # noqa: E731
    run = open_run(network, x, 1)
    found = compare(run, measure, maps, ("zero", Baseline("faint", 0.01 * x)), score="logit")
    assert found.scores["exact"]["zero"].mean == pytest.approx(1)
    assert found.agreement == {("zero", "faint"): 1.0}
    assert found.best == "exact"
    turned = compare(run, measure, maps, ("zero", Baseline("twice", 2 * x)), score="logit")  # removing doubles
    assert turned.agreement[("zero", "twice")] == -1
    assert turned.best is None
    low = compare(run, lambda p, v: area(deletion(p, v, units, 4), "deletion", better="lower"), maps, score="logit")
    assert set(low.agreement) == {("blur", "mean")}
    assert low.best == "exact"
    with pytest.raises(ValueError, match="at least two"):
        compare(run, measure, maps, ("zero",))
    assert compare(run, measure, {"exact": exact}, score="logit").best is None  # one method has no rank


def test_the_clean_forward_chooses_the_batch() -> None:
    """A batch of one is tried once for both; the clean scores are those of a plain forward."""
    network, x, exact = linear()
    seen: list[int] = []
    handle = network.register_forward_pre_hook(lambda _network, given: seen.append(len(given[0])))
    runs = [open_run(network, x[:1], 1), open_run(network, x, 1), open_run(network, x[:1], 1, chunk=2)]
    assert seen == [1, 3, 1]
    deletion(Probe(runs[0]), exact[:1], blocks(SHAPE[1:], 3), 4)
    assert seen == [1, 3, 1, 4]
    handle.remove()
    with torch.no_grad():
        torch.testing.assert_close(runs[0].logits, network(x[:1]))
    assert not network._forward_hooks


@pytest.mark.parametrize("dims", [2, 3])
def test_the_rest_on_a_volume_of_one_slice(dims: int) -> None:
    """The closed forms of the image, D = 1 with the same units."""
    shape = (1, 18, 15) if dims == 2 else (1, 1, 18, 15)
    flat, network = Linear((1, 18, 15)), Linear(shape)
    network.fc = flat.fc
    x = torch.rand(2, 1, 18, 15, generator=torch.Generator().manual_seed(3)) + 0.2
    maps, lesion = torch.rand(2, 18, 15, generator=torch.Generator().manual_seed(4)), torch.zeros(2, 18, 15)
    lesion[:, 4:9, 3:8] = 1
    reference: list[np.ndarray] = []
    for model, images, values, mask in (
        (flat, x, maps, lesion.bool()),
        (network, x.view(2, *shape), maps.view(2, *shape[1:]), lesion.view(2, *shape[1:]).bool()),
    ):
        units = blocks(values.shape[1:])
        probe = Probe(open_run(model, images, 1))
        follow = lambda given: given[:, 0]  # noqa: E731
        found = [
            irof(Probe(open_run(model, images, 1), "mean"), values, units), pixel_flipping(probe, values, 5),
            increase(probe, values), adcc(probe, values, follow),
            arcc(probe, values, follow, road(probe, values, units, [0.3])), sufficiency(probe, mask),
            necessity(probe, mask), max_sensitivity(follow, images, samples=3),
            local_lipschitz(follow, images, samples=3), *consistency(follow, images).values(),
            max_box_accuracy(values.numpy(), mask.numpy(), (0.3, 0.5)).hits,
            Scores("froc", free_response(values.numpy(), mask.numpy()).sensitivity),
        ]  # fmt: skip
        reference = reference or [scores.values for scores in found]
        for one, other in zip(reference, found, strict=True):
            np.testing.assert_allclose(one, other.values, atol=1e-5, err_msg=other.name)


class _Fragile(nn.Module):
    """Answers images without zeros, and NaN otherwise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        score = torch.where((flat == 0).any(1), torch.nan, flat.sum(1))
        return torch.stack([score, -score], 1)


def test_a_network_that_gives_no_number_for_masked_images() -> None:
    x = torch.rand(2, 1, 12, 12) + 0.5
    maps, units = torch.rand(2, 12, 12), blocks((12, 12), 4)
    probe = Probe(open_run(_Fragile(), x, 0))
    lesion = torch.zeros(2, 12, 12, dtype=torch.bool)
    lesion[:, :4, :4] = True
    for scores in (
        area(deletion(probe, maps, units, 3), "d", better="lower"),
        area(insertion(probe, maps, units, 3), "i", better="higher"),
        road(probe, maps, units, [0.5]), irof(probe, maps, units), pixel_flipping(probe, maps, 3),
        faithfulness_correlation(probe, maps, units, runs=4), sensitivity_n(probe, maps, units, runs=4),
        infidelity(probe, maps, units, runs=4), average_drop(probe, lesion.float()), increase(probe, lesion.float()),
        sufficiency(probe, lesion), necessity(probe, lesion),
    ):  # fmt: skip
        assert scores.why == {"the network puts out NaN or infinite values for masked images": 2}, scores.name
    with pytest.raises(ExplainError, match="for the images themselves"):
        open_run(_Fragile(), x * 0)


def test_the_gate_does_not_judge_without_answers() -> None:
    """What is not a number would count as an average figure and could make a map supported."""
    from medxai.trust.gate.fit import calibrate

    x = torch.rand(1, 1, 16, 16) + 0.5
    bench = open_bench(Forward(_Fragile()), x, 0, ("zero", "air"))
    figures = bench.figures(Candidate(torch.rand(4, 4), torch.rand(4, 4), torch.rand(4, 4)))
    assert math.isnan(figures["deletion"])
    assert math.isfinite(figures["specificity"])
    learnt = calibrate(drawn(), bundle="tiny", method="gradcam", masking=("blur", "mean"))
    report = judge(GOOD | dict.fromkeys(REMOVAL, math.nan), learnt, method="gradcam", label="lesion")
    assert report.verdict == "limited"
    assert "answers of the network" in report.reasons[0]
    assert judge(GOOD, learnt, method="gradcam", label="lesion").verdict == "supported"
    empty = bench.figures(Candidate(torch.full((4, 4), math.nan)))
    assert set(empty) == set(NAMES)
    assert all(math.isnan(value) for value in empty.values())


def test_a_model_with_a_single_class() -> None:
    """One logit stands for two classes: the score of 0 is the negative of that of 1, and each is the other's rival."""
    network, x = Pooled(2, classes=1).eval(), torch.rand(1, 1, 24, 20)
    both = [open_bench(Forward(network), x, index, ("blur", "mean")) for index in (0, 1)]
    assert both[0].clean == pytest.approx(-both[1].clean)
    values = torch.rand(6, 5)
    figures = [bench.figures(Candidate(values)) for bench in both]
    assert figures[0]["drop"] == pytest.approx(-figures[1]["drop"])
    logits = network(x)
    assert float(log_odds(resolve(1, logits))(logits)[0]) == pytest.approx(float(logits[0, 0]))


def test_grids_that_differ_are_refused() -> None:
    network, x, exact = linear()
    probe, maps = Probe(open_run(network, x, 1)), torch.rand(3, 12, 14)
    with pytest.raises(ValueError, match="different grids"):
        deletion(probe, maps, blocks(SHAPE[1:], 3))
    for measure in (sufficiency, necessity):
        with pytest.raises(ValueError, match="different grids"):
            measure(probe, torch.ones(3, 12, 14, dtype=torch.bool))
    with pytest.raises(ValueError, match="different grids"):
        free_response(exact.numpy(), np.ones((3, 12, 14), bool))
    with pytest.raises(ValueError, match="different grids"):
        max_box_accuracy(exact.numpy(), np.ones((3, 12, 14), bool))
    with pytest.raises(ValueError, match="different grids"):
        localisation.mass_lift(exact.numpy(), np.ones((3, 12, 14), bool))
    with pytest.raises(ValueError, match="different grids"):
        clm([np.ones((2, 4, 4))], np.ones((1, 2)), [[np.ones((4, 5), bool), None]], 2)


def test_maps_that_hold_nan_are_counted_out() -> None:
    maps, truth = np.random.default_rng(0).random((3, 8, 8)), np.zeros((3, 8, 8), bool)
    truth[:, 2:4, 2:4] = True
    maps[1, 0, 0] = np.nan
    found = free_response(maps, truth, (0.5,))
    assert (found.images, found.lesions, found.skipped) == (2, 2, 1)
    x = torch.rand(2, 1, 8, 8)
    broken = lambda images: images[:, 0] * torch.tensor([1.0, math.nan]).view(2, 1, 1)  # noqa: E731
    network = Pooled(2).eval()
    for scores in (
        max_sensitivity(broken, x, samples=2), local_lipschitz(broken, x, samples=2), *consistency(broken, x).values(),
        efficient_mprt(network, x, lambda _network: broken), mprt(network, x, lambda _network: broken)[0],
    ):  # fmt: skip
        assert scores.reasons[1] == "the map holds NaN or infinite values", scores.name
    with pytest.raises(ValueError, match="drawn anew"):
        mprt(Constant(), x, lambda _network: broken)


@pytest.mark.parametrize("operator", [name for name in sorted(OPERATORS) if name != "token_drop"])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_way_of_removing(operator: str, dims: int) -> None:
    network = Pooled(dims).eval()
    x = torch.rand(2, 1, *((24, 20) if dims == 2 else (8, 16, 12)), generator=torch.Generator().manual_seed(0))
    maps, probe = torch.rand(2, *x.shape[2:]), Probe(open_run(network, x, 1), operator, "logit")
    for curve in (deletion(probe, maps, blocks(x.shape[2:], 4), 4), insertion(probe, maps, blocks(x.shape[2:], 4), 4)):
        assert curve.masking == operator
        assert bool(torch.isfinite(curve.scores).all())
        ends = curve.scores[:, 0] if curve.scores[0, 0] == probe.clean[0] else curve.scores[:, -1]
        torch.testing.assert_close(ends, probe.clean)
    assert probe.forwards == 2 * 2 * 4


def test_removing_tokens() -> None:
    network, x = vit((24, 32)), torch.randn(2, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    units, maps = blocks((24, 32), 8), torch.rand(2, 24, 32)  # a unit is a token
    probe = Probe(open_run(network, x, 1), "token_drop", "logit")
    curve = insertion(probe, maps, units, units.count)
    torch.testing.assert_close(curve.scores[:, -1], probe.clean)
    assert bool(torch.isfinite(curve.scores).all())
    both = {"a": maps, "b": -maps}
    agreed = compare(probe.run, lambda p, v: aopc(deletion(p, v, units, 4)), both, ("token_drop", "zero"))
    assert set(agreed.agreement) == {("token_drop", "zero")}
