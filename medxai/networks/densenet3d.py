"""A small 3D DenseNet whose last feature map is fine enough to point at a lesion.

One dense block after the stem: the features are 4 times coarser than the input on every axis (12 mm cells
at 3 mm voxels), where DenseNet121 is 32 times coarser. Built on MONAI's DenseNet (arXiv:1608.06993).
The head scores every cell and pools the scores by log-mean-exp (Pinheiro and Collobert 2015,
arXiv:1411.6228): a lesion of ten cells among thousands decides, which average pooling would dilute.
The stem has even kernels, so that cell ``j`` is centred on input voxel ``4 j + 1.5``, the middle of the voxels
it stands for; MONAI's stem (7, stride 2, padding 3) is centred on ``4 j`` and shifts maps by half a cell.
"""

from __future__ import annotations

import math

import torch
from monai.networks.nets.densenet import DenseNet
from torch import nn

#: Layer whose non-negative output ``[N, F, D/4, H/4, W/4]`` feeds the scores of the cells.
TARGET_LAYER = "class_layers.relu"
#: Input voxels per feature cell, the same along every axis.
STRIDE = 4


class LogMeanExp3d(nn.Module):
    """Pool ``[N, K, D, H, W]`` to ``[N, K]``: ``log(mean(exp(x)))``, between the mean and the maximum."""

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the pooled scores."""
        flat = scores.flatten(start_dim=2)
        return torch.logsumexp(flat, dim=2) - math.log(flat.shape[2])


class SmallDenseNet3d(DenseNet):  # type: ignore[misc]
    """3D classifier: ``[N, in_channels, D, H, W]`` -> logits ``[N, num_classes]``.

    Args:
        num_classes: number of logits; 1 for a yes-or-no question.
        in_channels: channels of the input.
        init_features: channels of the stem.
        growth_rate: channels that each layer adds.
        layers: layers of the dense block; each widens the receptive field by 8 input voxels.
        dropout: dropout after each layer.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        init_features: int = 16,
        growth_rate: int = 12,
        layers: int = 5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=num_classes,
            init_features=init_features,
            growth_rate=growth_rate,
            block_config=(layers,),
            bn_size=2,
            dropout_prob=dropout,
        )
        self.features.conv0 = nn.Conv3d(in_channels, init_features, kernel_size=6, stride=2, padding=2, bias=False)
        nn.init.kaiming_normal_(self.features.conv0.weight)
        self.features.pool0 = nn.MaxPool3d(kernel_size=2)
        width = init_features + layers * growth_rate
        score = nn.Conv3d(width, num_classes, kernel_size=1)
        nn.init.zeros_(score.bias)  # type: ignore[arg-type]
        self.class_layers = nn.Sequential()
        self.class_layers.add_module("relu", nn.ReLU())
        self.class_layers.add_module("score", score)
        self.class_layers.add_module("pool", LogMeanExp3d())
