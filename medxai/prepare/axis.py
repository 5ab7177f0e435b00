"""Resampling along one axis as a matrix: half-pixel centres, anti-aliased down, linear up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medxai.study import FloatArray

#: Prepared voxels from the centre of the outermost one to a source voxel that still belongs to it: a half, a quarter
#: for the rounding of the axis' length, and a little for the half of a large source voxel.
_BEYOND = 0.8


@dataclass(frozen=True)
class AxisMap:
    """Linear relation between a source axis and a prepared axis.

    ``source_index = offset + step * prepared_index``; a negative step is a flip.

    Attributes:
        source_axis: position of the axis in the source's spatial shape.
        source_size: voxels along it.
        size: voxels along the prepared axis.
        offset: source index of prepared voxel 0 (both at voxel centres).
        step: source voxels per prepared voxel.
    """

    source_axis: int
    source_size: int
    size: int
    offset: float
    step: float

    def forward(self) -> FloatArray:
        """``[size, source_size]`` weights, source -> prepared.

        A triangle filter as wide as the larger of the two voxels: linear interpolation when enlarging,
        anti-aliased when reducing. Rows whose centre lies outside the source are zero.
        """
        return triangle_weights(self.offset + self.step * np.arange(self.size), self.source_size, abs(self.step))

    def backward(self) -> FloatArray:
        """``[source_size, size]`` weights, prepared -> source: plain linear interpolation.

        The prepared axis is a whole number of voxels long, so the outermost source voxels may lie up to a quarter of a
        prepared voxel beyond it; they take its border.
        """
        centres = (np.arange(self.source_size) - self.offset) / self.step
        beyond = (centres > -_BEYOND) & (centres < self.size - 1 + _BEYOND)
        centres = np.where(beyond, np.clip(centres, -0.5, self.size - 0.5), centres)
        return triangle_weights(centres, self.size, 1.0)


def triangle_weights(centres: np.ndarray, size: int, width: float) -> FloatArray:
    """Weights ``[len(centres), size]`` of a triangle of half-width ``max(1, width)`` at each centre.

    Centres within half a voxel of the border take the border voxel; further out the row is zero.

    Args:
        centres: positions in index units of the axis that is read.
        size: its number of voxels.
        width: size of the voxel that is written, in voxels of the axis that is read.
    """
    half = max(1.0, width)
    inside = (centres >= -0.5 - 1e-6) & (centres <= size - 0.5 + 1e-6)
    clamped = np.clip(centres, 0, size - 1) if half == 1.0 else centres
    weights = np.maximum(0.0, 1.0 - np.abs(clamped[:, None] - np.arange(size)[None, :]) / half)
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=(total > 0) & inside[:, None])
    result: FloatArray = weights.astype(np.float32)
    return result


def apply_along(pixels: FloatArray, weights: FloatArray, axis: int) -> FloatArray:
    """Multiply `weights` ``[out, in]`` into one axis of `pixels`; the other axes stay as they are."""
    result: FloatArray
    if axis == pixels.ndim - 1:
        result = np.matmul(pixels, weights.T)
        return result
    shape = pixels.shape
    folded = pixels.reshape(int(np.prod(shape[:axis], dtype=np.int64)), shape[axis], -1)
    result = np.matmul(weights[None], folded)
    return result.reshape(*shape[:axis], weights.shape[0], *shape[axis + 1 :])
