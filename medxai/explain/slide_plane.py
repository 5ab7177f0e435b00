"""The plane of cells of a slide's map, and where it lies on a level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medxai.study import Affine, FloatArray, Volume


def plane_affine(volume: Volume, cell_mm: Sequence[float]) -> Affine:
    """Index of a cell -> mm of the slide; the plane's corner is that of the level.

    Args:
        volume: the level.
        cell_mm: size of a cell, see `medxai.study.Explanation`.
    """
    affine: Affine = volume.affine.copy()
    for axis in (1, 2):
        size = np.linalg.norm(affine[:3, axis])
        step = affine[:3, axis] / size
        # From the centre of the first pixel to that of the first cell.
        affine[:3, 3] += step * (cell_mm[axis] - size) / 2
        affine[:3, axis] = step * cell_mm[axis]
    return affine


def place_cells(cells: FloatArray, cell_mm: Sequence[float], volume: Volume) -> FloatArray:
    """Draw a plane of cells on a level: ``[h, w]`` -> ``[H, W]``, linear between the centres of cells.

    Args:
        cells: its corner is that of the slide.
        cell_mm: size of a cell, see `Explanation`.
        volume: the level.
    """
    from scipy.ndimage import map_coordinates

    size = [np.linalg.norm(volume.affine[:3, axis]) for axis in (1, 2)]
    places = [
        (np.arange(count) + 0.5) * mm / cell - 0.5
        for count, mm, cell in zip(volume.shape, size, cell_mm[1:], strict=True)
    ]
    found = np.empty(volume.shape, np.float32)
    for start in range(0, volume.shape[0], 512):  # in strips, for memory
        rows = places[0][start : start + 512]
        at = np.broadcast_arrays(rows[:, None], places[1][None])
        found[start : start + 512] = map_coordinates(cells, at, order=1, mode="nearest")
    return found
