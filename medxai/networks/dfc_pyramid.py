"""Temporal pyramid over dynamic functional connectivity, the "multi-scale temporal alignment" of HA-HI.

Shen et al. 2024, arXiv:2401.06780. The course is seen at five rates: as it is and as means of 5, 10, 20 and 40 windows.
Each has its encoder; the finer one is brought together with the next coarser one, slice by slice, and made smaller.

Grids ``[node, node, window]`` for 164 nodes and 120 windows (lengths 120, 24, 12, 6, 3), channels in brackets:

| rate | encoded | brought together, made smaller |
|---|---|---|
| 1 | 41 x 41 x 30 (8) | |
| 5 | 41 x 41 x 6 (8) | 21 x 21 x 8 (16) |
| 10 | 21 x 21 x 3 (16) | 11 x 11 x 2 (32) |
| 20 | 11 x 11 x 2 (32) | 6 x 6 x 1 (64) |
| 40 | 6 x 6 x 1 (64) | 3 x 3 x 1 (128), pooled to 2 x 2 x 1 |

Ours: a ReLU between the two convolutions of a block, without which its hidden channels are one linear map; a last mean
of fewer windows than its rate where these do not divide the course; and the pool adapts its window, which at 3 x 3 x 1
is the published 2 x 2 x 1 with stride 1, so that smaller matrices give 512 numbers as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from medxai.networks.domain_norm import DomainBatchNorm
from medxai.networks.resnet10_3d import PUBLISHED_CHANNELS

#: Bytes of hidden channels at once when slices are brought together in evaluation mode: they stay in the cache. Much
#: smaller ones make oneDNN choose other kernels, which round otherwise.
_CHUNK = 4 * 2**20
#: Encoder whose non-negative output ``[N, 64, n, n, t]`` stands for the modality in a map.
TARGET_LAYER = "encoders.4"


@dataclass(frozen=True)
class Rate:
    """One rate of the pyramid.

    Attributes:
        windows: consecutive windows in a mean.
        strides: of the encoder's two convolutions along the nodes; along time both have 2.
        channels: out of the encoder.
    """

    windows: int
    strides: tuple[int, int]
    channels: int


RATES = (Rate(1, (2, 2), 8), Rate(5, (2, 2), 8), Rate(10, (2, 4), 16), Rate(20, (4, 4), 32), Rate(40, (4, 8), 64))
#: Channels of the last block; 2 x 2 x 1 positions of them are the embedding.
LAST = 128


def window_means(course: Tensor, windows: int) -> Tensor:
    """Means over consecutive windows: ``[..., T]`` -> ``[..., ceil(T / windows)]``, the last of what is left."""
    shape, steps = course.shape[:-1], course.shape[-1]
    flat = course.reshape(1, -1, steps)
    return functional.avg_pool1d(flat, min(windows, steps), ceil_mode=True).view(*shape, -1)


class MaxPool(nn.Module):
    """Pool of 3 with stride 1 and padding 1 along the last axes, ``[N, C, *S]`` -> the same shape.

    PyTorch's takes most of the pyramid's time on the CPU; in evaluation mode three shifted copies along each axis give
    the same numbers. In training ties would share the gradient otherwise, so that PyTorch's is kept.

    Args:
        axes: 2 or 3 last axes.
    """

    def __init__(self, axes: int) -> None:
        super().__init__()
        self._axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """Largest of the neighbours."""
        if self.training:
            pool = functional.max_pool2d if self._axes == 2 else functional.max_pool3d
            return pool(x, 3, stride=1, padding=1)
        padded = functional.pad(x, (1, 1) * self._axes, value=float("-inf"))
        for axis in range(-self._axes, 0):
            size = x.shape[axis]
            a, b, c = (padded.narrow(axis, start, size) for start in range(3))
            padded = torch.maximum(torch.maximum(a, b), c)
        return padded


class StridedBlock3d(nn.Module):
    """Two strided 3x3x3 convolutions beside one with the product of their strides.

    Args:
        width_in: channels in.
        hidden: channels between.
        width: channels out.
        first: stride of the first convolution.
        second: of the second.
    """

    def __init__(
        self, width_in: int, hidden: int, width: int, first: tuple[int, int, int], second: tuple[int, int, int]
    ) -> None:
        super().__init__()
        both = (first[0] * second[0], first[1] * second[1], first[2] * second[2])
        self.conv1 = nn.Conv3d(width_in, hidden, 3, stride=first, padding=1, bias=False)
        self.norm1 = DomainBatchNorm(hidden)
        self.conv2 = nn.Conv3d(hidden, width, 3, stride=second, padding=1, bias=False)
        self.norm2 = DomainBatchNorm(width)
        self.shortcut: nn.Conv3d | None = None
        if width_in != width or max(both) > 1:
            self.shortcut = nn.Conv3d(width_in, width, 3, stride=both, padding=1, bias=False)
            self.norm = DomainBatchNorm(width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, width_in, n, n, t]`` -> ``[N, width, n', n', t']``, not negative."""
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        result: Tensor = self.relu(y + (x if self.shortcut is None else self.norm(self.shortcut(x))))
        return result


