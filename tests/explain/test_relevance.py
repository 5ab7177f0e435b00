"""Layer-wise relevance propagation: conservation, closed forms, folding, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from torch import nn

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.relevance_rules import COMPOSITES, epsilon, stabilised
from tests.explain.nets import CONV, fingerprint


def chain(dims: int, *, bias: bool, norm: bool = False) -> nn.Sequential:
    """Convolutions with pooling of both kinds and two linear layers."""
    torch.manual_seed(dims)
    conv, batch = CONV[dims], {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    pools = {2: (nn.MaxPool2d(2), nn.AvgPool2d(2)), 3: (nn.MaxPool3d(2), nn.AvgPool3d(2))}[dims]
    layers: list[nn.Module] = [conv(1, 4, 3, padding=1, bias=bias)]
    layers += [batch(4)] if norm else []
    layers += [nn.ReLU(inplace=True), pools[0], conv(4, 5, 3, padding=1, bias=bias)]
    layers += [batch(5)] if norm else []
    layers += [nn.ReLU(), pools[1], nn.Flatten(), nn.LazyLinear(6, bias=bias), nn.ReLU(), nn.Linear(6, 3, bias=bias)]
    network = nn.Sequential(*layers)
    network(torch.zeros(1, 1, *SHAPES[dims][2:]))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network.eval()


SHAPES = {2: (2, 1, 8, 12), 3: (2, 1, 8, 4, 12)}


def lrp(network: nn.Module, x: torch.Tensor, composite: str, **keys: float):
    return explain(network, x, methods="lrp", classes=1, options={"lrp": {"composite": composite, **keys}})[0]


@pytest.mark.parametrize("dims", [2, 3])
def test_without_biases_the_proportional_rule_is_input_times_gradient(dims: int) -> None:
    network, x = chain(dims, bias=False), torch.randn(SHAPES[dims])
    result = lrp(network, x, "epsilon", eps=1e-9)
    reference = explain(network, x, methods="inputxgradient", classes=1)[0].raw
    assert torch.allclose(result.raw, reference, rtol=1e-3, atol=1e-5 * float(reference.abs().max()))
    assert torch.allclose(result.report["conservation"], torch.ones(2), atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("composite", [name for name in COMPOSITES if name != "alpha2beta1"])
def test_without_biases_relevance_is_conserved(composite: str, dims: int) -> None:
    """Every rule hands on what it receives, where anything of its sign is there to receive it."""
    network = chain(dims, bias=False)
    with torch.no_grad():  # contributions of either sign reach every neuron
        network[-1].weight.abs_()
    x = torch.randn(SHAPES[dims])
    result = lrp(network, x, composite)
    wide = "alpha2" in composite  # a neuron without negative contributions gives away twice what it has
    assert torch.allclose(result.report["conservation"], torch.ones(2), atol=0.35 if wide else 2e-3), composite
    before = fingerprint(network)
    lrp(network, x, composite)
    assert fingerprint(network) == before


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus_flat", "epsilon_gamma_box", "alpha2beta1"])
def test_batch_normalisation_is_folded(composite: str, dims: int) -> None:
    """The same map as of a network whose convolutions have taken it in."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    network, x = chain(dims, bias=True, norm=True), torch.randn(SHAPES[dims])
    modules = list(network)
    folded = nn.Sequential(
        fuse_conv_bn_eval(modules[0], modules[1]),
        *modules[2:4],
        fuse_conv_bn_eval(modules[4], modules[5]),
        *modules[6:],
    )
    assert torch.allclose(network(x), folded(x), atol=1e-5)
    one, two = lrp(network, x, composite), lrp(folded, x, composite)
    assert torch.allclose(one.raw, two.raw, rtol=1e-2, atol=1e-4 * float(two.raw.abs().max()))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nets.DenseNet(2, 1, 3, 8, 4, (2, 2)), (2, 1, 32, 40)),
        (nets.DenseNet(3, 1, 3, 8, 4, (2, 2)), (2, 1, 16, 24, 20)),
        (nets.resnet10(spatial_dims=2, n_input_channels=1, num_classes=3), (2, 1, 32, 40)),
        (nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=3), (1, 1, 16, 24, 20)),
        (
            nets.ResNet("bottleneck", [1, 1, 1, 1], [4, 8, 8, 8], spatial_dims=3, n_input_channels=1, num_classes=3),
            (1, 1, 16, 24, 20),
        ),
    ],
)
def test_networks_of_monai_conserve_without_biases(network: nn.Module, shape: tuple[int, ...]) -> None:
    """Skips, concatenations and normalisation before the convolution; the biases set to zero."""
    network.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_var.uniform_(0.5, 2)
    x = torch.randn(shape)
    result = lrp(network, x, "epsilon", eps=1e-9)
    assert torch.allclose(result.report["conservation"], torch.ones(len(x)), atol=1e-2)
    plain = explain(network, x, methods="inputxgradient", classes=1)[0].raw
    assert torch.allclose(result.raw, plain, rtol=1e-2, atol=1e-3 * float(plain.abs().max()))
    other = lrp(network, x, "epsilon_plus_flat")
    assert torch.isfinite(other.raw).all()


