"""Slices that are no regular grid (tilted gantry, uneven distances), and the straight grid through them: both ways."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stack:
    """Where parallel slices lie against a straight grid with the same in-plane directions.

    The grid begins at the lowest slice and spans the places of all of them; a last plane beyond the highest slice
    repeats it. Both ways are linear interpolation: along the normal between neighbouring slices, and within the plane
    by the lateral displacement of each slice. A map goes back to the slices themselves, so nothing is ever shown where
    nothing was seen.

    Attributes:
        distances: ``[D]`` mm of each slice along the normal from the first, ascending.
        shifts: ``[D, 2]`` lateral displacement of each slice in voxels along ``(h, w)``, against a line through the
            grid's first voxels along the normal; not negative.
        size: rows and columns of a slice.
        step: mm between planes of the straight grid.
        affine: straight index ``(d, h, w)`` -> LPS mm.
        words: what made a correction necessary.
    """

    distances: Matrix
    shifts: Matrix
    size: tuple[int, int]
    step: float
    affine: Matrix
    words: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(D', H', W')`` of the straight grid."""
        planes = int(np.ceil(self.distances[-1] / self.step - 1e-6)) + 1
        rows, columns = (n + int(np.ceil(most - 1e-6)) for n, most in zip(self.size, self.shifts.max(0), strict=True))
        return (planes, rows, columns)

    def straight(self, slices: Array) -> Array:
        """Slices ``[..., D, H, W]`` on the straight grid ``[..., D', H', W']``; zero outside."""
        rows, columns = self.shape[1:]
        moved = np.zeros((*slices.shape[:-2], rows, columns), np.float32)
        for d, shift in enumerate(self.shifts):
            moved[..., d, :, :] = _sampled(slices[..., d, :, :], -shift, (rows, columns))
        return _along(moved, self._planes)

    def sliced(self, grid: Array) -> Array:
        """Values of the straight grid ``[..., D', H', W']`` at the voxels of the slices: ``[..., D, H, W]``."""
        levels = _along(grid, self._levels)
        found = np.zeros((*grid.shape[:-3], len(self.distances), *self.size), np.float32)
        for d, shift in enumerate(self.shifts):
            found[..., d, :, :] = _sampled(levels[..., d, :, :], shift, self.size)
        return found

    @property
    def _heights(self) -> Matrix:
        """``[D']`` mm of the planes along the normal."""
        return np.arange(self.shape[0], dtype=np.float64) * self.step

    @cached_property
    def _planes(self) -> Array:
        """``[D', D]`` weights of the slices in each plane of the straight grid."""
        return _linear(self._heights, self.distances)

    @cached_property
    def _levels(self) -> Array:
        """``[D, D']`` weights of the planes at each slice."""
        return _linear(self.distances, self._heights)


def _linear(wanted: Matrix, known: Matrix) -> Array:
    """``[wanted, known]`` weights of linear interpolation; beyond the ends the last value holds."""
    after = np.clip(np.searchsorted(known, wanted, side="right"), 1, max(len(known) - 1, 1))
    weights = np.zeros((len(wanted), len(known)), np.float32)
    for row, (place, right) in enumerate(zip(wanted, after, strict=True)):
        if len(known) == 1:
            weights[row, 0] = 1
            continue
        share = np.clip((place - known[right - 1]) / (known[right] - known[right - 1]), 0, 1)
        weights[row, right - 1], weights[row, right] = 1 - share, share
    return weights


def _along(values: Array, weights: Array) -> Array:
    """`weights` ``[out, in]`` into the third axis from the end."""
    folded = np.ascontiguousarray(values).reshape(*values.shape[:-2], -1)
    found: Array = np.matmul(weights, folded)
    return found.reshape(*values.shape[:-3], len(weights), *values.shape[-2:])


def _sampled(plane: Array, offset: Matrix, size: tuple[int, int]) -> Array:
    """Values of ``[..., H, W]`` at ``index + offset``: ``[..., *size]``, linear; zero outside."""
    found = plane
    for axis, (move, count) in enumerate(zip(offset, size, strict=True), start=-2):
        found = _moved(found, float(move), count, axis)
    return found


def _moved(values: Array, offset: float, count: int, axis: int) -> Array:
    whole = int(np.floor(offset + 1e-9))
    share = np.float32(offset - whole)
    lower = _cut(values, whole, count, axis)
    if share < 1e-6:
        return lower
    return (1 - share) * lower + share * _cut(values, whole + 1, count, axis)


def _cut(values: Array, start: int, count: int, axis: int) -> Array:
    """Entries ``start`` to ``start + count`` of an axis, zero where there are none."""
    held = values.shape[axis]
    shape = list(values.shape)
    shape[axis] = count
    found = np.zeros(shape, np.float32)
    low, high = max(start, 0), min(start + count, held)
    if low < high:
        into: list[slice] = [slice(None)] * values.ndim
        source = list(into)
        into[axis], source[axis] = slice(low - start, high - start), slice(low, high)
        found[tuple(into)] = values[tuple(source)]
    return found
