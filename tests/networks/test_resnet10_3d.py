from __future__ import annotations

import re

import pytest
import torch
from monai.networks.nets.resnet import ResNet, ResNetBlock
from torch import nn

from medxai.networks.domain_norm import DomainBatchNorm
from medxai.networks.resnet10_3d import TARGET_LAYER, ResNet10Encoder3d


def _grid(network: nn.Module, size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    seen: list[torch.Tensor] = []
    network.get_submodule(TARGET_LAYER).register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.inference_mode():
        embedding = network(torch.rand(1, 1, *size))
    assert seen[0].min() >= 0
    return tuple(seen[0].shape[1:]), tuple(embedding.shape)


@pytest.mark.parametrize(
    ("size", "grid"),
    [((61, 73, 61), (4, 3, 2)), ((90, 90, 1), (6, 3, 1)), ((164, 164, 1), (11, 6, 1)), ((20, 24, 20), (2, 1, 1))],
)
def test_grids_are_the_published_ones(size: tuple[int, ...], grid: tuple[int, ...]) -> None:
    assert _grid(ResNet10Encoder3d(channels=16).eval(), size) == ((512, *grid), (1, 512))


def test_smaller_strides_keep_the_map_fine() -> None:
    assert _grid(ResNet10Encoder3d(channels=16, strides=(1, 1, 1)).eval(), (20, 24, 20)) == ((512, 10, 6, 5), (1, 512))


def test_it_counts_what_its_widths_say() -> None:
    convolutions = (
        64 * 7**3
        + 2 * 64 * 64 * 27
        + (64 * 512 + 512 * 512) * 27
        + 64 * 512
        + (512 * 256 + 256 * 256) * 27
        + 512 * 256
        + (256 * 512 + 512 * 512) * 27
        + 256 * 512
    )
    norms = 2 * (64 + 2 * 64 + 3 * 512 + 3 * 256 + 3 * 512)
    assert sum(p.numel() for p in ResNet10Encoder3d().parameters()) == convolutions + norms
    assert sum(p.numel() for p in ResNet10Encoder3d(domains=3).parameters()) == convolutions + 3 * norms


def _reference(network: ResNet10Encoder3d) -> ResNet:
    """MONAI's ResNet-10 with the same widths and weights."""
    reference = ResNet(
        ResNetBlock,
        [1, 1, 1, 1],
        [2, 16, 8, 512],
        n_input_channels=1,
        conv1_t_size=7,
        conv1_t_stride=(1, 2, 2),
        feed_forward=False,
    )
    values = list(network.state_dict().items())
    names = {}
    for name, value in values:
        name = name.replace(".norms.0", "").replace("norm1", "bn1").replace("norm2", "bn2")
        name = re.sub(r"^(layer\d)\.", r"\1.0.", name)
        name = name.replace("shortcut", "downsample.0").replace(".norm.", ".downsample.1.")
        names[name] = value
    biases = {name: torch.zeros_like(value) for name, value in reference.state_dict().items() if "ple.0.b" in name}
    reference.load_state_dict(names | biases)
    return reference


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_the_reference_computes(training: bool) -> None:
    torch.manual_seed(0)
    network = ResNet10Encoder3d(channels=16)
    reference = _reference(network).train(training)
    network.train(training)
    x = torch.randn(3, 1, 17, 24, 21)
    assert torch.allclose(network(x), reference(x), atol=1e-5)
    # The running statistics moved alike.
    network.eval(), reference.eval()
    assert torch.allclose(network(x), reference(x), atol=1e-4)


def test_domains_keep_their_statistics() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(8, 4, 6, 6, 1), 50 + 20 * torch.randn(8, 4, 6, 6, 1)
    off = {}
    for domains in (1, 2):
        norm = DomainBatchNorm(4, domains)
        for _ in range(60):
            for number, x in enumerate(inputs):
                norm(x, min(number, domains - 1))
        norm.eval()
        off[domains] = max(float(norm(x, min(number, domains - 1)).mean().abs()) for number, x in enumerate(inputs))
    assert off[2] < 0.02
    assert off[1] > 0.5  # one set for both fits neither


def test_one_value_a_channel_can_be_trained_on() -> None:
    network = ResNet10Encoder3d(channels=16)
    assert torch.isfinite(network(torch.randn(1, 1, 4, 4, 1))).all()


def test_a_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        ResNet10Encoder3d(channels=12)
