"""The split at the target layer: same gradients as the whole graph, and the network untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks import nets
from torch import nn

from medxai.errors import ExplainError
from medxai.explain.engine import explain
from medxai.explain.fuse import enlarge, fuse_windows
from medxai.explain.split import forward_split
from medxai.explain.target import class_score
from medxai.explain.target_layer import find_target_layer


class Head(nn.Module):
    """Convolutions, global average pooling, linear: every closed form is known."""

    def __init__(self, dims: int = 3, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(dims)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.body = nn.Sequential(conv(1, 6, 3, stride=2, padding=1), nn.ReLU(inplace=True), conv(6, 5, 3, padding=1))
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(5, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, classes]``."""
        return self.fc(self.act(self.body(x)).flatten(2).mean(-1))


def networks() -> list[tuple[str, nn.Module, tuple[int, ...], str]]:
    """Networks, input shapes with D != H != W and batch > 1, and the layer that must be found."""
    torch.manual_seed(0)
    return [
        ("head", Head(), (2, 1, 8, 12, 10), "act"),
        ("densenet3d", nets.DenseNet(3, 1, 3, 8, 4, (2, 2, 2)), (2, 1, 32, 40, 24), "class_layers.relu"),
        ("densenet2d", nets.DenseNet(2, 1, 3, 8, 4, (2, 2, 2)), (3, 1, 48, 64), "class_layers.relu"),
        ("resnet", nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=2), (1, 1, 32, 48, 40), "layer4"),
        ("efficientnet", nets.EfficientNetBN("efficientnet-b0", False, spatial_dims=2, in_channels=3, num_classes=3),
         (1, 3, 64, 96), "_swish#1"),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "network", "shape", "layer"), networks())
def test_gradient_equals_whole_graph(name: str, network: nn.Module, shape: tuple[int, ...], layer: str) -> None:
    """Logits and gradients are those of a plain forward and backward."""
    x = torch.randn(shape)
    assert find_target_layer(network, x[:1]) == layer
    captured = forward_split(network, x, layer)
    gradient = captured.gradients(class_score(captured.logits, 1), [layer])[layer]
    network.eval()
    stored: list[torch.Tensor] = []
    module_name, _, call = layer.partition("#")
    seen = [0]

    def keep(_m: nn.Module, _i: object, output: torch.Tensor) -> None:
        if seen[0] == int(call or 0):
            stored.append(output)
        seen[0] += 1

    handle = dict(network.named_modules())[module_name].register_forward_hook(keep)
    logits = network(x.clone().requires_grad_())
    handle.remove()
    (whole,) = torch.autograd.grad(logits[:, 1].sum(), stored[0])
    assert torch.equal(captured.logits, logits), name
    assert torch.allclose(gradient, whole, atol=1e-7)
    assert torch.equal(captured.activation(layer), stored[0].detach())


def test_network_is_left_as_it_was() -> None:
    """No hook, no gradient, same modes and flags, also after an error; the input is not changed."""
    network = nets.DenseNet(2, 1, 3, 8, 4, (2, 2))
    network.train()
    network.features.eval()
    for parameter in network.class_layers.parameters():
        parameter.requires_grad = False
    modes = {n: m.training for n, m in network.named_modules()}
    flags = {n: p.requires_grad for n, p in network.named_parameters()}
    state = {n: t.clone() for n, t in network.state_dict().items()}
    x = torch.randn(2, 1, 32, 48)
    copy = x.clone()
    explain(network, x, methods=("gradcam", "hirescam"))
    with pytest.raises(ExplainError):
        explain(network, x, classes=[17])
    with pytest.raises(ExplainError):
        explain(network, x * float("nan"), layers="class_layers.relu")
    assert {n: m.training for n, m in network.named_modules()} == modes
    assert {n: p.requires_grad for n, p in network.named_parameters()} == flags
    assert all(p.grad is None for p in network.parameters())
    assert all(not m._forward_hooks and not m._backward_hooks for m in network.modules())
    assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
    assert torch.equal(x, copy)
    assert not x.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dims", [2, 3])
def test_closed_forms_of_a_pooled_head(dims: int) -> None:
    """GAP and linear head: Grad-CAM equals CAM / P, HiRes-CAM sums to the logit minus its bias."""
    network = Head(dims).eval()
    shape = (2, 1, 8, 12, 10)[: dims + 2]
    x = torch.randn(shape)
    maps = explain(network, x, methods=("gradcam", "hirescam", "cam"), classes=2, layers="act")
    activation = forward_split(network, x, "act").activation("act")
    positions = activation.flatten(2).shape[-1]
    weights = network.fc.weight[2].detach()
    cam = torch.einsum("k,bk...->b...", weights, activation)
    assert torch.allclose(maps.get("cam").raw, cam, atol=1e-6)
    assert torch.allclose(maps.get("gradcam").raw, cam / positions, atol=1e-7)
    total = maps.get("hirescam").raw.flatten(1).sum(1)
    assert torch.allclose(total, maps.logits[:, 2] - network.fc.bias[2].detach(), atol=1e-5)
    mean = maps.get("cam").raw.flatten(1).mean(1)
    assert torch.allclose(mean, maps.logits[:, 2] - network.fc.bias[2].detach(), rtol=1e-4, atol=1e-5)


