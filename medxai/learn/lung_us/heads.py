"""The networks of the protocol, cut where the frozen trunk ends.

Trunk and tail share the parameters of the whole network: training the tail trains the network, and the network is
what a bundle stores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from medxai.errors import BundleError
from medxai.learn.breast_us import FROZEN_STAGES, Tail
from medxai.learn.lung_us.frames import CLIP_SPEC, SIZE, VGG_SPEC
from medxai.networks.efficientnet_lite import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EfficientNetLite0,
)
from medxai.networks.efficientnet_lite import imagenet_state as efficientnet_state
from medxai.networks.efficientnet_lite import load_imagenet as load_efficientnet
from medxai.networks.genesis3d import GenesisClassifier, freeze_encoder, load_genesis, read_genesis
from medxai.networks.resnet_us import IMAGENET_FILE as RESNET_FILE
from medxai.networks.resnet_us import ResNet18Us
from medxai.networks.resnet_us import load_imagenet as load_resnet
from medxai.networks.vgg_us import LAST_CONVOLUTION, VggBase, VggCam, freeze_trunk, imagenet_state, load_imagenet
from medxai.prepare.spec import AffineIntensity, PreparationSpec

#: Means over the colours of torchvision's ImageNet constants, on 0..255: pictures are grey, and what an augmentation
#: brings in from outside needs one value of black.
RESNET_SPEC = PreparationSpec(
    axes="HW",
    window=(SIZE, SIZE),
    channels=3,
    intensity=AffineIntensity(mean=(114.495,) * 3, std=(57.63,) * 3),
)
LITE_SPEC = PreparationSpec(
    axes="HW",
    window=(SIZE, SIZE),
    channels=3,
    intensity=AffineIntensity(mean=(IMAGENET_MEAN,) * 3, std=(IMAGENET_STD,) * 3),
)


@dataclass(frozen=True, eq=False)
class CutNetwork:
    """A network and its two parts: ``network(x) == tail(trunk(x))``.

    Attributes:
        network: the whole, with its trunk's parameters frozen.
        trunk: ``[N, 3, 224, 224]`` or clips ``[N, 1, 32, 64, 64]`` -> features.
        tail: features -> logits ``[N, K]``.
        spec: preparation of a frame.
        unit: what the network reads.
    """

    network: nn.Module
    trunk: nn.Module
    tail: nn.Module
    spec: PreparationSpec
    unit: Literal["frame", "clip"] = "frame"


class _Encoder(nn.Module):
    """Encoder of the video network: ``[N, 512, 4, 8, 8]``."""

    def __init__(self, network: GenesisClassifier) -> None:
        super().__init__()
        self.levels = nn.Sequential(
            network.down_tr64, network.pool, network.down_tr128, network.pool, network.down_tr256, network.pool
        )
        self.last = network.down_tr512

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.last(self.levels(inputs))
        return features


class _EarlyStages(nn.Module):
    """Stem and first `FROZEN_STAGES` stages of EfficientNet-Lite0: ``[N, 40, 28, 28]``."""

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.stem = nn.Sequential(network._conv_stem_padding, network._conv_stem, network._bn0, network._swish)
        self.stages = nn.Sequential(*list(network._blocks)[:FROZEN_STAGES])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        early: torch.Tensor = self.stages(self.stem(inputs))
        return early


class _ResNetStages(nn.Module):
    """ResNet-18 up to its third stage: ``[N, 256, 14, 14]``."""

    def __init__(self, network: ResNet18Us) -> None:
        super().__init__()
        t = network.trunk
        self.stages = nn.Sequential(t.conv1, t.bn1, t.act, t.maxpool, t.layer1, t.layer2, t.layer3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        early: torch.Tensor = self.stages(inputs)
        return early


def cut_vgg(network: VggCam | VggBase) -> CutNetwork:
    """Cut before ``block5_conv3``, the last convolution, which trains as published; features ``[N, 512, 14, 14]``."""
    freeze_trunk(network, open_convolutions=1)
    layers = list(network.features)
    tail = nn.Sequential(*layers[LAST_CONVOLUTION:], network.head, network.classifier)
    return CutNetwork(network, nn.Sequential(*layers[:LAST_CONVOLUTION]), tail, VGG_SPEC)


def cut_efficientnet(network: EfficientNetLite0) -> CutNetwork:
    """Cut behind the stages that keep their ImageNet weights; features ``[N, 40, 28, 28]``."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # with the published 0.01 the statistics lag behind a training of few steps
    trunk = _EarlyStages(network)
    trunk.requires_grad_(False)
    return CutNetwork(network, trunk, Tail(network), LITE_SPEC)


