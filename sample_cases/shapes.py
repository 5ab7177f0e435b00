"""Drawing in millimetres on a voxel grid: ellipsoids, vessels as capsules, correlated noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]
Affine = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and half axes in mm, both ``(z, y, x)``."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of a vessel: end points ``(z, y, x)`` in mm and radius in mm."""

    start: Vector
    end: Vector
    radius: float


@dataclass(frozen=True, eq=False)
class Frame:
    """A voxel grid in mm: coordinate arrays that broadcast to ``[D, H, W]``.

    Attributes:
        shape: voxels ``(D, H, W)``.
        spacing: mm along them.
        z: ``[D, 1, 1]`` mm, and `y`, `x` likewise along their axes.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    z: FloatArray
    y: FloatArray
    x: FloatArray

    @classmethod
    def centred(
        cls,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        centre: tuple[float, float, float],
    ) -> Self:
        """Return the grid whose middle lies at `centre` ``(z, y, x)`` mm."""
        lines = [
            ((np.arange(n) - (n - 1) / 2) * step + middle).astype(np.float32)
            for n, step, middle in zip(shape, spacing, centre, strict=True)
        ]
        return cls(shape, spacing, lines[0][:, None, None], lines[1][None, :, None], lines[2][None, None, :])

    def part(self, box: Box) -> Self:
        """The grid of the voxels in `box`."""
        z, y, x = self.z[box[0]], self.y[:, box[1]], self.x[:, :, box[2]]
        return type(self)((z.size, y.size, x.size), self.spacing, z, y, x)

    def affine(self, origin_mm: Sequence[float], offset_mm: Sequence[float], tilt_degrees: float) -> Affine:
        """Index -> LPS mm; the centre of the grid is at `origin_mm` plus `offset_mm` turned to LPS order."""
        a, b = np.deg2rad(tilt_degrees), np.deg2rad(tilt_degrees / 2)
        about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        turned = about_y @ about_x
        affine = np.eye(4)
        for column, lps in enumerate((2, 1, 0)):
            affine[:3, column] = turned[:, lps] * self.spacing[column]
        middle = (np.array(self.shape) - 1) / 2
        affine[:3, 3] = np.array(origin_mm) + np.array(offset_mm)[::-1] - affine[:3, :3] @ middle
        return affine

    def index_of(self, point: Vector) -> Vector:
        """Fractional index ``(d, h, w)`` of a point ``(z, y, x)`` mm."""
        first = np.array([self.z.flat[0], self.y.flat[0], self.x.flat[0]], dtype=np.float64)
        index: Vector = (np.asarray(point) - first) / np.array(self.spacing)
        return index

    def box(self, low: Vector, high: Vector) -> tuple[slice, slice, slice]:
        """Slices of the voxels between two corners in mm, clipped to the grid (possibly empty)."""
        a = np.clip(np.floor(self.index_of(low)).astype(int), 0, self.shape)
        b = np.clip(np.ceil(self.index_of(high)).astype(int) + 1, 0, self.shape)
        return (slice(a[0], b[0]), slice(a[1], b[1]), slice(a[2], b[2]))

    def local(self, box: tuple[slice, slice, slice], centre: Vector) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Coordinates in `box` relative to `centre`, broadcastable."""
        return (
            self.z[box[0]] - np.float32(centre[0]),
            self.y[:, box[1]] - np.float32(centre[1]),
            self.x[:, :, box[2]] - np.float32(centre[2]),
        )

    def around(
        self, centre: Vector, reach: float
    ) -> tuple[tuple[slice, slice, slice], FloatArray, tuple[FloatArray, ...]]:
        """Box of half width `reach` mm, distance to `centre` in it, and the unit vector's components."""
        box = self.box(centre - reach, centre + reach)
        z, y, x = self.local(box, centre)
        distance = np.sqrt(z * z + y * y + x * x)
        safe = np.maximum(distance, 1e-3)
        return box, distance, (z / safe, y / safe, x / safe)

    def coverage_at(self, field: FloatArray, centre: Vector, radius: float) -> float:
        """Mean of `field` in the sphere; 0 when the sphere leaves the grid."""
        index, reach = self.index_of(centre), radius / np.array(self.spacing)
        if (index - reach < 0).any() or (index + reach > np.array(self.shape) - 1).any():
            return 0.0
        box, distance, _ = self.around(centre, radius)
        return float(field[box][distance <= radius].mean())


def cover_ellipsoid(frame: Frame, shape: Ellipsoid, edge_mm: float = 2.0) -> FloatArray:
    """Coverage 0..1 ``[D, H, W]`` of an ellipsoid with a border `edge_mm` wide."""
    terms = [
        ((line - centre) / half) ** 2
        for line, centre, half in zip((frame.z, frame.y, frame.x), shape.centre, shape.half, strict=True)
    ]
    radius = np.sqrt(terms[0] + terms[1] + terms[2])
    cover: FloatArray = np.clip((1 - radius) * (min(shape.half) / edge_mm) + 0.5, 0, 1).astype(np.float32)
    return cover


def branch(
    segments: list[Segment],
    start: Vector,
    direction: Vector,
    length: float,
    radius: float,
    levels: int,
    random: np.random.Generator,
) -> None:
    """Append a vessel tree: each piece splits in two that are thinner and shorter by a fixed ratio."""
    direction = direction / np.linalg.norm(direction)
    end = start + direction * length * random.uniform(0.8, 1.2)
    segments.append(Segment(start, end, radius))
    if levels <= 1:
        return
    for _ in range(2):
        branch(segments, end, direction + random.normal(0, 0.5, 3), length * 0.72, radius * 0.74, levels - 1, random)


def paint_segments(frame: Frame, segments: list[Segment]) -> FloatArray:
    """Coverage 0..1 ``[D, H, W]`` of vessels; thinner than a voxel, they fade instead of breaking up."""
    canvas = np.zeros(frame.shape, dtype=np.float32)
    blur = float(np.mean(frame.spacing))
    for segment in segments:
        margin = segment.radius + blur
        low, high = np.minimum(segment.start, segment.end), np.maximum(segment.start, segment.end)
        box = frame.box(low - margin, high + margin)
        part = canvas[box]
        if not part.size:
            continue
        z, y, x = frame.local(box, segment.start)
        axis = (segment.end - segment.start).astype(np.float32)
        along = np.clip((z * axis[0] + y * axis[1] + x * axis[2]) / np.float32(axis @ axis), 0, 1)
        away = np.sqrt((z - along * axis[0]) ** 2 + (y - along * axis[1]) ** 2 + (x - along * axis[2]) ** 2)
        cover = np.clip((segment.radius - away) / blur + 0.5, 0, 1) * min(1.0, 2 * segment.radius / blur)
        np.maximum(part, cover, out=part)
    return canvas


def smooth_noise(shape: tuple[int, int, int], sigma: float, random: np.random.Generator) -> FloatArray:
    """Gaussian noise of standard deviation `sigma`, correlated over neighbouring voxels of a slice."""
    noise = random.standard_normal(shape, dtype=np.float32)
    for axis in (1, 2):
        noise = 0.5 * noise + 0.25 * (np.roll(noise, 1, axis) + np.roll(noise, -1, axis))
    # Each pass multiplies the variance by 1/4 + 2/16.
    return noise * np.float32(sigma / 0.375)
