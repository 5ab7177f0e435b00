"""Random masks of RISE: coarse random grids, enlarged and shifted; only bits and shifts are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomMasks:
    """A set of masks, made again whenever they are needed.

    Attributes:
        spatial: ``S``.
        grid: ``s``, cells of the coarse grid along each axis.
        bits: ``[N, prod(s)]`` bool.
        shifts: ``[N, dims]`` voxels.
    """

    spatial: tuple[int, ...]
    grid: tuple[int, ...]
    bits: Tensor
    shifts: Tensor

    @classmethod
    def draw(
        cls,
        count: int,
        spatial: Sequence[int],
        grid: Sequence[int],
        keep: float,
        generator: torch.Generator,
        *,
        antithetic: bool = False,
    ) -> RandomMasks:
        """Draw a set.

        Args:
            count: masks; an even number when antithetic.
            spatial: ``S``.
            grid: ``s``.
            keep: probability that a cell is kept.
            generator: source of random numbers.
            antithetic: masks 2i and 2i+1 add up to one everywhere.
        """
        drawn = count // 2 if antithetic else count
        bits = torch.rand(drawn, prod(grid), generator=generator) < keep
        shifts = torch.zeros(drawn, len(grid), dtype=torch.long)
        for axis, (size, cells) in enumerate(zip(spatial, grid, strict=True)):
            if _cell(size, cells) > 1:
                shifts[:, axis] = torch.randint(_cell(size, cells), (drawn,), generator=generator)
        if antithetic:
            bits = torch.stack((bits, ~bits), 1).flatten(0, 1)
            shifts = shifts.repeat_interleave(2, 0)
        return cls(tuple(spatial), tuple(grid), bits, shifts)

    def __len__(self) -> int:
        """How many masks."""
        return len(self.bits)

    def masks(self, start: int, stop: int) -> Tensor:
        """Masks ``[stop - start, *S]`` in 0..1.

        The grid is enlarged linearly to one cell more than the image along each axis and cut at the shift.
        """
        bits = self.bits[start:stop]
        maps = bits.float().view(len(bits), *self.grid)
        for axis, (size, cells) in enumerate(zip(self.spatial, self.grid, strict=True)):
            place = torch.arange(size) + self.shifts[start:stop, axis, None]
            source = ((place + 0.5) * cells / ((cells + 1) * _cell(size, cells)) - 0.5).clamp(0, cells - 1)
            weights = (1 - (source[:, :, None] - torch.arange(cells)).abs()).clamp_min(0)  # [n, S_a, s_a]
            moved = maps.movedim(axis + 1, -1)
            rows = moved.reshape(len(bits), -1, cells) @ weights.transpose(1, 2)
            maps = rows.view(*moved.shape[:-1], size).movedim(-1, axis + 1)
        return maps.clamp(0, 1)


def even_grid(spatial: Sequence[int], spacing: Sequence[float], longest: int) -> tuple[int, ...]:
    """Cells along each axis, about equal in mm, `longest` of them along the longest axis."""
    extent = [s * mm for s, mm in zip(spatial, spacing, strict=True)]
    cell = max(extent) / longest
    return tuple(max(1, min(s, round(e / cell))) for s, e in zip(spatial, extent, strict=True))


def _cell(size: int, cells: int) -> int:
    return -(-size // cells)
