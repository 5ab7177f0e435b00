"""Outlines of the bands of a map in the pixel coordinates of a slice, for reports and presentation states.

Coordinates are (column, row) in pixels from the outer corner of the first pixel, whose centre is (0.5, 0.5)
(PS3.3 C.10.5.1.2 for presentation states, C.18.6.1.1 for reports).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

#: How far in pixels a simplified outline may be from the full one.
TOLERANCE = 0.25

#: Longest outline in points: the value of an FL element in explicit VR holds at most 65534 bytes (PS3.5 7.1.2).
MOST_POINTS = 4000


def outlines(values: npt.NDArray[np.float32], threshold: float) -> list[Points]:
    """Return the closed outlines of where a slice reaches a threshold, longest first.

    Args:
        values: ``[H, W]`` normalised map of one slice.
        threshold: of the band; a pixel belongs to it when it is at least this.

    Returns:
        Polygons ``[n, 2]`` whose first and last points are equal; holes are outlines of their own. They lie within
        the image: at its border the outline follows the edge.
    """
    from contourpy import contour_generator

    if not (values >= np.float32(threshold)).any():
        return []
    rows, columns = values.shape
    # With a margin of zeros every line is closed; the largest number below the threshold makes ">=" of ">".
    padded = np.pad(values.astype(np.float64), 1)
    level = float(np.nextafter(np.float32(threshold), np.float32(0)))
    found = []
    for line in contour_generator(z=padded).lines(level):
        # Index 0 is the margin's pixel, whose centre is at -0.5.
        points = np.clip(np.asarray(line, dtype=np.float64) - 0.5, 0.0, (columns, rows))
        fewer = simplified(points)
        found.append(fewer if len(fewer) >= 4 else points)
    return sorted(found, key=lambda points: (-area(points), *points[0]))


def simplified(points: Points, tolerance: float = TOLERANCE) -> Points:
    """Return a closed polygon with fewer points, none of the left-out ones further than `tolerance` pixels away.

    Ramer (1972) and Douglas and Peucker (1973), between the first point and the one farthest from it. An outline
    that is still longer than `MOST_POINTS` is simplified again with twice the tolerance.
    """
    far = int(np.linalg.norm(points - points[0], axis=1).argmax())
    keep = np.zeros(len(points), dtype=bool)
    keep[[0, far, -1]] = True
    stack = [(0, far), (far, len(points) - 1)]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        distances = _from_line(points[first + 1 : last], points[first], points[last])
        worst = int(distances.argmax())
        if distances[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            stack += [(first, middle), (middle, last)]
    out = points[keep]
    return out if len(out) <= MOST_POINTS else simplified(out, 2 * tolerance)


def _from_line(points: Points, start: Points, end: Points) -> npt.NDArray[np.float64]:
    """Distances of points from the straight piece between `start` and `end`."""
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0.0, 1.0) if length > 0 else np.zeros(len(points))
    return np.asarray(np.linalg.norm(points - start - share[:, np.newaxis] * along, axis=1))


def area(points: Points) -> float:
    """Area inside a closed polygon in square pixels (shoelace formula)."""
    x, y = points[:-1].T
    u, v = points[1:].T
    return abs(float(np.sum(x * v - u * y))) / 2.0


def encloses(points: Points, at: tuple[float, float]) -> bool:
    """True when a point (column, row) lies inside a closed polygon (even-odd rule)."""
    x, y = points[:-1].T
    u, v = points[1:].T
    crosses = (y > at[1]) != (v > at[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        left = x + (at[1] - y) / (v - y) * (u - x) > at[0]
    return bool(np.count_nonzero(crosses & left) % 2)


def region_at(values: npt.NDArray[np.float32], threshold: float, at: tuple[int, int]) -> tuple[Points, int] | None:
    """Return outline and number of pixels of the connected part of a band that holds a pixel.

    Args:
        values: ``[H, W]`` normalised map of one slice.
        threshold: of the band.
        at: (row, column) of the pixel.

    Returns:
        The outer outline and the count of pixels, holes not counted (neighbours share an edge); None when the pixel is
        not in the band.
    """
    from scipy.ndimage import label

    parts, _ = label(values >= np.float32(threshold))
    number = parts[at]
    if number == 0:
        return None
    centre = (at[1] + 0.5, at[0] + 0.5)
    around = [points for points in outlines(values, threshold) if encloses(points, centre)]
    return (around[0], int(np.count_nonzero(parts == number))) if around else None
