"""From the layer's grid to the input's: linear, with half-pixel centres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

_MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """``[N, *s]`` -> ``[N, *size]``; the centre of a cell stays where it is (``align_corners=False``)."""
    return resize_channels(maps[:, None], size)[:, 0]


def resize_channels(maps: Tensor, size: Sequence[int]) -> Tensor:
    """``[N, K, *s]`` -> ``[N, K, *size]``, see `resize`."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, size=tuple(size), mode=_MODE[maps.ndim - 2], align_corners=False)
