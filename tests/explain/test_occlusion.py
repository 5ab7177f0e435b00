"""Occlusion against closed forms."""

from __future__ import annotations

import pytest
import torch

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.coarse_to_fine import estimate, plan
from medxai.explain.registry import make_options
from medxai.explain.windows import Windows
from tests.explain.perturbed import Linear


@pytest.mark.parametrize("shape", [(2, 1, 5, 7), (2, 2, 3, 4, 5)])
def test_single_voxels_of_a_linear_model(shape: tuple[int, ...]) -> None:
    """``w x`` at every voxel, in sum the score less the bias."""
    torch.manual_seed(0)
    network, x = Linear(torch.randn(shape[1:]), bias=0.7), torch.randn(shape)
    found = explain(network, x, methods=["occlusion"], classes=1, options={"occlusion": {"window": 1, "stride": 1}})[0]
    assert torch.allclose(found.raw, (network.weight * x).sum(1), atol=1e-4)
    assert torch.allclose(found.raw.flatten(1).sum(1), found.score - 0.7, atol=1e-3)


def test_windows_are_averaged_and_clipped() -> None:
    """A voxel has the mean over the windows that cover it; the last window ends with the image."""
    torch.manual_seed(0)
    network, x = Linear(torch.randn(1, 9, 11)), torch.randn(1, 1, 9, 11)
    size, step = (4, 3), (2, 3)
    found = explain(network, x, methods=["occlusion"], classes=1, chunk=7,
                    options={"occlusion": {"window": list(size), "stride": list(step)}})[0]  # fmt: skip
    product = (network.weight * x)[0, 0].detach()
    total, count = torch.zeros(9, 11), torch.zeros(9, 11)
    for top in (0, 2, 4, 6):
        for left in (0, 3, 6, 9):
            window = (slice(top, top + 4), slice(left, left + 3))
            total[window] += product[window].sum()
            count[window] += 1
    assert torch.allclose(found.raw[0], total / count, atol=1e-5)
    assert found.report["windows"] == found.report["forwards"] == 16


def test_defaults_and_fractions() -> None:
    """An eighth of a plane, a sixth of a volume, half a window as stride; shares of the axis."""
    plane, volume = torch.rand(1, 1, 32, 48), torch.rand(1, 1, 12, 24, 36)
    for x, options, size, step in (
        (plane, {}, (4, 6), (2, 3)),
        (volume, {}, (2, 4, 6), (1, 2, 3)),
        (volume, {"window": 0.25, "stride": [3, 0.125, 0.25]}, (3, 6, 9), (3, 3, 9)),
        (volume, {"window": 1.0}, (12, 24, 36), (6, 12, 18)),
    ):
        found = explain(Linear(torch.ones(x.shape[1:])), x, methods=["occlusion"], options={"occlusion": options})[0]
        assert (found.report["window"], found.report["stride"]) == (size, step)


def test_coarse_to_fine_follows_one_lesion() -> None:
    """A single bright spot is found at a fifth of the forwards, each sample its own."""
    weight = torch.rand(1, 16, 24, 32) * 0.01
    x = torch.full((2, 1, 16, 24, 32), 0.1)
    x[0, 0, 3:6, 5:10, 20:26] = 30
    x[1, 0, 10:13, 13:18, 3:9] = 30
    network = Linear(weight)
    exact = explain(network, x, methods=["occlusion"], classes=1, options={"occlusion": {"window": [2, 4, 4]}})[0]
    network.seen = 0
    quick = explain(network, x, methods=["occlusion"], classes=1, options={"occlusion": {"mode": "coarse_to_fine"}},
                    chunk=16)[0]  # fmt: skip
    assert quick.report["window"] == exact.report["window"]
    assert network.seen - 2 <= 0.2 * 2 * exact.report["windows"]
    assert quick.report["forwards"] * 2 == network.seen - 2
    for a, b in zip(quick.raw, exact.raw, strict=True):
        assert torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1] > 0.99
    alone = explain(network, x[1:], methods=["occlusion"], classes=1, options={"occlusion": {"mode": "coarse_to_fine"}})
    assert torch.allclose(alone[0].raw[0], quick.raw[1], atol=1e-4)


def test_budget_never_pays_for_more_than_there_is() -> None:
    """Too few windows are all run; a generous budget stops where everything is known."""
    few = Windows((8, 8), (4, 4), (2, 2))
    assert plan(few, 0.2) is None
    windows = Windows((32, 32), (4, 4), (2, 2))
    truth = {windows.count: torch.rand(1, windows.count)}
    blocks, left = plan(windows, 1.0) or (windows, 0)
    truth[blocks.count] = torch.rand(1, blocks.count)
    found = estimate(windows, blocks, left, 1, lambda grid, index: truth[grid.count].gather(1, index))
    assert float((found == truth[windows.count]).float().mean()) > 0.7


def test_options_are_checked() -> None:
    """Each wrong value is refused in words."""
    for values in (
        {"window": 0},
        {"window": 1.5},
        {"stride": "half"},
        {"mode": "quick"},
        {"budget": 0.0},
        {"window": True},
    ):
        with pytest.raises(ExplainError, match="options of occlusion"):
            make_options("occlusion", values)
    x, network = torch.rand(1, 1, 8, 8), Linear(torch.ones(1, 8, 8))
    for values, words in (({"window": 2, "stride": 3}, "larger than window"), ({"window": [2, 2, 2]}, "2 axes")):
        with pytest.raises(ExplainError, match=words):
            explain(network, x, methods=["occlusion"], options={"occlusion": values})
