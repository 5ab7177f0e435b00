"""Smooth fields given on a coarse lattice in mm, drawn on any voxel grid by matrices along each axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from sample_cases.shapes import Box, FloatArray, Frame, Vector

#: Standard deviation of white noise after cubic B-spline weights along three axes: (sum of w**2, mean 0.479)**1.5.
_SPLINE_DEVIATION = 0.3317


@dataclass(frozen=True, eq=False)
class NoiseField:
    """A random field of mean 0 and standard deviation 1 that is the same at a point in mm on every grid.

    It is averaged over the size of a voxel, as a scanner does, and repeats after as many steps as there are nodes.

    Attributes:
        nodes: ``[N, N, N]`` white noise.
        step: mm between nodes; structures are about twice as large.
    """

    nodes: FloatArray
    step: float

    @classmethod
    def random(cls, step: float, random: np.random.Generator, n: int = 24) -> Self:
        """Draw a field with nodes every `step` mm."""
        return cls(random.standard_normal((n, n, n), dtype=np.float32) / np.float32(_SPLINE_DEVIATION), step)

    def on(self, frame: Frame) -> FloatArray:
        """Values ``[D, H, W]`` on the voxels of `frame`."""
        lines = (frame.z.ravel(), frame.y.ravel(), frame.x.ravel())
        return _product(
            self.nodes, [self._weights(line, size) for line, size in zip(lines, frame.spacing, strict=True)]
        )

    def _weights(self, line: FloatArray, size: float) -> FloatArray:
        n = self.nodes.shape[0]
        weights = np.zeros((line.size, n), dtype=np.float64)
        rows = np.arange(line.size)
        for shift in (-1 / 3, 0.0, 1 / 3):
            at = (line.astype(np.float64) + shift * size) / self.step
            first = np.floor(at)
            t = at - first
            spline = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
            for k, weight in enumerate(spline):
                np.add.at(weights, (rows, (first.astype(int) + k - 1) % n), weight / 18)
        return weights.astype(np.float32)


@dataclass(frozen=True, eq=False)
class LevelField:
    """A surface as the zero of a function that is given on a lattice and positive inside.

    Attributes:
        values: ``[a, b, c]`` mm, about the distance to the surface.
        lattice: the grid of the values.
    """

    values: FloatArray
    lattice: Frame

    def box(self, frame: Frame) -> Box:
        """The voxels of `frame` that the lattice covers."""
        return frame.box(*self._corners())

    def on(self, frame: Frame) -> FloatArray:
        """Values on the voxels of `frame`, linear between nodes, those of the border beyond it."""
        weights = []
        lines = (frame.z.ravel(), frame.y.ravel(), frame.x.ravel())
        for axis, (line, first) in enumerate(zip(lines, self._corners()[0], strict=True)):
            n = self.values.shape[axis]
            at = np.clip((line.astype(np.float64) - first) / self.lattice.spacing[axis], 0, n - 1)
            away = np.abs(at[:, None] - np.arange(n)[None, :])
            weights.append(np.clip(1 - away, 0, 1).astype(np.float32))
        return _product(self.values, weights)

    def _corners(self) -> tuple[Vector, Vector]:
        lines = (self.lattice.z, self.lattice.y, self.lattice.x)
        return (
            np.array([line.flat[0] for line in lines], dtype=np.float64),
            np.array([line.flat[-1] for line in lines], dtype=np.float64),
        )


def _product(nodes: FloatArray, weights: list[FloatArray]) -> FloatArray:
    """Weights ``[D, a]``, ``[H, b]``, ``[W, c]`` applied to nodes ``[a, b, c]``."""
    planes: FloatArray = np.tensordot(weights[0], nodes, axes=(1, 0))
    values: FloatArray = ((weights[1] @ planes) @ weights[2].T).astype(np.float32, copy=False)
    return values
