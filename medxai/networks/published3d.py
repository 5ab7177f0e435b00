"""The 3D networks that CovidNet3D is compared with, as published: 3D ResNet-101, DenseNet-121 and MC3-18.

Sizes in He et al. (arXiv:2101.05442) agree with these to the last weight. ResNet and DenseNet are MONAI's. MC3-18,
mixed convolutions of Tran et al. 2018 (arXiv:1711.11248, section 3.3), has volumes in its first group, then planes.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.resnet import ResNet, resnet101
from torch import Tensor, nn


def resnet3d101(num_classes: int, in_channels: int = 1) -> ResNet:
    """Stem 7x7x7, shortcuts with convolutions: 85,251,267 parameters for 3 channels and 3 classes."""
    network = resnet101(
        spatial_dims=3, n_input_channels=in_channels, num_classes=num_classes, shortcut_type="B", conv1_t_stride=2
    )
    for module in network.modules():
        # MONAI gives the shortcuts biases, which the batch normalisation after them takes away again.
        if isinstance(module, nn.Conv3d):
            module.bias = None
    return network


def densenet3d121(num_classes: int, in_channels: int = 1) -> DenseNet121:
    """11,289,603 parameters for 3 channels and 3 classes; inputs of 32 voxels or more along every axis."""
    return DenseNet121(spatial_dims=3, in_channels=in_channels, out_channels=num_classes)


class DoubledDepth(nn.Module):
    """A network that needs more slices than there are: each is given twice.

    Args:
        network: reads ``[N, C, 2 D, H, W]``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, D, H, W]`` -> what the network gives."""
        y: Tensor = self.network(x.repeat_interleave(2, dim=2))
        return y


class _Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut; volumes or planes."""

    def __init__(self, width_in: int, width: int, stride: int, *, volume: bool) -> None:
        super().__init__()
        depth = 3 if volume else 1
        kernel, padding = (depth, 3, 3), (depth // 2, 1, 1)
        self.conv1 = nn.Conv3d(width_in, width, kernel, (1, stride, stride), padding, bias=False)
        self.norm1 = nn.BatchNorm3d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv3d(width, width, kernel, 1, padding, bias=False)
        self.norm2 = nn.BatchNorm3d(width)
        self.relu2 = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut.append(nn.Conv3d(width_in, width, 1, (1, stride, stride), bias=False))
            self.shortcut.append(nn.BatchNorm3d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class Mc3x18(nn.Module):
    """``[N, C, D, H, W]`` -> ``[N, num_classes]``; the depth is kept, the plane becomes 16 times coarser.

    11,491,779 parameters for 3 channels and 3 classes.

    Args:
        num_classes: logits.
        in_channels: channels of the input.
    """

    def __init__(self, num_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        stem = nn.Conv3d(in_channels, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        groups: list[tuple[str, nn.Module]] = [("stem", nn.Sequential(stem, nn.BatchNorm3d(64), nn.ReLU()))]
        width_in = 64
        for number, width in enumerate((64, 128, 256, 512)):
            stride, volume = 1 if number == 0 else 2, number == 0
            blocks = (_Block(width_in, width, stride, volume=volume), _Block(width, width, 1, volume=volume))
            groups.append((f"group{number + 1}", nn.Sequential(*blocks)))
            width_in = width
        self.features = nn.Sequential(OrderedDict(groups))
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.classifier = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        y: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return y
