"""Occlusion against closed forms."""

from __future__ import annotations

import pytest
import torch

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.coarse_to_fine import estimate
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


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


def test_coarse_to_fine_follows_one_lesion() -> None:
    """A single bright spot needs less than half of the forwards, each sample its own."""
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
    assert int(quick.report["forwards"].sum()) == network.seen - 2 < 0.5 * 2 * exact.report["windows"]
    for a, b in zip(quick.raw, exact.raw, strict=True):
        assert _correlation(a, b) > 0.99
    alone = explain(network, x[1:], methods=["occlusion"], classes=1, options={"occlusion": {"mode": "coarse_to_fine"}})
    assert torch.allclose(alone[0].raw[0], quick.raw[1], atol=1e-4)


@pytest.mark.parametrize("grid", [(17, 23), (7, 9, 11)])
@pytest.mark.parametrize("blur", [0, 2, 6])
def test_the_map_is_as_good_as_asked(grid: tuple[int, ...], blur: int) -> None:
    """Noise without any order needs nearly all windows, smooth evidence few; the accuracy holds for both."""
    windows = Windows(tuple(2 * g + 2 for g in grid), (4,) * len(grid), (2,) * len(grid))
    assert windows.grid == grid
    mean = torch.nn.AvgPool2d(3, 1, 1) if len(grid) == 2 else torch.nn.AvgPool3d(3, 1, 1)
    shares = []
    for seed in range(8):
        truth = torch.randn(1, 1, *grid, generator=torch.Generator().manual_seed(seed))
        for _ in range(blur):
            truth = mean(truth)
        effects = truth.flatten()
        found, count, expected = estimate(windows, 0.99, 1.0, lambda index, effects=effects: effects[index])
        assert expected >= 0.99
        assert int((found == effects).sum()) >= count
        assert _correlation(windows.average(found[None]), windows.average(effects[None])) > 0.99
        shares.append(count / windows.count)
    assert sum(shares) / len(shares) < {0: 1.01, 2: 0.95, 6: 0.7}[blur]
    assert blur or min(shares) > 0.8


def test_no_more_windows_than_the_budget_pays_for() -> None:
    """It stops there and says how good the map is then; too few windows are all run."""
    windows = Windows((32, 32), (4, 4), (2, 2))
    effects = torch.randn(windows.count)
    for budget in (0.05, 0.5, 1.0):
        seen: list[int] = []

        def ask(index: torch.Tensor, seen: list[int] = seen) -> torch.Tensor:
            seen.extend(index.tolist())
            return effects[index]

        _, count, expected = estimate(windows, 0.9999, budget, ask)
        assert len(seen) == len(set(seen)) == count <= budget * windows.count
        assert (expected == 1.0) == (budget == 1.0)
    x, network = torch.rand(1, 1, 8, 8), Linear(torch.rand(1, 8, 8))
    for mode in ("exact", "coarse_to_fine"):
        options = {"occlusion": {"mode": mode, "window": 4}}
        assert explain(network, x, methods=["occlusion"], options=options)[0].report["forwards"] == 9


def test_options_are_checked() -> None:
    """Each wrong value is refused in words."""
    for values in (
        {"window": 0},
        {"window": 1.5},
        {"stride": "half"},
        {"mode": "quick"},
        {"budget": 0.0},
        {"accuracy": 1.5},
        {"window": True},
    ):
        with pytest.raises(ExplainError, match="options of occlusion"):
            make_options("occlusion", values)
    x, network = torch.rand(1, 1, 8, 8), Linear(torch.ones(1, 8, 8))
    for values, words in (({"window": 2, "stride": 3}, "larger than window"), ({"window": [2, 2, 2]}, "2 axes")):
        with pytest.raises(ExplainError, match=words):
            explain(network, x, methods=["occlusion"], options={"occlusion": values})
