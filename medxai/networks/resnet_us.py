"""ResNet-18 with the head of the lung ultrasound publication, and its ImageNet weights from a local file.

He et al. 2016 (arXiv:1512.03385), as MONAI builds it, with the strides and module names of torchvision's so that its
published state fits. The head is that of `medxai.networks.vgg_us.VggBase`; like there it reads four of the seven rows
and columns of the last grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.networks.nets.resnet import ResNet, ResNetBlock
from torch import nn

from medxai.errors import BundleError
from medxai.networks.vgg_us import published_head

#: Output of the last stage, ``[N, 512, H/32, W/32]``, non-negative.
TARGET_LAYER = "trunk.layer4"
#: File that torchvision publishes; the digits are the start of its SHA-256.
IMAGENET_FILE = "resnet18-f37072fd.pth"


class ResNet18Us(nn.Module):
    """2D classifier: ``[N, 3, 224, 224]`` -> logits ``[N, num_classes]``; 11,209,667 parameters for 3 classes.

    Args:
        num_classes: number of logits.
        dropout: probability before the last layer.
    """

    def __init__(self, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.trunk = ResNet(
            ResNetBlock,
            [2, 2, 2, 2],
            [64, 128, 256, 512],
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_size=7,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
        )
        self.head, self.classifier = published_head(512, num_classes, dropout)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``[N, 256, H/16, W/16]``, what the last stage reads."""
        t = self.trunk
        x = t.maxpool(t.act(t.bn1(t.conv1(inputs))))
        early: torch.Tensor = t.layer3(t.layer2(t.layer1(x)))
        return early

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits ``[N, num_classes]``."""
        logits: torch.Tensor = self.classifier(self.head(self.trunk.layer4(self.features(inputs))))
        return logits


def load_imagenet(network: ResNet18Us, state: Mapping[str, torch.Tensor]) -> None:
    """Copy torchvision's published weights into the trunk; the published classifier is left aside.

    Raises:
        BundleError: a tensor of the trunk is missing, left over, or of another shape.
    """
    own = network.trunk.state_dict()
    given = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    wrong = sorted(name for name in given if name not in own or own[name].shape != given[name].shape)
    missing = sorted(name for name in own.keys() - given.keys() if not name.endswith("num_batches_tracked"))
    if wrong or missing:
        msg = f"ImageNet weights do not fit ResNet-18: unusable {wrong[:3]}, missing {missing[:3]}"
        raise BundleError(msg)
    network.trunk.load_state_dict(given, strict=False)
