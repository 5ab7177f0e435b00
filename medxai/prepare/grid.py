"""The prepared grid: which source axis feeds which network axis, at what step, and the way back.

The prepared grid keeps the directions of the source axes (up to order and sign), so resampling is
separable and the way back is exact interpolation at the source voxels: an oblique acquisition is never
rotated, only its axes are ordered to superior, posterior, left. Slices that are no regular grid are put on the
straight grid through them first, and maps go back to the slices themselves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medxai.errors import MismatchError
from medxai.prepare.axis import AxisMap, apply_along
from medxai.prepare.spec import PreparationSpec
from medxai.stack import Stack
from medxai.study import Affine, FloatArray, Volume

#: Directions of growing index of the prepared axes (d, h, w): superior, posterior, left, in LPS.
_CANONICAL = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])

#: Values of a map that are resampled at once.
_SLAB = 1 << 20


@dataclass(frozen=True, eq=False)
class Grid:
    """Separable relation between the source grid of a volume and the prepared grid.

    Attributes:
        axes: one `AxisMap` per prepared axis, in prepared order. A leading time axis is not included:
            frames are kept one to one.
        affine: prepared index ``(d, h, w)`` -> LPS mm.
        frames: number of frames of a cine, 0 when there is no time axis.
        stack: where the source is no regular grid, the straight grid that the axes refer to.
    """

    axes: tuple[AxisMap, ...]
    affine: Affine
    frames: int = 0
    stack: Stack | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the prepared grid, with the time axis first when there is one."""
        sizes = tuple(axis.size for axis in self.axes)
        return (self.frames, *sizes) if self.frames else sizes

    def forward(self, pixels: FloatArray, fill: float) -> FloatArray:
        """Resample ``[C, *S]`` to ``[C, *S']``; what lies outside the source becomes `fill`."""
        lead = pixels.ndim - len(self.axes)
        result = pixels - np.float32(fill) if fill else pixels
        if self.stack is not None:
            result = self.stack.straight(result)
        # The strongest reduction first keeps the intermediate arrays small.
        for axis in sorted(self.axes, key=lambda a: a.size / a.source_size):
            if not _is_identity(axis):
                result = apply_along(result, axis.forward(), lead + axis.source_axis)
        order = [*range(lead), *(lead + axis.source_axis for axis in self.axes)]
        result = np.ascontiguousarray(result.transpose(order), dtype=np.float32)
        return result + np.float32(fill) if fill else result

    def backward(self, prepared: FloatArray) -> FloatArray:
        """Sample ``[*S']`` at the centres of the source voxels: ``[*S]``, linear, zero outside.

        Little more memory than the result is needed. It is `prepared` itself where the two grids are the same.
        """
        lead = prepared.ndim - len(self.axes)
        back = [0] * len(self.axes)
        for position, axis in enumerate(self.axes):
            back[axis.source_axis] = position
        moved = prepared.transpose([*range(lead), *(lead + position for position in back)])
        weights = [None if _is_identity(axis) else axis.backward() for axis in (self.axes[i] for i in back)]
        if all(matrix is None for matrix in weights):
            result = moved
        elif lead:
            result = np.stack([_sample(frame, weights) for frame in moved])
        else:
            result = _sample(moved, weights)
        if self.stack is not None:
            result = self.stack.sliced(result)
        return np.ascontiguousarray(result, dtype=np.float32)


def _sample(values: FloatArray, weights: Sequence[FloatArray | None]) -> FloatArray:
    """Multiply a matrix ``[out, in]`` into each axis, None for none, some planes of the result at a time."""
    shape = [n if matrix is None else len(matrix) for n, matrix in zip(values.shape, weights, strict=True)]
    result = np.empty(shape, np.float32)
    # The smallest growth first keeps the intermediate arrays small.
    order = sorted(range(1, len(shape)), key=lambda axis: shape[axis] / values.shape[axis])
    planes = max(1, _SLAB // math.prod(shape[1:]))
    for first in range(0, shape[0], planes):
        rows = slice(first, first + planes)
        if (matrix := weights[0]) is None:
            part = values[rows]
        else:
            used = np.flatnonzero(matrix[rows].any(0))
            low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)
            part = apply_along(np.ascontiguousarray(values[low:high]), matrix[rows, low:high], 0)
        for axis in order:
            if (matrix := weights[axis]) is not None:
                part = apply_along(np.ascontiguousarray(part), matrix, axis)
        result[rows] = part
    return result


