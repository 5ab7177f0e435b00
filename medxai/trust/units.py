"""Units an image is taken apart into for perturbation: blocks of a regular grid, or supervoxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

#: Ties of a map are broken by noise of this share of its range, always the same.
_JITTER = 1e-9


@dataclass(frozen=True, eq=False)
class Units:
    """A partition of an image.

    Attributes:
        labels: ``[*S]`` int64, unit of every voxel, 0 to ``count - 1``.
        count: how many there are.
    """

    labels: Tensor
    count: int

    @property
    def sizes(self) -> Tensor:
        """Voxels ``[count]`` of every unit."""
        return torch.bincount(self.labels.flatten(), minlength=self.count)

    def sums(self, maps: Tensor) -> Tensor:
        """Sum ``[B, count]`` float64 of ``maps [B, *S]`` over every unit.

        Raises:
            ValueError: the maps lie on another grid.
        """
        if maps.shape[1:] != self.labels.shape:
            msg = f"maps {list(maps.shape[1:])} and units {list(self.labels.shape)} lie on different grids"
            raise ValueError(msg)
        flat = maps.flatten(1).double()
        return flat.new_zeros(len(maps), self.count).index_add_(1, self.labels.flatten(), flat)

    def means(self, maps: Tensor) -> Tensor:
        """Mean ``[B, count]`` float64 of ``maps [B, *S]`` over every unit."""
        return self.sums(maps) / self.sizes

    def masks(self, values: Tensor) -> Tensor:
        """``[N, count]`` -> ``[N, *S]`` float32: every voxel gets the value of its unit."""
        return values.float()[:, self.labels.flatten()].view(len(values), *self.labels.shape)

    def order(self, maps: Tensor, seed: int = 0) -> Tensor:
        """Units ``[B, count]`` by falling mean of ``maps [B, *S]``; ties in a random but fixed order."""
        means = self.means(maps)
        span = (means.amax(1) - means.amin(1)).clamp_min(1e-30)[:, None]
        source = torch.Generator().manual_seed(seed)
        noise = torch.rand(self.count, generator=source, dtype=torch.float64)
        return ((means - means.amin(1, keepdim=True)) / span + _JITTER * noise).argsort(dim=1, descending=True)


def blocks(spatial: Sequence[int], size: int | Sequence[int] | None = None) -> Units:
    """Blocks of a regular grid; those at the far edges are smaller.

    Args:
        spatial: ``S``.
        size: voxels along each axis; None for a sixteenth of a plane's axes and a twelfth of a volume's. An axis of
            one position has one block.
    """
    axes = list(spatial)
    share = 12 if sum(s > 1 for s in axes) > 2 else 16
    wanted = [ceil(s / share) for s in axes] if size is None else [size] * len(axes) if isinstance(size, int) else size
    labels = torch.zeros(axes, dtype=torch.int64)
    count = 1
    for axis, (length, step) in enumerate(zip(axes, wanted, strict=True)):
        along = torch.arange(length) // max(1, min(int(step), length))
        labels = labels * int(along[-1] + 1) + along.view([-1 if a == axis else 1 for a in range(len(axes))])
        count *= int(along[-1] + 1)
    return Units(labels, count)


def segments(image: Tensor, count: int = 100, spacing: Sequence[float] | None = None) -> Units:
    """Superpixels or supervoxels of an image ``[C, *S]`` (SLIC).

    Args:
        image: one sample.
        count: about how many.
        spacing: of the voxels; None for cubes.
    """
    from medxai.explain.supervoxels import supervoxels

    labels = supervoxels(image, count, [1.0] * (image.ndim - 1) if spacing is None else spacing)
    return Units(labels, int(labels.max()) + 1)
