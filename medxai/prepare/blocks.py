"""Coarse grids by means over blocks of whole voxels: what takes millimetres to be told needs no finer ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.study import FloatArray

Region = npt.NDArray[np.bool_]
Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Means over blocks of a volume.

    Attributes:
        values: ``[D', H', W']``.
        factors: voxels averaged along each axis.
        spacing: of the blocks in mm.
    """

    values: FloatArray
    factors: tuple[int, int, int]
    spacing: Triple

    @property
    def ml(self) -> float:
        """Volume of a block in ml."""
        return float(np.prod(self.spacing)) / 1000.0


def block_means(values: FloatArray, spacing: Triple, target_mm: float) -> Blocks:
    """Average ``[D, H, W]`` over blocks about as large as `target_mm`; axes that are coarser stay as they are.

    Args:
        values: on the fine grid; voxels at the ends that fill no block are left out.
        spacing: mm between voxels along the axes.
        target_mm: wanted spacing; exceeded by a quarter of a voxel at most.
    """
    wanted = [max(1, min(int(target_mm / s + 0.25), n)) for s, n in zip(spacing, values.shape, strict=True)]
    f = (wanted[0], wanted[1], wanted[2])
    d, h, w = (n // k for n, k in zip(values.shape, f, strict=True))
    cut = values[: d * f[0], : h * f[1], : w * f[2]].reshape(d, f[0], h, f[1], w, f[2])
    means: FloatArray = cut.mean(axis=(1, 3, 5), dtype=np.float32)
    return Blocks(means, f, (spacing[0] * f[0], spacing[1] * f[1], spacing[2] * f[2]))


def enlarged(region: Region, factors: tuple[int, int, int], shape: tuple[int, ...]) -> Region:
    """The voxels ``[D, H, W]`` of a region of blocks; ends that fill no block take after their neighbours.

    Args:
        region: ``[D', H', W']``.
        factors: voxels of a block along each axis.
        shape: of the fine grid.
    """
    index = [np.minimum(np.arange(n) // k, m - 1) for n, k, m in zip(shape, factors, region.shape, strict=True)]
    out: Region = region[np.ix_(*index)]
    return out