def test_batch_equals_single_calls() -> None:
    """Samples do not interact."""
    network = nets.DenseNet(3, 1, 3, 8, 4, (2, 2))
    x = torch.randn(3, 1, 16, 24, 20)
    together = explain(network, x, methods=("gradcam", "hirescam"), classes=[0, 2])
    for index in range(3):
        alone = explain(network, x[index : index + 1], methods=("gradcam", "hirescam"), classes=[0, 2])
        for whole, single in zip(together, alone, strict=True):
            assert torch.allclose(whole.raw[index], single.raw[0], rtol=1e-4, atol=1e-7)


def test_frozen_networks_and_inference_tensors() -> None:
    """Neither parameters nor inputs need gradients."""
    network = Head()
    for parameter in network.parameters():
        parameter.requires_grad = False
    with torch.inference_mode():
        x = torch.randn(1, 1, 8, 12, 10)
    maps = explain(network, x, layers="act")
    assert torch.isfinite(maps[0].raw).all()
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            again = explain(network, x.clone(), layers="act")
        assert torch.equal(again[0].raw, maps[0].raw)


def test_single_logit() -> None:
    """One logit stands for two classes with opposite maps."""
    network = Head(2, classes=1)
    x = torch.randn(2, 1, 12, 10)
    maps = explain(network, x, classes=[0, 1], layers="act")
    assert torch.allclose(maps.get("gradcam", 0).raw, -maps.get("gradcam", 1).raw)
    assert torch.equal(class_score(maps.logits, 0), -maps.logits[:, 0])


def test_autocast_gives_float32_maps() -> None:
    """Lower precision in the forward pass, full precision in the map."""
    maps = explain(Head(2), torch.randn(1, 1, 16, 24), layers="act", autocast=torch.bfloat16)
    assert maps[0].raw.dtype == torch.float32


def test_errors_say_what_to_do() -> None:
    """Unknown layers come with neighbours; outputs that are no logits are named."""
    network = Head(2)
    x = torch.randn(1, 1, 8, 8)
    with pytest.raises(ExplainError, match="nearest names: act"):
        explain(network, x, layers="actt")
    with pytest.raises(ExplainError, match="not often enough"):
        explain(network, x, layers="act#3")
    with pytest.raises(ExplainError, match="no spatial feature map"):
        explain(network, x, layers="fc")
    with pytest.raises(ExplainError, match="unknown explanation method"):
        explain(network, x, methods=("cam9",), layers="act")
    with pytest.raises(ExplainError, match="no layer of the network"):
        find_target_layer(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), x)


def test_enlarge_has_half_pixel_centres() -> None:
    """A hot cell peaks at its own centre, not shifted by half a cell."""
    raw = np.zeros((1, 6), np.float32).reshape(1, 6, 1, 1)
    raw[0, 2] = 1
    big = enlarge(raw, (96, 1, 1))[0, :, 0, 0]
    centre = (np.arange(96) * big).sum() / big.sum()
    assert centre == pytest.approx((2 + 0.5) * 16 - 0.5)


def test_fusing_one_window_is_enlarging() -> None:
    """With one window nothing is blended; with overlap a constant map stays constant."""
    raw = np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32)
    importance = np.random.default_rng(1).uniform(0.1, 1, (8, 9, 8)).astype(np.float32)
    one = fuse_windows(raw, np.zeros((1, 3), np.int64), np.ones(1, np.float32), (8, 9, 8), importance, (8, 9, 8))
    assert np.allclose(one, enlarge(raw, (8, 9, 8))[0], atol=1e-6)
    flat = np.full((3, 2, 3, 4), 0.7, np.float32)
    offsets = np.array([[0, 0, 0], [4, 0, 0], [8, 0, 0]])
    weights = np.full(3, 1 / 3, np.float32)
    assert np.allclose(fuse_windows(flat, offsets, weights, (8, 9, 8), importance, (16, 9, 8)), 0.7, atol=1e-5)


def test_fusing_in_slabs_is_the_weighted_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the slabs: ``sum_i w_i g_i R_i / sum_i g_i`` at every voxel, and zero where no window lies."""
    draws = np.random.default_rng(2)
    raw = draws.normal(size=(5, 2, 3, 4)).astype(np.float32)
    size, shape = (6, 7, 8), (13, 12, 11)
    offsets = np.stack([draws.integers(0, s - w, 5) for s, w in zip(shape, size, strict=True)], 1)
    weights = draws.dirichlet(np.ones(5)).astype(np.float32)
    importance = draws.uniform(0.1, 1, size).astype(np.float32)
    total, norm = np.zeros(shape), np.zeros(shape)
    for i, offset in enumerate(offsets):
        where = tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))
        total[where] += 5 * weights[i] * importance * enlarge(raw[i : i + 1], size)[0]
        norm[where] += importance
    assert (norm == 0).any()
    expected = np.divide(total, norm, out=np.zeros(shape), where=norm > 0)
    for slab in (1, 300, 1 << 20):
        monkeypatch.setattr("medxai.explain.fuse._SLAB", slab)
        assert np.allclose(fuse_windows(raw, offsets, weights, size, importance, shape), expected, atol=1e-5)