def cut_resnet(network: ResNet18Us) -> CutNetwork:
    """Cut before the last stage, which trains; features ``[N, 256, 14, 14]``."""
    trunk = _ResNetStages(network)
    trunk.requires_grad_(False)
    tail = nn.Sequential(network.trunk.layer4, network.head, network.classifier)
    return CutNetwork(network, trunk, tail, RESNET_SPEC)


def cut_genesis(network: GenesisClassifier) -> CutNetwork:
    """Cut behind the encoder, which stays as it is, as published; features ``[N, 512, 4, 8, 8]``."""
    freeze_encoder(network)
    tail = nn.Sequential(network.head, network.classifier)
    return CutNetwork(network, _Encoder(network), tail, CLIP_SPEC, "clip")


def fresh_network(
    name: str, num_classes: int, *, weights: Path | None = None, random_start: bool = False, seed: int = 0
) -> CutNetwork:
    """Build a network of `NETWORKS` with its ImageNet trunk.

    Args:
        name: key of `NETWORKS`.
        num_classes: number of logits.
        weights: file of ImageNet weights of VGG-16 or ResNet-18, None looks into torch's cache; or of Models Genesis.
        random_start: without them. The trunk is then frozen noise: a floor to compare with, and good for timings.
        seed: of the untrained parts.

    Raises:
        BundleError: weights are absent or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name](num_classes, weights, random_start)


def _vgg_cam(num_classes: int, weights: Path | None, random_start: bool) -> CutNetwork:
    network = VggCam(num_classes)
    if not random_start:
        load_imagenet(network, imagenet_state(weights))
    return cut_vgg(network)


def _vgg_base(num_classes: int, weights: Path | None, random_start: bool) -> CutNetwork:
    network = VggBase(num_classes)
    if not random_start:
        load_imagenet(network, imagenet_state(weights))
    return cut_vgg(network)


def _resnet18(num_classes: int, weights: Path | None, random_start: bool) -> CutNetwork:
    network = ResNet18Us(num_classes)
    if not random_start:
        load_resnet(network, imagenet_state(weights, RESNET_FILE, "ResNet-18"))
    return cut_resnet(network)


def _efficientnet(num_classes: int, _weights: Path | None, random_start: bool) -> CutNetwork:
    network = EfficientNetLite0(num_classes, image_size=SIZE)
    if not random_start:
        load_efficientnet(network, efficientnet_state())
    return cut_efficientnet(network)


def _genesis(num_classes: int, weights: Path | None, random_start: bool) -> CutNetwork:
    network = GenesisClassifier(num_classes)
    if not random_start:
        if weights is None:
            msg = (
                "the video network needs the weights of Models Genesis (Genesis_Chest_CT.pt, from its authors on "
                "request), which no package carries; pass the file or start at random"
            )
            raise BundleError(msg)
        load_genesis(network, read_genesis(weights))
    return cut_genesis(network)


#: Networks by name: ``(num_classes, weights, random_start) -> CutNetwork``.
NETWORKS: Mapping[str, Callable[[int, Path | None, bool], CutNetwork]] = {
    "vgg_cam": _vgg_cam,
    "vgg_base": _vgg_base,
    "efficientnet_lite0": _efficientnet,
    "resnet18": _resnet18,
    "genesis": _genesis,
}