def test_what_biases_absorb_is_reported() -> None:
    network, x = chain(2, bias=True), torch.randn(SHAPES[2])
    result = lrp(network, x, "epsilon")
    share = result.raw.flatten(1).sum(1) / result.score
    assert torch.allclose(result.report["conservation"], share, rtol=1e-4)
    assert ((share - 1).abs() > 1e-3).any()


def test_the_proportional_rule_by_hand() -> None:
    weight, bias = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([0.25])
    x, relevance = torch.tensor([[2.0, 0.5, -1.0]]), torch.tensor([[3.0]])
    ours = epsilon(nn.functional.linear, x, weight, bias, relevance, eps=1e-6)
    z = 2 - 1 - 0.5 + 0.25
    assert torch.allclose(ours, torch.tensor([[2.0, -1.0, -0.5]]) / z * 3, rtol=1e-4)
    assert stabilised(torch.tensor([0.0, -0.0, -1.0]), 0.1).tolist() == pytest.approx([0.1, 0.1, -1.1])


def test_gates_and_own_activations() -> None:
    """Squeeze and excitation and autograd functions of MONAI run; what comes out is finite."""
    for network in (
        nets.SEResNet50(spatial_dims=2, in_channels=1, num_classes=3),
        nets.EfficientNetBN("efficientnet-b0", False, spatial_dims=2, in_channels=1, num_classes=3),
    ):
        before = fingerprint(network)
        assert torch.isfinite(lrp(network, torch.randn(1, 1, 64, 64), "epsilon_plus_flat").raw).all()
        assert fingerprint(network) == before


def test_functions_without_a_rule_are_refused_by_name() -> None:
    vit = nets.ViT(
        1,
        (16, 24),
        (8, 8),
        hidden_size=12,
        mlp_dim=16,
        num_layers=1,
        num_heads=2,
        classification=True,
        num_classes=2,
        spatial_dims=2,
    )
    with pytest.raises(ExplainError, match=r"no rule for .*attnlrp"):
        lrp(vit, torch.randn(1, 1, 16, 24), "epsilon")

    class Odd(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(super().forward(x), 1)

    with pytest.raises(ExplainError, match="no rule for cumsum"):
        lrp(Odd(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(1, 1, 8, 8), "epsilon")
    with pytest.raises(ExplainError, match="composite is one of"):
        lrp(chain(2, bias=True), torch.randn(SHAPES[2]), "deepest")


def test_a_soft_maximum_shares_by_its_weights() -> None:
    class Soft(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).flatten(2).logsumexp(-1)

    torch.manual_seed(0)
    network = Soft(nn.Conv2d(1, 2, 1, bias=False))
    x = torch.randn(1, 1, 4, 5)
    score = network(x)[0, 1]
    share = network[0](x)[0, 1].flatten().softmax(0).view(4, 5)
    assert torch.allclose(lrp(network, x, "epsilon", eps=1e-9).raw[0], share * score, rtol=1e-3, atol=1e-6)
