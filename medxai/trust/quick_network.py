"""A fusion network for many questions: max pools by shifted copies, slices of courses in pieces that stay in the cache.

PyTorch's max pools take most of the time of the dynamic pyramid on the CPU, where grids are small, and the rest of it
waits for memory. Neither change touches a number: what comes out is the same bit for bit.
"""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from medxai.networks.dfc_pyramid import SlicePair2d

#: Bytes of hidden channels at once. Much smaller ones make oneDNN choose other kernels, which round otherwise.
_PIECE = 4 * 2**20
Network = TypeVar("Network", bound=nn.Module)


class ShiftedMaxPool(nn.Module):
    """Pool of 3 with stride 1 and padding 1 along the last axes; a maximum is the same in whatever order.

    Args:
        axes: 2 or 3 last axes.
    """

    def __init__(self, axes: int) -> None:
        super().__init__()
        self._axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, *S]`` -> the same shape."""
        padded = functional.pad(x, (1, 1) * self._axes, value=float("-inf"))
        for axis in range(-self._axes, 0):
            size = x.shape[axis]
            a, b, c = (padded.narrow(axis, start, size) for start in range(3))
            padded = torch.maximum(torch.maximum(a, b), c)
        return padded


class Piecewise(nn.Module):
    """Slices brought together some at a time, in evaluation mode.

    Args:
        pair: module for all slices.
    """

    def __init__(self, pair: SlicePair2d) -> None:
        super().__init__()
        self.pair = pair
        self._hidden = cast("nn.Conv2d", pair.layers[0]).out_channels

    def forward(self, pairs: Tensor) -> Tensor:
        """``[M, 2, n, n]`` -> ``[M, n, n]``."""
        step = max(1, _PIECE // (4 * self._hidden * pairs.shape[2] * pairs.shape[3]))
        return torch.cat([self.pair(part) for part in torch.split(pairs, step)])


def quick_copy(network: Network) -> Network:
    """A copy in evaluation mode that answers the same in less time."""
    found = copy.deepcopy(network).eval()
    for module in list(found.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d | nn.MaxPool3d) and _plain(child):
                setattr(module, name, ShiftedMaxPool(2 if isinstance(child, nn.MaxPool2d) else 3))
            elif isinstance(child, SlicePair2d):
                setattr(module, name, Piecewise(child))
    return found


def _plain(pool: nn.MaxPool2d | nn.MaxPool3d) -> bool:
    wanted = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}
    same = all({*_numbers(getattr(pool, name))} == {value} for name, value in wanted.items())
    return same and not pool.ceil_mode and not pool.return_indices


def _numbers(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
