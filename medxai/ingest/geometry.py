"""The geometry check: are these planes a regular grid in the patient? If not, why not, in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medxai.errors import GeometryError
from medxai.ingest.split import plane_name
from medxai.stack import Stack
from medxai.study import Affine

#: Directions equal within this (about 0.06 degrees); scanners write six digits.
_DIRECTION_TOLERANCE = 1e-3
#: Lateral drift of slice positions per mm along the normal that counts as gantry tilt (0.3 degrees).
_TILT_TOLERANCE = 5e-3
#: Slice distances may differ by this share, or by `_SPACING_FLOOR_MM` when that is more.
_SPACING_TOLERANCE = 0.01
_SPACING_FLOOR_MM = 0.02
#: Lateral displacement of a slice in voxels that is rounding of its header.
_LEAST_SHIFT = 1e-3
#: Planes of a straightened grid are at most so many times denser than the slices mostly are.
_FINEST = 4


@dataclass(frozen=True)
class Plane:
    """Geometry of one slice as its header tells it (PS3.3 C.7.6.2).

    Attributes:
        position: LPS mm of the centre of the first voxel.
        orientation: row direction (growing column index) then column direction, 6 cosines.
        spacing: mm between rows, mm between columns.
        size: rows, columns.
    """

    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Stacked:
    """Slices in order.

    Attributes:
        order: indices into the given planes.
        affine: index ``(d, h, w)`` -> LPS mm; sheared where the gantry was tilted, and with the mean distance of the
            slices where it varies.
        positions: ``[D, 3]`` LPS mm.
        stack: the way to a straight grid, where this is none.
    """

    order: list[int]
    affine: Affine
    positions: Affine
    stack: Stack | None = None


def stack_planes(
    planes: Sequence[Plane], study: str, thickness: float | None = None, largest_gap_mm: float | None = None
) -> Stacked:
    """Order planes along their normal and derive the grid.

    Args:
        planes: one per slice, in any order.
        study: name for messages.
        thickness: slice thickness in mm, used as the spacing of a single slice.
        largest_gap_mm: straighten tilted and unevenly spaced slices that are at most so far apart; None refuses them.

    Raises:
        GeometryError: mixed orientations, sizes or spacings, duplicate positions, and, where they are not to be
            straightened, tilt, missing or unevenly spaced slices; all faults in one message.
    """
    _same(planes, study)
    first = planes[0]
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    if abs(np.linalg.norm(row) - 1) > 1e-2 or abs(np.linalg.norm(column) - 1) > 1e-2 or abs(row @ column) > 1e-2:
        msg = "ImageOrientationPatient is not a pair of orthogonal unit vectors"
        raise GeometryError(msg, study=study)
    normal = np.cross(row, column)
    positions = np.array([plane.position for plane in planes], dtype=np.float64)
    distance = positions @ normal
    order = [int(i) for i in np.argsort(distance, kind="stable")]
    positions, distance = positions[order], distance[order]

    step, faults = normal * (thickness or 1.0), []
    if len(planes) > 1:
        faults = _faults(positions, distance, normal, study)
        step = (positions[-1] - positions[0]) / (len(planes) - 1)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = column * first.spacing[0]
    affine[:3, 2] = row * first.spacing[1]
    affine[:3, 3] = positions[0]
    if not faults:
        return Stacked(order, affine, positions)
    words = "; ".join(faults)
    if largest_gap_mm is None:
        way = "--straighten MM, or `geometry: straighten` in a configuration, puts it on one"
        msg = f"{words}: not a regular grid, so a map could not be placed; {way}"
        raise GeometryError(msg, study=study)
    gap = float(np.diff(distance).max())
    if gap > largest_gap_mm:
        msg = (
            f"{words}: not a regular grid, and not straightened, since {gap:.2f} mm between slices are more than "
            f"`largest_gap_mm` ({largest_gap_mm:g})"
        )
        raise GeometryError(msg, study=study)
    return Stacked(order, affine, positions, _straight(positions, distance, (column, row, normal), first, words))


def _straight(
    positions: Affine, distance: np.ndarray, axes: tuple[np.ndarray, np.ndarray, np.ndarray], plane: Plane, words: str
) -> Stack:
    """The straight grid: in-plane axes of the slices, planes as near to one another as the nearest slices."""
    column, row, normal = axes
    offset = positions - positions[0]
    shifts = np.stack([offset @ column / plane.spacing[0], offset @ row / plane.spacing[1]], axis=1)
    shifts = np.where(np.abs(shifts) < _LEAST_SHIFT, 0.0, shifts)
    lowest = shifts.min(axis=0)
    gaps = np.diff(distance)
    step = float(max(gaps.min(), np.median(gaps) / _FINEST))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = normal * step, column * plane.spacing[0], row * plane.spacing[1]
    affine[:3, 3] = positions[0] + lowest[0] * affine[:3, 1] + lowest[1] * affine[:3, 2]
    return Stack(distance - distance[0], shifts - lowest, plane.size, step, affine, words)


def _same(planes: Sequence[Plane], study: str) -> None:
    groups: list[tuple[Plane, int]] = []
    for plane in planes:
        for i, (known, count) in enumerate(groups):
            if np.allclose(known.orientation, plane.orientation, atol=_DIRECTION_TOLERANCE):
                groups[i] = (known, count + 1)
                break
        else:
            groups.append((plane, 1))
    if len(groups) > 1:
        counts = " and ".join(f"{count} {plane_name(plane.orientation)}" for plane, count in groups[:4])
        msg = f"{len(groups)} orientations in one series ({counts} slices): split the series before analysis"
        raise GeometryError(msg, study=study)
    for what, values in (
        ("image sizes", Counter(plane.size for plane in planes)),
        ("pixel spacings", Counter(tuple(round(s, 4) for s in plane.spacing) for plane in planes)),
    ):
        if len(values) > 1:
            listed = ", ".join("x".join(f"{v:g}" for v in value) for value in list(values)[:4])
            msg = f"{len(values)} {what} in one series ({listed}): split the series before analysis"
            raise GeometryError(msg, study=study)


def _faults(positions: Affine, distance: np.ndarray, normal: np.ndarray, study: str) -> list[str]:
    """What keeps the slices from being a regular grid.

    Raises:
        GeometryError: places are occupied twice.
    """
    gaps = np.diff(distance)
    duplicates = int((gaps < 1e-3).sum())
    if duplicates:
        where = distance[:-1][gaps < 1e-3]
        msg = (
            f"{duplicates} duplicate slice position{'s' if duplicates > 1 else ''} "
            f"(first at {where[0]:.2f} mm along the normal): several volumes in one series, or a slice sent twice"
        )
        raise GeometryError(msg, study=study)
    faults = []
    span = positions[-1] - positions[0]
    lateral = span - (span @ normal) * normal
    slope = float(np.linalg.norm(lateral) / (span @ normal))
    if slope > _TILT_TOLERANCE:
        faults.append(f"gantry tilt {np.degrees(np.arctan(slope)):.1f} degrees")
    else:
        straight = positions - positions[0] - np.outer(distance - distance[0], normal)
        drift = float(np.linalg.norm(straight, axis=1).max())
        if drift > max(0.1, 0.01 * float(np.median(gaps))):
            faults.append(f"slices wander {drift:.2f} mm off their common axis")
    typical = float(np.median(gaps))
    uneven = np.abs(gaps - typical) > max(_SPACING_FLOOR_MM, _SPACING_TOLERANCE * typical)
    if uneven.any():
        faults.append(_gap_words(gaps, distance, uneven, typical))
    return faults


def _gap_words(gaps: np.ndarray, distance: np.ndarray, uneven: np.ndarray, typical: float) -> str:
    smallest = float(gaps.min())
    multiples = gaps / smallest
    where = float(distance[:-1][uneven][0])
    missing = int(np.round(multiples).sum() - len(gaps))
    if missing and np.abs(multiples - np.round(multiples)).max() < 0.05:
        word = "slice" if missing == 1 else "slices"
        at = float(distance[:-1][gaps > 1.5 * smallest][0])
        return f"{missing} missing {word} (gap of {gaps.max():.2f} mm after {at:.2f} mm, spacing {smallest:.2f} mm)"
    listed = ", ".join(f"{value:.2f}" for value in sorted({round(float(gap), 2) for gap in gaps})[:6])
    return f"slice gaps of {listed} mm (first after {where:.2f} mm, typical {typical:.2f} mm)"
