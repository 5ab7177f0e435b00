"""ResNet-10 in three dimensions with the widths of HA-HI: the encoder of regional maps and connectivity matrices.

Shen et al. 2024, arXiv:2401.06780. One residual block a layer, the second layer wider than the third. A matrix is a
volume whose last axis has one position; weights are shared between the modalities.

Grid of the last layer (axes in the order of the input):

| input | axes | size | last layer |
|---|---|---|---|
| ALFF | ``[D, H, W]`` | 61 x 73 x 61 | 4 x 3 x 2 |
| static connectivity | ``[node, node, 1]`` | 164 x 164 x 1 | 11 x 6 x 1 |
| structural connectivity | ``[node, node, 1]`` | 90 x 90 x 1 | 6 x 3 x 1 |

The stem halves the second and third axis alone, so the grid of a matrix has twice as many rows as columns and a map of
a symmetric matrix is not symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medxai.networks.domain_norm import DomainBatchNorm
from medxai.networks.thin_convolution import ThinConv3d

#: Length of an embedding.
EMBEDDING = 512
#: Hidden channels of the publication, in this encoder and in the pyramid.
PUBLISHED_CHANNELS = 512
#: Strides of the second to fourth layer as published.
STRIDES = (2, 2, 2)
#: Layer whose non-negative output ``[N, 512, D', H', W']`` is averaged to the embedding.
TARGET_LAYER = "layer4"


class BasicBlock3d(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut; a 1x1x1 convolution where width or stride changes ("type B").

    Args:
        width_in: channels in.
        width: channels out.
        stride: of all axes.
        domains: kinds of input, see `DomainBatchNorm`.
    """

    def __init__(self, width_in: int, width: int, stride: int, domains: int) -> None:
        super().__init__()
        self.conv1 = ThinConv3d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = DomainBatchNorm(width, domains)
        self.conv2 = ThinConv3d(width, width, 3, padding=1, bias=False)
        self.norm2 = DomainBatchNorm(width, domains)
        self.relu = nn.ReLU()
        self.shortcut: nn.Conv3d | None = None
        if stride != 1 or width_in != width:
            self.shortcut = ThinConv3d(width_in, width, 1, stride=stride, bias=False)
            self.norm = DomainBatchNorm(width, domains)

    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        """``[N, width_in, D, H, W]`` -> ``[N, width, D', H', W']``, not negative."""
        y = self.relu(self.norm1(self.conv1(x), domain))
        y = self.norm2(self.conv2(y), domain)
        result: Tensor = self.relu(y + (x if self.shortcut is None else self.norm(self.shortcut(x), domain)))
        return result


class ResNet10Encoder3d(nn.Module):
    """Encoder ``[N, in_channels, D, H, W]`` -> ``[N, 512]``.

    Args:
        in_channels: channels of the input.
        channels: width of the second layer, a multiple of 8; published 512. The first layer has an eighth, the third
            a half, the fourth always 512.
        strides: of the second to fourth layer; published 2, 2, 2. Smaller ones keep a map of a small volume fine.
        domains: kinds of input that share the convolutions but not the statistics of the batch normalisation. The
            published code has one set for all (1).
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = PUBLISHED_CHANNELS,
        strides: Sequence[int] = STRIDES,
        domains: int = 1,
    ) -> None:
        super().__init__()
        if channels < 8 or channels % 8 or len(strides) != 3:
            msg = f"channels {channels} is no multiple of 8, or there are not 3 strides in {tuple(strides)}"
            raise ValueError(msg)
        first, third = channels // 8, channels // 2
        self.conv1 = ThinConv3d(in_channels, first, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.norm1 = DomainBatchNorm(first, domains)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        self.layer1 = BasicBlock3d(first, first, 1, domains)
        self.layer2 = BasicBlock3d(first, channels, strides[0], domains)
        self.layer3 = BasicBlock3d(channels, third, strides[1], domains)
        self.layer4 = BasicBlock3d(third, EMBEDDING, strides[2], domains)
        self.pool = nn.AdaptiveAvgPool3d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        """Embeddings of inputs of one domain; their sizes may differ from call to call."""
        x = self.maxpool(self.relu(self.norm1(self.conv1(x), domain)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x, domain)
        embeddings: Tensor = self.pool(x).flatten(1)
        return embeddings
