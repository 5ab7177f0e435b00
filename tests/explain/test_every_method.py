"""What every method must do, whatever it computes; a new method file is tested here without being named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import nn

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.registry import get_method, make_options, method_names
from tests.explain.nets import Pooled, fingerprint
from tests.explain.test_attention import Swin

#: Few samples, so that the whole matrix is quick.
QUICK: dict[str, dict[str, Any]] = {
    "smoothgradcampp": {"samples": 2},
    "integrated_gradients": {"steps": 3},
    "smoothgrad": {"samples": 2},
    "sscam": {"samples": 2},
    "iscam": {"samples": 2},
    "rise": {"samples": 12},
    "drise": {"samples": 12},
    "lime": {"samples": 24, "segments": 6},
    "kernelshap": {"samples": 24, "segments": 6},
}
ATTENTION = {name for name in method_names() if get_method(name).INFO.family == "attention"}
DENSE = {"seggradcam", "drise"}
CLUSTERS = {"clustercam"}
CLASSIFIER = [name for name in method_names() if name not in ATTENTION | DENSE | CLUSTERS]
SHAPES = {2: (3, 1, 12, 20), 3: (3, 1, 8, 12, 20)}


def run(network: nn.Module, x: torch.Tensor, name: str, **arguments: Any) -> Any:
    """One method with few samples."""
    layers = arguments.pop("layers", ["body.1", "act"] if get_method(name).INFO.layer == "several" else "act")
    options = {name: QUICK[name]} if name in QUICK else None
    return explain(
        network, x, methods=name, classes=arguments.pop("classes", 1), layers=layers, options=options, **arguments
    )[0]


@pytest.mark.parametrize("name", method_names())
def test_the_file_says_what_it_is(name: str) -> None:
    method = get_method(name)
    info = method.INFO
    assert info.name == name
    assert info.title
    assert info.reference
    assert "F" in info.passes
    assert set(info.dims) <= {"2d", "3d", "t2d"}
    assert method.attribute.__doc__
    make_options(name)
    with pytest.raises(ExplainError, match="has no option 'no_such'"):
        make_options(name, {"no_such": 1})


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIER)
def test_a_batch_is_its_samples_and_the_network_comes_back(name: str, dims: int) -> None:
    network = Pooled(dims)
    network.train()
    network.act.eval()
    network.fc.weight.requires_grad = False
    before = fingerprint(network)
    x = torch.randn(SHAPES[dims], generator=torch.Generator().manual_seed(dims))
    copy = x.clone()
    whole = run(network, x, name)
    again = run(network, x, name)
    assert torch.equal(whole.raw, again.raw)
    assert whole.raw.dtype == torch.float32
    assert whole.map.shape == (x.shape[0], *x.shape[2:])
    assert (whole.map >= 0).all()
    for b in range(len(x)):
        alone = run(network, x[b : b + 1], name)
        scale = float(whole.raw[b].abs().max())
        assert torch.allclose(whole.raw[b], alone.raw[0], rtol=1e-3, atol=1e-5 * scale + 1e-9), b
        assert whole.flags[b] == alone.flags[0]
    assert fingerprint(network) == before
    assert torch.equal(x, copy)
    assert not x.requires_grad


@pytest.mark.parametrize("name", CLASSIFIER)
def test_nothing_is_ever_nan(name: str) -> None:
    network = Pooled(3)
    x = torch.randn(SHAPES[3], generator=torch.Generator().manual_seed(5))[:1]
    for image in (torch.zeros_like(x), torch.full_like(x, 0.7), x * 1e6, x * 1e-6):
        assert torch.isfinite(run(network, image, name).map).all()
    half = run(network.bfloat16(), x.bfloat16(), name)
    assert torch.isfinite(half.map).all()
    assert half.map.dtype == torch.float32


class Deep(nn.Module):
    """A 2D network's weights in a 3D network whose kernels are one slice thick."""

    def __init__(self, flat: Pooled) -> None:
        super().__init__()
        first, second = flat.body[0], flat.body[2]
        self.body = nn.Sequential(
            nn.Conv3d(1, 6, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            nn.ReLU(),
            nn.Conv3d(6, 5, (1, 3, 3), padding=(0, 1, 1)),
        )
        self.act, self.fc = nn.ReLU(), nn.Linear(5, 3)
        with torch.no_grad():
            for deep, source in ((self.body[0], first), (self.body[2], second)):
                deep.weight.copy_(source.weight[:, :, None])
                deep.bias.copy_(source.bias)
            self.fc.load_state_dict(flat.fc.state_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.body(x)).flatten(2).mean(-1))