def plan_grid(volume: Volume, spec: PreparationSpec) -> Grid:
    """Decide the prepared grid of `volume` for a network that expects `spec`.

    Volumes keep the centre of their field of view; an axis shorter than the window is padded to it.

    Raises:
        MismatchError: the volume's dimensions do not fit the network, or spacing is needed but unknown.
    """
    if spec.axes == "DHW":
        if volume.axes != "DHW":
            msg = f"the model reads volumes, the study is {'a cine' if volume.axes == 'THW' else 'a single image'}"
            raise MismatchError(msg)
        return _plan_volume(volume, spec)
    if volume.axes == "DHW":
        msg = "the model reads single images or cines, the study is a volume"
        raise MismatchError(msg)
    return _plan_image(volume, spec)


def _plan_volume(volume: Volume, spec: PreparationSpec) -> Grid:
    affine = volume.affine if volume.stack is None else volume.stack.affine
    shape = volume.shape if volume.stack is None else volume.stack.shape
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = (affine[:3, :3] / spacing).T
    cosines = _CANONICAL @ directions.T
    order = max(
        itertools.permutations(range(3)),
        key=lambda p: float(sum(abs(cosines[i, p[i]]) for i in range(3))),
    )
    assert spec.spacing_mm is not None  # noqa: S101 - PreparationSpec guarantees it
    axes = []
    for prepared, source in enumerate(order):
        step = spec.spacing_mm[prepared] / spacing[source]
        axes.append(_centred(source, shape[source], step, spec.window[prepared], cosines[prepared, source] < 0))
    return Grid(tuple(axes), _prepared_affine(affine, axes), stack=volume.stack)


def _plan_image(volume: Volume, spec: PreparationSpec) -> Grid:
    height, width = volume.shape[-2:]
    if spec.spacing_mm is None:
        choose = min if spec.fit == "crop" else max
        step = choose(height / spec.window[0], width / spec.window[1])
        steps = (step, step)
    elif volume.calibrated:
        steps = (spec.spacing_mm[0] / volume.spacing[1], spec.spacing_mm[1] / volume.spacing[2])
    else:
        msg = "the model needs millimetres, the image has no pixel spacing or region calibration"
        raise MismatchError(msg)
    axes = [
        _centred(i, size, steps[i], spec.window[i], flip=False, exact=spec.spacing_mm is None)
        for i, size in enumerate((height, width))
    ]
    frames = volume.shape[0] if volume.axes == "THW" else 0
    return Grid(tuple(axes), _prepared_affine(volume.affine, axes, first=1), frames)


def _centred(source: int, source_size: int, step: float, window: int, flip: bool, *, exact: bool = False) -> AxisMap:
    size = window if exact else max(window, round(source_size / step))
    step = -step if flip else step
    return AxisMap(source, source_size, size, (source_size - 1) / 2 - step * (size - 1) / 2, step)


def _prepared_affine(affine: Affine, axes: list[AxisMap], first: int = 0) -> Affine:
    """Compose the source affine with prepared index -> source index; `first` skips the d column."""
    matrix = np.eye(4)
    if not first:
        matrix[:3, :3] = 0
    for prepared, axis in enumerate(axes):
        row, column = first + axis.source_axis, first + prepared
        matrix[row, column] = axis.step
        matrix[row, 3] = axis.offset
    return affine @ matrix


def _is_identity(axis: AxisMap) -> bool:
    return axis.step == 1.0 and abs(axis.offset) < 1e-9 and axis.size == axis.source_size
