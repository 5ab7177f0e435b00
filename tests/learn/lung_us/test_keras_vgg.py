from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medxai.errors import BundleError
from medxai.learn.lung_us.heads import fresh_network
from medxai.learn.lung_us.keras_vgg import _FIRST, main, read_onnx
from medxai.networks.vgg_us import VggCam


@pytest.fixture(scope="module")
def trunk() -> torch.nn.Module:
    """VGG-16's convolutions whose first filter begins as the published one."""
    torch.manual_seed(0)
    features = VggCam(2).features
    with torch.no_grad():
        features[0].weight[0, :, 0, 0] = torch.tensor(_FIRST)  # type: ignore[index, union-attr]
        for module in features:
            if isinstance(module, torch.nn.Conv2d):
                module.bias.normal_()  # type: ignore[union-attr]
    return features.eval()


def stored(network: torch.nn.Module, path: Path) -> Path:
    openvino = pytest.importorskip("openvino")
    model = openvino.convert_model(network, example_input=torch.zeros(1, 3, 32, 32))
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def test_weights_come_out_as_they_were_and_train(trunk: torch.nn.Module, tmp_path: Path) -> None:
    path = stored(trunk, tmp_path / "model.xml")
    assert main([str(path), str(tmp_path / "vgg.safetensors")]) == 0
    cut = fresh_network("vgg_cam", 3, weights=tmp_path / "vgg.safetensors")
    own = cut.network.features.state_dict()  # type: ignore[union-attr, operator]
    assert own.keys() == trunk.state_dict().keys()
    assert all(torch.equal(own[name], value) for name, value in trunk.state_dict().items())


def test_other_networks_are_refused(trunk: torch.nn.Module, tmp_path: Path) -> None:
    shorter = stored(trunk[:10], tmp_path / "short.xml")  # type: ignore[index]
    with pytest.raises(BundleError, match="not made of the 13 convolutions"):
        read_onnx(shorter)
    with torch.no_grad():
        trunk[0].weight[0, 0, 0, 0] += 0.01  # type: ignore[index]
    other = stored(trunk, tmp_path / "other.xml")
    with pytest.raises(BundleError, match="not that of Keras"):
        read_onnx(other)
