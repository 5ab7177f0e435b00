"""Guided backpropagation and FullGrad."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from torch import nn

from medxai.errors import ExplainError
from medxai.explain import explain
from tests.explain.nets import Pooled


def lively(network: nn.Module) -> nn.Module:
    """Give every normalisation statistics and shifts of its own: a fresh one adds nothing."""
    torch.manual_seed(4)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if (
            isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm)
            and module.bias is not None
        ):
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def test_guided_backpropagation_rule() -> None:
    """Negative signals stop at every ReLU: two of them by hand."""
    network = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(1, 2, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 2, bias=False),
    )
    with torch.no_grad():
        network[0].weight.fill_(2.0)
        network[2].weight.copy_(torch.tensor([1.0, -3.0]).view(2, 1, 1, 1))
        network[6].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, -1.0]]))
    x = torch.tensor([[1.0, -1.0], [2.0, -3.0]])[None, None]
    raw = explain(network, x, methods="guided_backprop", classes=0)[0].raw
    assert torch.allclose(raw[0], torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    assert (explain(network, x, methods="guided_backprop", classes=1)[0].raw == 0).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_guided_gradcam_is_the_product(dims: int) -> None:
    network = Pooled(dims)
    x = torch.randn(2, 1, *(8, 12, 10)[-dims:])
    maps = explain(network, x, methods=("guided_gradcam", "guided_backprop", "gradcam"), classes=1, layers="act")
    expected = maps.get("guided_backprop").raw * maps.get("gradcam").map
    assert torch.allclose(maps.get("guided_gradcam").raw, expected, atol=1e-9)


def test_guided_backpropagation_refuses_other_activations() -> None:
    network = nets.EfficientNetBN("efficientnet-b0", False, spatial_dims=2, in_channels=1, num_classes=2)
    for other in (network, nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU())):
        with pytest.raises(ExplainError, match="is defined for ReLU"):
            explain(other, torch.randn(1, 1, 32, 32), methods="guided_backprop")


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nets.DenseNet(3, 1, 3, 8, 4, (2, 2)), (2, 1, 16, 24, 20)),
        (nets.resnet18(spatial_dims=2, n_input_channels=1, num_classes=3), (2, 1, 32, 48)),
        (
            nets.ResNet("bottleneck", [1, 1, 1, 1], [4, 8, 8, 8], spatial_dims=3, n_input_channels=1, num_classes=3),
            (1, 1, 16, 24, 20),
        ),
        (nets.DenseNet(2, 1, 3, 8, 4, (2, 2), norm=("group", {"num_groups": 2})), (2, 1, 32, 40)),
        (nets.DenseNet(2, 1, 3, 8, 4, (2, 2), norm="instance"), (2, 1, 32, 40)),
    ],
)
def test_fullgrad_is_complete(network: nn.Module, shape: tuple[int, ...]) -> None:
    lively(network)
    x = torch.randn(shape)
    result = explain(network, x, methods="fullgrad", classes=1, options={"fullgrad": {"psi": "none"}})[0]
    assert (result.report["completeness_residual"] < 1e-3).all()
    assert all("unstable" not in flags for flags in result.flags)
    # The signed terms, enlarged, sum to the score less the linear bias, up to what enlarging adds.
    plain = explain(network, x, methods=("fullgrad", "inputxgradient"), classes=1)
    assert plain[0].raw.min() >= 0
    assert plain[0].raw.max() > plain[1].raw.abs().max()
    assert not torch.allclose(result.raw, plain[1].raw)


def test_simple_fullgrad_keeps_the_sum() -> None:
    """Without resizing, all terms on the input's grid: their sum is the score less the bias of the linear layer."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    lively(network)
    result = explain(
        network, torch.randn(2, 1, 9, 11), methods="fullgrad", classes=1, options={"fullgrad": {"psi": "none"}}
    )[0]
    assert torch.allclose(
        result.raw.flatten(1).sum(1), result.score - network[7].bias[1].detach(), rtol=1e-3, atol=1e-5
    )


def test_fullgrad_says_when_it_is_not_complete() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    result = explain(network, 3 * torch.randn(1, 1, 9, 11), methods="fullgrad", classes=1)[0]
    assert result.report["completeness_residual"][0] > 1e-3
    assert "unstable" in result.flags[0]