class SlicePair2d(nn.Module):
    """Bring a fine and a coarse slice together: ``[M, 2, n, n]`` -> ``[M, n, n]``; the same for every channel.

    Args:
        hidden: channels between.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            MaxPool(2),
            nn.Conv2d(hidden, 1, 1, bias=False),
            nn.BatchNorm2d(1),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.BatchNorm2d(1))
        self.relu = nn.ReLU()
        self.maxpool = MaxPool(2)
        self._hidden = hidden

    def forward(self, pairs: Tensor) -> Tensor:
        """Not negative."""
        if self.training:  # statistics are those of all slices
            return self._of(pairs)
        step = max(1, _CHUNK // (4 * self._hidden * pairs.shape[2] * pairs.shape[3]))
        return torch.cat([self._of(pairs[start : start + step]) for start in range(0, len(pairs), step)])

    def _of(self, pairs: Tensor) -> Tensor:
        result: Tensor = self.maxpool(self.relu(self.layers(pairs) + self.shortcut(pairs)))[:, 0]
        return result


def partners(fine: int, coarse: int) -> Tensor:
    """For each of `fine` steps, which of the `coarse` ones it lies in: ``t // round(fine / coarse)``."""
    ratio = max(1, round(fine / coarse))
    return torch.div(torch.arange(fine), ratio, rounding_mode="floor").clamp_max(coarse - 1)


class DfcPyramid(nn.Module):
    """Encoder of a course of matrices: ``[B, 1, N, N, T]`` -> ``[B, 512]``.

    Args:
        channels: hidden channels of every block; published 512. What the blocks put out does not depend on it.
    """

    def __init__(self, channels: int = PUBLISHED_CHANNELS) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            StridedBlock3d(1, channels, rate.channels, (a, a, 2), (b, b, 2))
            for rate in RATES
            for a, b in (rate.strides,)
        )
        self.maxpool = MaxPool(3)
        self.pairs = nn.ModuleList(SlicePair2d(channels) for _ in RATES[1:])
        widths = (*(rate.channels for rate in RATES[1:]), LAST)
        self.reductions = nn.ModuleList(
            StridedBlock3d(a, channels, b, (1, 1, 2), (2, 2, 2)) for a, b in pairwise(widths)
        )
        self.last = StridedBlock3d(LAST, LAST, LAST, (1, 1, 1), (1, 1, 1))
        self.pool = nn.AdaptiveAvgPool3d((2, 2, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, course: Tensor) -> Tensor:
        """Embeddings of courses of matrices."""
        fine = self.maxpool(self.encoders[0](course))
        for rate, encoder, pair, reduce in zip(RATES[1:], self.encoders[1:], self.pairs, self.reductions, strict=True):
            coarse = self.maxpool(encoder(window_means(course, rate.windows)))
            fine = reduce(_together(pair, fine, coarse))
        embeddings: Tensor = self.pool(self.last(fine)).flatten(1)
        return embeddings


def _together(pair: nn.Module, fine: Tensor, coarse: Tensor) -> Tensor:
    """A new fine course ``[B, C, n, n, t]`` from itself and a coarser one of the same channels and nodes."""
    both = torch.stack((fine, coarse[..., partners(fine.shape[-1], coarse.shape[-1]).to(fine.device)]))
    batch, channels, nodes, _, steps = fine.shape
    slices = both.permute(1, 2, 5, 0, 3, 4).reshape(-1, 2, nodes, nodes)
    new: Tensor = pair(slices).view(batch, channels, steps, nodes, nodes)
    return new.permute(0, 1, 3, 4, 2).contiguous()
