from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import DenseNet, EfficientNetBN, SEResNet50, UNet, resnet10
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.calls import capture
from medxai.explain.replay import ReplayPlan, plan_replay, replaying


class FunctionalSkip(nn.Module):
    """A skip by plain addition round the target, an activation that runs twice, and the input used at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        early = self.act(self.a(x))
        y = self.b(early)
        y = self.act(y + early.tanh())
        y = y + F.avg_pool2d(x, 3, 1, 1)
        return self.head(y.mean((2, 3)))


class WritesBefore(nn.Module):
    """Writes into a prefix output that nothing after the target reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += 1
        y = self.b(y)
        y *= 2
        return self.head(y.mean((2, 3)))


class Pair(nn.Module):
    """A child that returns a tuple is opened up."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = _Twin()
        self.b = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.twin(x)
        y = self.b(torch.cat([left, right], 1))
        return self.head((y * right).mean((2, 3)))


class _Twin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(x)


class Forgets(nn.Module):
    """Uses what an in-place layer left in its input, which no stored output shows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.act(y)
        return (self.b(y) + y).mean((2, 3))


def densenet(dims: int) -> DenseNet:
    return DenseNet(dims, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2, 2))


class UNetLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(2, 1, 4, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean((2, 3))


IMAGE, VOLUME = (1, 48, 48), (1, 32, 32, 32)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "densenet2d": (lambda: densenet(2), IMAGE, "features.denseblock2"),
    "densenet2d-mid": (lambda: densenet(2), IMAGE, "features.denseblock2.denselayer2.layers.conv1"),
    "densenet3d": (lambda: densenet(3), VOLUME, "features.denseblock3"),
    "densenet3d-end": (lambda: densenet(3), VOLUME, "class_layers.relu"),
    "resnet3d": (lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=3), VOLUME, "layer3.0.conv2"),
    "resnet3d-act": (lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=3), VOLUME, "layer2.0.act#1"),
    "resnet3d-layer": (lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=3), VOLUME, "layer3"),
    "efficientnet": (
        lambda: EfficientNetBN("efficientnet-b0", pretrained=False, in_channels=1, num_classes=3),
        IMAGE,
        "_blocks.3.7._project_conv",
    ),
    "seresnet": (lambda: SEResNet50(spatial_dims=2, in_channels=1, num_classes=3), IMAGE, "layer3.2.conv2"),
    "unet-deep": (UNetLogits, IMAGE, "net.model.1.submodule.1.submodule.conv.unit0"),
    "skip": (FunctionalSkip, IMAGE, "b"),
    "skip-second-call": (FunctionalSkip, IMAGE, "act#1"),
    "in-place": (WritesBefore, IMAGE, "b"),
    "tuple": (Pair, IMAGE, "b"),
}


