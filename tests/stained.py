"""Synthetic tissue of two stains with known vectors and amounts: nuclei of the first, fibres of the second, glass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Amounts = npt.NDArray[np.float64]
Colours = npt.NDArray[np.uint8]

#: Haematoxylin and eosin, haematoxylin and DAB (Ruifrok and Johnston 2001), and a bluer pair of H&E, as columns.
HE = np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]])
HDAB = np.array([[0.65, 0.27], [0.70, 0.57], [0.29, 0.78]])
OTHER_HE = np.array([[0.55, 0.20], [0.74, 0.82], [0.39, 0.53]])


def unit(vectors: Amounts) -> Amounts:
    """Return the vectors with columns of unit length."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=0))


def amounts(shape: tuple[int, int], seed: int = 0, glass: float = 0.25) -> Amounts:
    """Return ``[H, W, 2]`` amounts of stain: wavy fibres, round nuclei, and a share of glass at the left."""
    draw = np.random.default_rng(seed)
    rows, columns = np.indices(shape).astype(float)
    found = np.zeros((*shape, 2))
    waves = np.sin(rows / 5 + 2 * np.sin(columns / 17)) * np.cos(columns / 7)
    found[..., 1] = 0.25 + 0.15 * waves + 0.04 * draw.standard_normal(shape)
    for _ in range(shape[0] * shape[1] // 250):
        centre = draw.uniform((0, 0), shape)
        radius = draw.uniform(3, 5)
        top, left = (max(0, int(c - 6)) for c in centre)
        part = (slice(top, top + 13), slice(left, left + 13))
        inside = (rows[part] - centre[0]) ** 2 + (columns[part] - centre[1]) ** 2 < radius**2
        found[part][inside] = [draw.uniform(0.4, 0.8), 0.01]
    found += 0.01 * draw.standard_normal(found.shape)
    found = np.clip(found, 0, None)
    found[:, : round(glass * shape[1])] = 0
    return found


def colours(given: Amounts, vectors: Amounts = HE, white: float = 244.0) -> Colours:
    """Return the RGB of amounts of stain over glass of a grey value."""
    density = given @ unit(vectors).T
    return np.asarray(np.rint(np.clip((white + 1) * 10.0**-density - 1, 0, 255)), np.uint8)


def angles(found: Amounts, truth: Amounts) -> list[float]:
    """Return the degrees between the columns of two pairs of vectors."""
    cosines = np.clip((unit(found) * unit(truth)).sum(0), -1, 1)
    return [float(v) for v in np.degrees(np.arccos(cosines))]
