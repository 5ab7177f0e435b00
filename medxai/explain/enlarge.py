"""Maps of a layer as masks of an image: enlarged as by `medxai.explain.resize` and scaled to 0..1, in one pass.

Enlarging is linear and leaves constants alone, so the small maps can be scaled in place of the large ones. What a
large map reaches at most and at least is seen at few positions: between the centres of neighbouring cells it is
linear along each axis, so its extremes lie at the first or last position of such a stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional


def scaled_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps ``[N, *s]`` that lie between 0 and 1, up to rounding, when they are enlarged; constant ones become 0.

    Args:
        maps: on the layer's grid.
        size: of the image.
    """
    axes = enlarging(maps.shape[1:], size)
    ends = [_turns(cells, voxels) for cells, voxels in zip(maps.shape[1:], size, strict=True)]
    few = along_axes(maps, [weights[places] for weights, places in zip(axes, ends, strict=True)]).flatten(1)
    low, high = few.amin(1), few.amax(1)
    shape = (-1, *[1] * (maps.ndim - 1))
    return (maps - low.view(shape)) / (high - low).clamp_min(1e-12).view(shape)


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """``[N, *s]`` -> ``[N, *size]``, linear between the centres of cells."""
    return along_axes(maps, enlarging(maps.shape[1:], size))


def enlarging(cells: Sequence[int], size: Sequence[int]) -> list[Tensor]:
    """Matrices ``[S_a, s_a]`` that enlarge each axis."""
    return [_weights(few, many) for few, many in zip(cells, size, strict=True)]


def along_axes(maps: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """Apply one matrix ``[S_a, s_a]`` of `enlarging`, or some rows of it, to each axis of ``[N, *s]``."""
    for axis in reversed(range(len(axes))):
        weights = axes[axis].to(maps)
        before, after = maps.shape[: axis + 1], maps.shape[axis + 2 :]
        if after:
            flat = maps.reshape(before.numel(), maps.shape[axis + 1], after.numel())
            maps = torch.bmm(weights.expand(len(flat), -1, -1), flat).view(*before, len(weights), *after)
        else:
            maps = maps @ weights.T
    return maps


@lru_cache(maxsize=32)
def _weights(cells: int, voxels: int) -> Tensor:
    """Share ``[voxels, cells]`` of every cell in every position of an axis, as interpolation has it."""
    with torch.inference_mode(False):
        identity = torch.eye(cells)[None]
        return functional.interpolate(identity, size=voxels, mode="linear", align_corners=False)[0].T.contiguous()


@lru_cache(maxsize=32)
def _turns(cells: int, voxels: int) -> Tensor:
    """Positions that are first or last between the centres of two neighbouring cells."""
    with torch.inference_mode(False):
        place = torch.arange(voxels)
        stretch = torch.div((2 * place + 1) * cells - voxels, 2 * voxels, rounding_mode="floor")
        first = torch.ones(voxels, dtype=torch.bool)
        first[1:] = stretch[1:] != stretch[:-1]
        return torch.nonzero(first | first.roll(-1)).flatten()
