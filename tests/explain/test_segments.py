"""LIME and KernelSHAP on networks that add up what segments show."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.methods.kernelshap import draw_coalitions
from medxai.explain.methods.lime import proximity, weighted_ridge
from medxai.explain.registry import make_options
from medxai.explain.supervoxels import blocks, supervoxels
from tests.explain.perturbed import Constant, Linear

BLOCKS = {"kind": "blocks", "segments": 12}


def block_image(shape: tuple[int, ...]) -> tuple[Linear, Tensor, Tensor, Tensor]:
    """A linear network, a batch, the blocks and what each contributes ``[B, d]``."""
    torch.manual_seed(0)
    network, x = Linear(torch.randn(shape[1:]), bias=0.4), torch.rand(shape)
    labels = blocks(shape[2:], 12, [1.0] * (len(shape) - 2))
    share = (network.weight * x).sum(1).flatten(1).detach()
    total = torch.zeros(len(x), int(labels.max()) + 1).index_add_(1, labels.flatten(), share)
    return network, x, labels, total


@pytest.mark.parametrize("shape", [(2, 1, 12, 16), (2, 2, 6, 8, 9)])
def test_additive_network(shape: tuple[int, ...]) -> None:
    """LIME finds the ranking of segments, KernelSHAP their very contributions."""
    network, x, labels, total = block_image(shape)
    options = {name: {**BLOCKS, "samples": 200} for name in ("kernelshap", "lime")}
    shap, lime = explain(network, x, methods=["kernelshap", "lime"], classes=1, options=options)
    for row in range(2):
        assert torch.allclose(shap.raw[row], total[row][labels], atol=1e-3)
        found = torch.stack([lime.raw[row][labels == k][0] for k in range(total.shape[1])])
        assert torch.equal(found.argsort(), total[row].argsort())
    assert (shap.report["completeness_residual"].abs() < 1e-4).all()
    assert (shap.report["r_squared"] > 0.99).all()
    assert (lime.report["r_squared"] > 0.9).all()
    assert not any("unstable" in flags for item in (shap, lime) for flags in item.flags)


class Product(nn.Module):
    """The product of the mean brightness of the left, middle and right third."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 2]``."""
        thirds = torch.stack([part.flatten(1).mean(1) for part in x.chunk(3, -1)], 1)
        y = thirds[:, 0] * thirds[:, 1] + 2 * thirds[:, 1] * thirds[:, 2] + thirds[:, 0]
        return torch.stack((torch.zeros_like(y), y), 1)


def test_exact_shapley_values_of_interactions() -> None:
    """All coalitions of three segments: the mean contribution over all orders."""
    x = torch.rand(1, 1, 4, 12) + 0.5
    found = explain(
        Product(), x, methods=["kernelshap"], classes=1, options={"kernelshap": {"kind": "blocks", "segments": 3}}
    )[0]
    columns = [slice(0, 4), slice(4, 8), slice(8, 12)]

    def value(kept: set[int]) -> float:
        image = torch.zeros_like(x)
        for k in kept:
            image[..., columns[k]] = x[..., columns[k]]
        return float(Product()(image)[0, 1])

    shapley = [0.0] * 3
    for order in permutations(range(3)):
        for place, k in enumerate(order):
            shapley[k] += (value(set(order[: place + 1])) - value(set(order[:place]))) / 6
    assert [float(found.raw[0, 0, c][0]) for c in columns] == pytest.approx(shapley, abs=1e-5)


