"""Which block's map agrees best with what is known of the nuclei (DoNuSeg's dynamic CAM selection, sections alpha, l*).

In training the known is the label from points, at inference discs about the network's own seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int8]

#: Value of a pixel of which nothing is known.
IGNORED = -1
#: theta: a map's share of its range above which it says nucleus.
THRESHOLD = 0.4


def agreement(maps: Bools, known: Ints) -> Floats:
    """``|C and M| / |C or M|`` of every map ``[L, H, W]`` with the label ``[H, W]``, on pixels that are not ignored.

    0 where neither says nucleus.
    """
    valid = known != IGNORED
    truth = (known == 1)[valid]
    found = maps[:, valid]
    both, either = (found & truth).sum(1), (found | truth).sum(1)
    return np.asarray(both / np.maximum(either, 1))


def best_block(alpha: Floats) -> int:
    """Index of the greatest agreement; of equal ones the deeper block."""
    return int(len(alpha) - 1 - np.argmax(alpha[::-1]))


def discs(shape: tuple[int, int], points: npt.NDArray[Any], radius: float) -> Bools:
    """``[H, W]`` pixels no farther than `radius` from one of the points ``[n, 2]``; a point's own pixel always."""
    found = np.zeros(shape, bool)
    reach = int(np.ceil(radius))
    for row, column in np.asarray(points, float).reshape(-1, 2):
        top, left = max(0, round(row) - reach - 1), max(0, round(column) - reach - 1)
        # A point of another tile may lie before the first pixel, where a negative end would count from the other side.
        bottom, right = max(top, round(row) + reach + 2), max(left, round(column) + reach + 2)
        rows, columns = np.ogrid[top:bottom, left:right]
        part = found[top:bottom, left:right]
        part |= ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)[: part.shape[0], : part.shape[1]]
        if 0 <= round(row) < shape[0] and 0 <= round(column) < shape[1]:
            found[round(row), round(column)] = True
    return found