@pytest.mark.parametrize("name", CLASSIFIER)
def test_a_volume_of_one_slice_is_an_image(name: str) -> None:
    flat = Pooled(2)
    x = torch.randn(SHAPES[2], generator=torch.Generator().manual_seed(7))[:2]
    image, volume = run(flat, x, name), run(Deep(flat), x[:, :, None], name)
    scale = float(image.raw.abs().max())
    assert torch.allclose(volume.raw[:, 0], image.raw, rtol=1e-3, atol=1e-4 * scale + 1e-9)


NETWORKS = ("densenet121", "resnet18", "resnet50", "efficientnet_b0", "seresnet50", "vit", "swin")


def build(kind: str, dims: int) -> tuple[nn.Module, tuple[int, ...]]:
    """What people use, narrow where that keeps the structure, and a batch that is small in every axis but unequal."""
    torch.manual_seed(0)
    keys: dict[str, Any] = {"spatial_dims": dims}
    size = (64, 96) if dims == 2 else (32, 48, 40)
    if kind == "densenet121":
        return nets.DenseNet121(dims, 1, 3, init_features=8, growth_rate=4), (
            2,
            1,
            *((64, 96) if dims == 2 else (64, 48, 80)),
        )
    if kind == "resnet18":
        return nets.ResNet("basic", [2, 2, 2, 2], [8, 16, 24, 32], n_input_channels=1, num_classes=3, **keys), (
            2,
            1,
            *size,
        )
    if kind == "resnet50":
        return nets.ResNet("bottleneck", [3, 4, 6, 3], [8, 8, 16, 16], n_input_channels=1, num_classes=3, **keys), (
            2,
            1,
            *size,
        )
    if kind == "efficientnet_b0":
        size = (64, 96) if dims == 2 else (64, 96, 80)
        return nets.EfficientNetBN("efficientnet-b0", False, in_channels=1, num_classes=3, **keys), (2, 1, *size)
    if kind == "seresnet50":
        return nets.SEResNet50(in_channels=1, num_classes=3, layers=(1, 1, 1, 1), **keys), (2, 1, *size)
    if kind == "vit":
        small = (32, 48) if dims == 2 else (32, 16, 48)
        return _vit(small), (2, 1, *small)
    return Swin(dims), (2, 1, *((32, 64) if dims == 2 else (32, 16, 48)))


def _vit(size: tuple[int, ...]) -> nn.Module:
    return nets.ViT(1, size, (8,) * len(size), hidden_size=24, mlp_dim=32, num_layers=2, num_heads=4,
                    classification=True, num_classes=3, spatial_dims=len(size), post_activation=None)  # fmt: skip


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_people_use(kind: str, dims: int) -> None:
    """Every class activation map of one forward, at the automatic layer, on a batch, equal to single calls."""
    network, shape = build(kind, dims)
    before = fingerprint(network)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    names = [
        name
        for name in CLASSIFIER
        if (info := get_method(name).INFO).family in ("gradient_cam", "activation_cam")
        and info.layer == "one"
        and not info.repeats
        and not (name == "cam" and kind in ("vit", "swin"))  # their heads are not linear in the layer
    ]
    whole = explain(network, x, methods=names, classes=["top1", 0])
    alone = explain(network, x[1:], methods=names, classes=["top1", 0], layers=whole.layers)
    for left, right in zip(whole, alone, strict=True):
        scale = float(left.raw[1].abs().max())
        assert torch.isfinite(left.raw).all()
        assert left.raw.ndim == x.ndim - 1
        if "unstable" not in left.flags[1] | right.flags[0]:
            assert torch.allclose(left.raw[1], right.raw[0], rtol=1e-2, atol=1e-3 * scale + 2e-7), left.method
    assert fingerprint(network) == before