@pytest.mark.parametrize("samples", [64, 0])
def test_values_add_up(samples: int) -> None:
    """Whatever the network, KernelSHAP's values add up to the score less that of the masked-out image."""

    class Bent(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 3

    torch.manual_seed(0)
    network, x = Bent(torch.rand(1, 12, 16), 0.2), torch.rand(2, 1, 12, 16)
    found = explain(network, x, methods=["kernelshap"], classes=1, masking="mean",
                    options={"kernelshap": {"segments": 14, "samples": samples}})[0]  # fmt: skip
    base = x.flatten(1).mean(1).view(-1, 1, 1, 1).expand_as(x)
    missing = network(x)[:, 1] - network(base)[:, 1]
    labels = [supervoxels(image, 14, (1.0, 1.0)) for image in x]
    for row in range(2):
        values = [float(found.raw[row][labels[row] == k][0]) for k in range(int(labels[row].max()) + 1)]
        assert sum(values) == pytest.approx(float(missing[row]), rel=1e-4)


def test_a_duplicate_shares_the_weight() -> None:
    """Two copies of a segment get half each."""
    torch.manual_seed(0)
    z = (torch.rand(400, 4) > 0.5).double()
    z = torch.cat((z, z[:, :1]), 1)
    y = 3 * z[:, 0] - z[:, 1] + 0.5 * z[:, 2]
    slope, _ = weighted_ridge(z, y, proximity(z, 0.25), 1.0)
    assert float(slope[0] - slope[4]) == pytest.approx(0, abs=1e-9)
    assert float(slope[0] + slope[4]) == pytest.approx(3, rel=0.1)


def test_coalitions() -> None:
    """All of them with the kernel's weights when they fit, else in complementary pairs, never empty or whole."""
    kept, weights = draw_coalitions(4, 100, torch.Generator())
    assert len(kept) == 14
    assert float(weights[kept.sum(1) == 1][0]) == pytest.approx(3 / (4 * 1 * 3))
    assert float(weights[kept.sum(1) == 2][0]) == pytest.approx(3 / (6 * 2 * 2))
    kept, _ = draw_coalitions(30, 101, torch.Generator().manual_seed(0))
    assert len(kept) == 102
    assert torch.equal(kept[::2], ~kept[1::2])
    assert kept.sum(1).min() >= 1
    assert kept.sum(1).max() <= 29


def test_a_poor_fit_is_flagged() -> None:
    """Parity of segments cannot be fitted by a sum."""

    class Parity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = (nn.functional.avg_pool2d(x, 4) > 0.5).flatten(1).sum(1)
            y = (bright % 2).float()
            return torch.stack((1 - y, y), 1)

    x = torch.ones(1, 1, 12, 16)
    found = explain(Parity(), x, methods=["lime"], classes=1, options={"lime": BLOCKS})[0]
    assert found.report["r_squared"][0] < 0.3
    assert "unstable" in found.flags[0]
    assert "linear fit" in found.report["unstable_reason"]


def test_constant_network() -> None:
    """No segment matters, and the fit is not to blame."""
    for method in ("lime", "kernelshap"):
        found = explain(Constant(2), torch.rand(1, 1, 12, 16), methods=[method], classes=1,
                        options={method: {"segments": 6, "samples": 50}})[0]  # fmt: skip
        assert found.raw.abs().max() < 1e-5
        assert found.flags[0] == frozenset({"empty"}) or found.raw.max() > 0
        assert found.report["r_squared"][0] == 1


@pytest.mark.parametrize("shape", [(30, 40), (10, 16, 20)])
def test_supervoxels(shape: tuple[int, ...]) -> None:
    """About as many as asked, without gaps in their numbers, keeping to the edge between bright and dark."""
    image = torch.zeros(1, *shape)
    image[..., shape[-1] // 3 :] = 1
    image += 0.01 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    labels = supervoxels(image, 40, [1.0] * len(shape))
    count = int(labels.max()) + 1
    assert 25 <= count <= 55
    assert len(labels.unique()) == count
    bright = torch.zeros(count).index_add_(0, labels.flatten(), image.flatten().clamp(0, 1))
    share = bright / torch.bincount(labels.flatten())
    assert ((share < 0.1) | (share > 0.9)).float().mean() > 0.9
    assert torch.equal(labels, supervoxels(image, 40, [1.0] * len(shape)))
    assert (supervoxels(torch.zeros(1, *shape), 12, [1.0] * len(shape)) >= 0).all()


def test_supervoxels_are_even_in_mm() -> None:
    """Thick slices: fewer segments through the slices than in them."""
    labels = blocks((8, 32, 32), 64, (4.0, 1.0, 1.0))
    assert [len(labels[:, 0, 0].unique()), len(labels[0, :, 0].unique()), len(labels[0, 0].unique())] == [4, 4, 4]


def test_options_are_checked() -> None:
    """Each wrong value is refused in words."""
    for method, values in (
        ("lime", {"segments": 1}), ("lime", {"samples": -1}), ("lime", {"kind": "quickshift"}),
        ("lime", {"width": 0.0}),
        ("lime", {"ridge": -1.0}), ("kernelshap", {"compactness": 0.0}), ("kernelshap", {"score": "odds"}),
        ("kernelshap", {"masking": "nothing"}),
    ):  # fmt: skip
        with pytest.raises(ExplainError, match=f"options of {method}"):
            make_options(method, values)
