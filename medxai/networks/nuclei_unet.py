"""ResNet-34 U-Net with three heads for nuclei that were learnt from points.

After DoNuSeg (Wang et al., MICCAI 2024, arXiv:2406.16427), of which no code is public: one branch tells nucleus from
tissue, one finds the middle of every nucleus, one gives features to compare. Widths, heads and decoder are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from monai.networks.nets.resnet import ResNet, ResNetBlock
from torch import Tensor, nn
from torch.nn import functional

#: The four encoder blocks, shallow to deep, as `medxai.explain.explain` names layers.
BLOCKS = ("encoder.layer1", "encoder.layer2", "encoder.layer3", "encoder.layer4")
#: Pixels between neighbouring cells of their maps.
STRIDES = (4, 8, 16, 32)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class NucleiOutput:
    """What the network says of a batch.

    Attributes:
        blocks: outputs of the four encoder blocks ``[N, C_l, H / s_l, W / s_l]``.
        segmentation: logits ``[N, 2, H, W]`` of tissue and nucleus.
        detection: ``[N, H, W]`` in 0..1, near 1 at the middle of a nucleus.
        shared: what the heads read, ``[N, C, H, W]``.
    """

    blocks: tuple[Tensor, ...]
    segmentation: Tensor
    detection: Tensor
    shared: Tensor


class NucleiUNet(nn.Module):
    """``[N, 3, H, W]`` in 0..1, sides multiples of 32 -> logits ``[N, 2, H, W]``; colours are standardised within.

    Attributes:
        radius: of a nucleus in pixels at `mpp`.
        mpp: micrometres per pixel that it was trained at.
        tile: pixels along a side that are looked at together.
        detects: whether the detection branch was trained; without it seeds come from the distance transform.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        width: float = 1.0,
        radius: float = 6.0,
        mpp: float = 0.5,
        tile: int = 256,
        detects: bool = True,
        projection: int = 64,
        shared: int = 32,
    ) -> None:
        """Make the network with random weights.

        Args:
            width: factor of all channels but those the heads share; 1 gives the 64 to 512 of ResNet-34.
            radius: see above.
            mpp: see above.
            tile: see above, a multiple of 32.
            detects: see above.
            projection: P, numbers that the contrastive loss compares.
            shared: channels that the three heads read, whatever the width.
        """
        super().__init__()
        if tile % STRIDES[-1]:
            msg = f"tile is {tile} pixels; it must be a multiple of {STRIDES[-1]}"
            raise ValueError(msg)
        self.radius, self.mpp, self.tile, self.detects = radius, mpp, tile, detects
        deep = [int(channels * width) for channels in (64, 128, 256, 512)]
        up = [*(int(channels * width) for channels in (256, 128, 64)), shared]
        self.encoder = ResNet(
            ResNetBlock,
            [3, 4, 6, 3],
            deep,
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_size=7,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
        )
        skips, below = (deep[2], deep[1], deep[0]), (deep[3], *up[:2])
        self.decoder = nn.ModuleList(
            _double(lower + skip, out) for lower, skip, out in zip(below, skips, up[:3], strict=True)
        )
        self.fine = _double(up[2], up[3])
        self.segment = nn.Conv2d(up[-1], 2, 1)
        self.detect = nn.Sequential(
            nn.Conv2d(up[-1], up[-1], 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(up[-1], 1, 1)
        )
        self.project = nn.Linear(up[-1], projection)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def outputs(self, x: Tensor) -> NucleiOutput:
        """All heads and blocks of ``[N, 3, H, W]``."""
        encoder = self.encoder
        blocks = []
        maps = encoder.maxpool(encoder.act(encoder.bn1(encoder.conv1((x - self.mean) / self.std))))
        for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            maps = layer(maps)
            blocks.append(maps)
        for stage, skip in zip(self.decoder, reversed(blocks[:-1]), strict=True):
            maps = stage(torch.cat([placed(maps, 2, skip.shape[-2:]), skip], 1))
        shared = self.fine(placed(maps, STRIDES[0], x.shape[-2:]))
        return NucleiOutput(
            tuple(blocks),
            self.segment(shared),
            self.detect(shared)[:, 0].sigmoid(),
            shared,
        )

    def projected(self, features: Tensor) -> Tensor:
        """Pixels of the shared maps ``[n, C]`` as ``[n, P]`` of length 1."""
        return functional.normalize(self.project(features), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 2, H, W]``."""
        return self.outputs(x).segmentation


def placed(maps: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Maps ``[N, C, h, w]`` as ``[N, C, *size]``, bilinear between the pixels that their cells look at.

    Convolutions with stride 2 and a padding of half their kernel look at every second pixel from the first on, so that
    cell i lies on pixel i * stride; enlarging by shares would put it half a cell too far to the lower right. Beyond
    the last cell its value is repeated.
    """
    height, width = ((cells - 1) * stride + 1 for cells in maps.shape[-2:])
    large = functional.interpolate(maps, (height, width), mode="bilinear", align_corners=True)
    more = (0, max(0, size[1] - width), 0, max(0, size[0] - height))
    return functional.pad(large, more, mode="replicate")[..., : size[0], : size[1]]


def layer_cams(blocks: Sequence[Tensor], score: Tensor, size: Sequence[int]) -> Tensor:
    """LayerCAM (Jiang et al. 2021) of every block, placed, as ``[N, 4, *size]``, not scaled.

    The arithmetic is that of `medxai.explain.methods.layercam`, from one backward pass for all blocks.

    Args:
        blocks: of `NucleiUNet.outputs`, with their graph.
        score: a number that depends on them.
        size: of the image.
    """
    gradients = torch.autograd.grad(score, list(blocks))
    cams = [
        placed((gradient.clamp_min(0) * block).sum(1, keepdim=True).relu(), stride, size)
        for gradient, block, stride in zip(gradients, blocks, STRIDES, strict=True)
    ]
    return torch.cat(cams, 1).detach()


def _double(before: int, after: int) -> nn.Sequential:
    conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(
        conv(before, after),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        conv(after, after),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