def full(network: nn.Module, x: Tensor, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, activation and gradient of a whole run with its graph."""
    name, _, number = layer.partition("#")
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        seen.append(output.clone())
        return seen[-1].clone()

    handle = dict(network.named_modules())[name].register_forward_hook(keep)
    logits = network(x)
    handle.remove()
    activation = seen[int(number or 0)]
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), activation)
    return logits.detach(), activation.detach(), gradient


def replay(network: nn.Module, x: Tensor, plan: ReplayPlan, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    leaf = values[plan.layer].detach().requires_grad_()
    with replaying(network, plan, {**values, plan.layer: leaf}):
        logits = network(x)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), leaf)
    return logits.detach(), gradient


def scaled(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradient_are_those_of_the_full_run(case: str) -> None:
    build, shape, layer = CASES[case]
    torch.manual_seed(1)
    network = build().eval()
    x = torch.randn(1, *shape)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plan = plan_replay(network, x, layer)
    other = torch.randn(2, *shape)
    with torch.no_grad():
        values, _ = capture(network, other, plan.values)
    logits, activation, gradient = full(network, other, layer)
    got, slope = replay(network, other, plan, values)
    assert torch.equal(values[layer], activation)
    assert scaled(got, logits) < 1e-6
    assert scaled(slope, gradient) < 1e-5
    assert ReplayPlan.from_json(plan.to_json()) == plan
    assert all("forward" not in module.__dict__ for module in network.modules())
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_what_is_needed() -> None:
    def needed(case: str) -> tuple[str, ...]:
        build, shape, layer = CASES[case]
        return plan_replay(build().eval(), torch.randn(1, *shape), layer).needed

    assert needed("densenet3d") == ()
    assert needed("resnet3d-layer") == ()
    assert needed("resnet3d") == ("layer2#0",)
    assert needed("skip") == ("act#0",)
    assert needed("tuple") == ("twin.right#0",)
    assert len(needed("unet-deep")) == 3  # two skips and the residual arm
    assert len(needed("densenet2d-mid")) == 1


def test_dummies_take_no_memory_unless_the_network_writes_into_them() -> None:
    x = torch.randn(1, *IMAGE)
    assert not plan_replay(densenet(2).eval(), x, "features.denseblock2").dense
    assert plan_replay(WritesBefore().eval(), x, "b").dense


def test_needed_values_of_one_sample_serve_a_batch() -> None:
    build, shape, layer = CASES["resnet3d"]
    network = build().eval()
    x = torch.randn(1, *shape)
    plan = plan_replay(network, x, layer)
    with torch.no_grad():
        values, _ = capture(network, x, plan.values)
        kept = {key: value.clone() for key, value in values.items()}
        masked = torch.cat([values[layer], values[layer] * 0.5, torch.zeros_like(values[layer])])
        with replaying(network, plan, {**values, layer: masked}):
            batch = network(x.expand(3, *shape))
            again = network(x.expand(3, *shape))
        for row in range(3):
            with replaying(network, plan, {**values, layer: masked[row : row + 1]}):
                single = network(x)
            torch.testing.assert_close(batch[row : row + 1], single, rtol=1e-5, atol=1e-6)
    assert torch.equal(batch, again)
    assert all(torch.equal(kept[key], values[key]) for key in kept)


def test_the_prefix_does_not_run() -> None:
    network = densenet(2).eval()
    x = torch.randn(1, *IMAGE)
    plan = plan_replay(network, x, "features.denseblock2")
    with torch.no_grad():
        values, _ = capture(network, x, plan.values)
    ran: list[str] = []
    for name in ("features.denseblock1.denselayer1.layers.conv1", "features.denseblock3.denselayer1.layers.conv1"):
        network.get_submodule(name).register_forward_hook(lambda *_args, name=name: ran.append(name))
    with replaying(network, plan, values):
        network(x)
    assert ran == ["features.denseblock3.denselayer1.layers.conv1"]


def test_inference_tensors_as_values_and_training_mode() -> None:
    network = densenet(2).train()
    x = torch.randn(1, *IMAGE)
    plan = plan_replay(network, x, "features.denseblock2")
    network.eval()
    with torch.inference_mode():
        values, logits = capture(network, x, plan.values)
    network.train()
    leaf = values[plan.layer].clone().requires_grad_()
    with replaying(network, plan, {plan.layer: leaf}):
        got = network(x)
    assert scaled(got.detach(), logits.clone()) < 1e-6
    assert all(module.training for module in network.modules())
    (gradient,) = torch.autograd.grad(got[:, 0].sum(), leaf)
    assert gradient.abs().sum() > 0


def test_restored_after_an_exception() -> None:
    network = FunctionalSkip().eval()
    own = network.a.forward
    network.a.forward = own  # an instance attribute, as patched networks have
    x = torch.randn(1, *IMAGE)
    plan = plan_replay(network, x, "b")
    with torch.no_grad():
        values, before = capture(network, x, plan.values)
    with pytest.raises(ZeroDivisionError), replaying(network, plan, values):
        raise ZeroDivisionError
    assert network.a.__dict__["forward"] is own
    assert "forward" not in network.b.__dict__
    assert not network._forward_pre_hooks
    assert torch.equal(network(x), before)


def test_refusals() -> None:
    x = torch.randn(1, *IMAGE)
    network = densenet(2).eval()
    with pytest.raises(ExplainError, match=r"no layer .features\.denseblok2.; nearest names: features\.denseblock2"):
        plan_replay(network, x, "features.denseblok2")
    with pytest.raises(ExplainError, match="ran 1 time"):
        plan_replay(network, x, "features.denseblock2#1")
    with pytest.raises(ExplainError, match="no spatial feature map"):
        plan_replay(network, x, "class_layers.out")
    with pytest.raises(ExplainError, match="another result"):
        plan_replay(Forgets().eval(), x, "b")
    plan = plan_replay(network, x, "features.denseblock2")
    with pytest.raises(ExplainError, match="needs the value of"), replaying(network, plan, {}):
        pass
    with pytest.raises(ExplainError, match="the replay needs"), replaying(network, plan, {plan.layer: x}):
        pass
    with pytest.raises(ExplainError, match="no layer"), replaying(FunctionalSkip(), plan, {plan.layer: x}):
        pass


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    blocks=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    place=st.floats(0, 0.999),
)
def test_any_spatial_layer_of_any_densenet(seed: int, blocks: list[int], place: float) -> None:
    torch.manual_seed(seed)
    network = DenseNet(2, 1, 2, init_features=4, growth_rate=2, block_config=tuple(blocks)).eval()
    x = torch.randn(1, 1, 32, 32)
    names = [name for name, module in network.named_modules() if name.startswith("features.")]
    layer = names[int(place * len(names))]
    plan = plan_replay(network, x, layer)
    with torch.no_grad():
        values, _ = capture(network, x, plan.values)
    logits, _, gradient = full(network, x, layer)
    got, slope = replay(network, x, plan, values)
    assert scaled(got, logits) < 1e-6
    assert scaled(slope, gradient) < 1e-5
