from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medxai.errors import BundleError
from medxai.explain.engine import explain
from medxai.learn.lung_us.heads import RESNET_SPEC, fresh_network
from medxai.networks.resnet_us import TARGET_LAYER, ResNet18Us, load_imagenet

#: Parameters of torchvision's ResNet-18 without its last layer, and of the published head for three classes.
TRUNK, HEAD = 11_689_512 - 513_000, 512 * 64 + 64 + 2 * 64 + 64 * 3 + 3
#: Two blocks of two 3x3 convolutions, one 1x1, five normalisations of 512 channels.
LAST_STAGE = 9 * (256 * 512 + 3 * 512 * 512) + 256 * 512 + 5 * 2 * 512


def published(network: ResNet18Us) -> dict[str, torch.Tensor]:
    """A file as torchvision publishes it, with other values."""
    generator = torch.Generator().manual_seed(7)
    state = {
        name: torch.rand(tensor.shape, generator=generator)
        for name, tensor in network.trunk.state_dict().items()
        if not name.endswith("num_batches_tracked")  # not in the published file
    }
    return {**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def test_the_number_of_parameters_is_exact() -> None:
    cut = fresh_network("resnet18", 3, random_start=True)
    assert sum(p.numel() for p in cut.network.parameters()) == TRUNK + HEAD == 11_209_667
    trained = sum(p.numel() for p in cut.network.parameters() if p.requires_grad)
    assert trained == LAST_STAGE + HEAD == 8_426_883


def test_trunk_and_tail_are_the_network_and_the_last_stage_alone_learns() -> None:
    cut = fresh_network("resnet18", 3, random_start=True)
    cut.network.eval()
    x = torch.randn(2, 3, *RESNET_SPEC.window)
    features = cut.trunk(x)
    assert features.shape == (2, 256, 14, 14)
    assert torch.allclose(cut.tail(features), cut.network(x), atol=1e-5)
    cut.tail(features).sum().backward()
    touched = {name for name, p in cut.network.named_parameters() if p.grad is not None}
    assert touched == {n for n, _ in cut.network.named_parameters() if n.startswith(("trunk.layer4", "head", "class"))}
    assert explain(cut.network, x, layers=TARGET_LAYER)[0].raw.shape == (2, 7, 7)


def test_published_weights_fill_the_trunk(tmp_path: Path) -> None:
    network = ResNet18Us(3)
    state = published(network)
    torch.save(state, tmp_path / "resnet18.pth")
    cut = fresh_network("resnet18", 3, weights=tmp_path / "resnet18.pth")
    assert torch.equal(cut.network.trunk.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])  # type: ignore[union-attr, index]
    assert torch.equal(cut.network.trunk.bn1.running_var, state["bn1.running_var"])  # type: ignore[union-attr]
    with pytest.raises(BundleError, match=r"missing \['layer1.0.conv1.weight'\]"):
        load_imagenet(network, {k: v for k, v in state.items() if k != "layer1.0.conv1.weight"})
    with pytest.raises(BundleError, match="unusable"):
        load_imagenet(network, {**state, "conv1.weight": torch.zeros(64, 3, 3, 3)})


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"ResNet-18 are not there.*resnet18-f37072fd.pth"):
        fresh_network("resnet18", 3, weights=tmp_path / "none.pth")
