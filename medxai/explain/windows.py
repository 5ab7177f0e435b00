"""Windows that slide over an image: products of intervals along its axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: A size in voxels (int) or as a share of the axis (float), for all axes or one each.
Size = int | float | list[int | float] | tuple[int | float, ...]


def check_size(name: str, size: Size | None) -> None:
    """Reject sizes that are not positive.

    Raises:
        ValueError: with the name of the option.
    """
    for value in size if isinstance(size, (list, tuple)) else () if size is None else (size,):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and not (isinstance(value, float) and 0 < value <= 1):
            raise ValueError(f"{name} is a whole number of voxels or a share of the axis up to 1.0, not {value!r}")


def in_voxels(name: str, size: Size, spatial: Sequence[int]) -> tuple[int, ...]:
    """Size in voxels along every axis, at most that of the axis.

    Raises:
        ValueError: the list has another length than the image has axes.
    """
    values = list(size) if isinstance(size, (list, tuple)) else [size] * len(spatial)
    if len(values) != len(spatial):
        raise ValueError(f"{name} has {len(values)} numbers; the image has {len(spatial)} axes")
    voxels = [round(v * s) if isinstance(v, float) else v for v, s in zip(values, spatial, strict=True)]
    return tuple(max(1, min(v, s)) for v, s in zip(voxels, spatial, strict=True))


@dataclass(frozen=True)
class Windows:
    """All windows of one size at a regular stride, the last along each axis clipped at the image's edge.

    Attributes:
        spatial: ``S``.
        size: voxels along each axis.
        stride: voxels along each axis.
    """

    spatial: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Windows along each axis."""
        return tuple(-(-(s - w) // t) + 1 for s, w, t in zip(self.spatial, self.size, self.stride, strict=True))

    @property
    def count(self) -> int:
        """Windows in all."""
        return prod(self.grid)

    @cached_property
    def spans(self) -> tuple[Tensor, ...]:
        """For each axis ``[windows, S_a]``: 1 where the interval covers the voxel."""
        found = []
        for s, w, t, n in zip(self.spatial, self.size, self.stride, self.grid, strict=True):
            start = (torch.arange(n) * t)[:, None]
            place = torch.arange(s)[None]
            found.append(((place >= start) & (place < start + w)).float())
        return tuple(found)

    def boxes(self, index: Tensor) -> NDArray[np.int64]:
        """First and last voxel ``[N, axes, 2]`` (included) of windows ``index[i]`` (row-major over `grid`)."""
        places = np.stack(np.unravel_index(index.cpu().numpy(), self.grid), axis=1)
        first = places * np.array(self.stride)
        last = np.minimum(first + np.array(self.size), np.array(self.spatial)) - 1
        return np.stack([first, last], axis=2).astype(np.int64)

    def masks(self, index: Tensor) -> Tensor:
        """Masks ``[N, *S]`` that remove window ``index[i]`` (row-major over `grid`) and keep the rest."""
        removed = torch.ones(len(index), *[1] * len(self.grid))
        rest = index.cpu()
        for axis in reversed(range(len(self.grid))):
            span = self.spans[axis][rest % self.grid[axis]]
            rest = rest // self.grid[axis]
            removed = removed * span.view(-1, *[span.shape[1] if a == axis else 1 for a in range(len(self.grid))])
        return 1 - removed

    def spread(self, values: Tensor) -> Tensor:
        """Sum ``[B, *S]`` over the windows that cover each voxel, of ``values [B, windows]``."""
        maps = values.view(-1, *self.grid)
        for axis, span in enumerate(self.spans, start=1):
            maps = torch.tensordot(maps, span.to(maps), dims=([axis], [0])).movedim(-1, axis)
        return maps

    def average(self, values: Tensor) -> Tensor:
        """Mean ``[B, *S]`` over the windows that cover each voxel, of ``values [B, windows]``."""
        return self.spread(values) / self.spread(torch.ones_like(values[:1]))
