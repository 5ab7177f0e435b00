"""The pleural line of a lung ultrasound frame, found in the picture alone, and where findings lie with respect to it.

The pleural line is the first bright, continuous, roughly horizontal interface below the chest wall; everything below
it is lung or artefact of it (Volpicelli et al. 2012, Intensive Care Med 38:577). It is found as the path from left to
right that gathers most ridge response, and believed only if it gathers clearly more than the same columns do when
they are shifted up and down at random, which leaves everything but continuity. A detector without annotations is no
reference: priors made with it guide a training, they do not measure one.

Rows count from 0 at the top (probe side), columns from the left; lengths are shares of the frame's height.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from medxai.learn.prior_guided import to_grid

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

#: Stored with cached priors; to be raised when what is found changes.
VERSION = 1
#: Grid on which the line is looked for.
_GRID = (160, 160)
#: Ridge filter: standard deviation across and along the line, in cells of the grid.
_ACROSS, _ALONG = 1.6, 3.0
#: Depth below the skin, as a share of the height, and how welcome a line is there. Above are layers of the chest wall,
#: below are its reverberations (A-lines).
_DEPTHS, _WELCOME = (0.02, 0.09, 0.4, 0.6, 0.8), (0.0, 1.0, 1.0, 0.4, 0.0)
#: Layers are compared in this distance above and below a place, as shares of the height, and count with this power.
_NEAR, _FAR, _LAYERED = 0.03, 0.15, 2.0
#: Steepest path in rows for a column, and the price of its slope.
_STEEP, _PRICE = 2, 0.12
#: Shifted copies of the columns, and how much better than their best path the line must be.
_SHUFFLES, _BETTER = 8, 1.45
#: Smallest share of the columns with fan in which the line must be seen.
_SEEN = 0.45
#: Below this share of the frame's brightest the picture counts as outside the fan.
_DARK = 0.02
#: Smaller lit pieces are no fan; what is this near its edge (cells) is no line; the probe's curve is this high at most.
_SPECK, _EDGE, _SAGITTA = 0.01, 6, 0.1


@dataclass(frozen=True, eq=False)
class PleuralLine:
    """A pleural line that was found.

    Attributes:
        rows: ``[W]`` row of the line in each column of the frame, NaN where the fan does not reach it.
        skin: ``[W]`` row where the fan begins, NaN in columns without any.
        better: path's response over that of the best shuffled path.
        seen: share of its columns with a response of its own; the others (shadows of ribs) are bridged.
    """

    rows: FloatArray
    skin: FloatArray
    better: float
    seen: float

    @property
    def depth(self) -> float:
        """Median distance from skin to line in rows: the distance at which A-lines repeat."""
        return float(np.nanmedian(self.rows - self.skin))


def find_pleura(frame: npt.NDArray[np.floating]) -> PleuralLine | None:
    """Find the pleural line of a grey frame ``[H, W]``; None when nothing deserves the name.

    Args:
        frame: brightness >= 0 in any unit; its sides may differ.
    """
    grey = np.asarray(frame, np.float64)
    if grey.ndim != 2 or min(grey.shape) < 16 or not np.isfinite(grey).all() or not grey.max() > 0:
        return None
    small = to_grid(torch.from_numpy(grey / grey.max()), _GRID).numpy()
    fan, skin = _fan(small)
    if not fan.any():
        return None
    responses = _responses(small, fan, skin)
    if responses is None:
        return None
    best = _paths(responses)
    gathered = _gathered(responses, best)
    columns = np.arange(_GRID[1])
    path = best[0]
    inside = fan[path, columns]
    if inside.mean() < 0.2:
        return None
    better = float(gathered[0] / max(gathered[1:].max(), 1e-9))
    seen = float((responses[0][path, columns] > 0.25)[inside].mean())
    if better < _BETTER or seen < _SEEN:
        return None
    at = (np.arange(grey.shape[1]) + 0.5) * _GRID[1] / grey.shape[1] - 0.5
    rows = _stretched(np.where(inside, path, np.nan), at, grey.shape[0])
    return PleuralLine(rows, _stretched(skin, at, grey.shape[0]), better, seen)


def _fan(small: FloatArray) -> tuple[BoolArray, FloatArray]:
    """Fan of the probe and its upper edge; NaN in columns without any."""
    lit = ndimage.gaussian_filter(small, 1.5) > _DARK
    lit = ndimage.binary_closing(np.pad(lit, 8, mode="edge"), iterations=6)[8:-8, 8:-8]
    labels, count = ndimage.label(lit)
    sizes = ndimage.sum_labels(lit, labels, np.arange(1, count + 1))
    large = np.isin(labels, 1 + np.flatnonzero(sizes > _SPECK * lit.size))  # without letters and rulers
    filled = np.maximum.accumulate(large, axis=0)  # shadows below belong to it
    skin = np.where(filled.any(0), filled.argmax(0), np.nan).astype(np.float64)
    return filled, skin


def _responses(small: FloatArray, fan: BoolArray, skin: FloatArray) -> FloatArray | None:
    """How much a place looks like a piece of the line, 0..1, in the frame and in shuffled copies ``[n, H, W]``.

    None for a frame without any edges.
    """
    height = small.shape[0]
    curvature = ndimage.gaussian_filter(small, (_ACROSS, _ALONG), order=(2, 0), mode="nearest")
    light = np.sqrt(np.clip(ndimage.gaussian_filter(small, (_ACROSS, _ALONG), mode="nearest"), 0, None))
    # The fan's own edges are the brightest steps of some frames.
    within = ndimage.binary_erosion(np.pad(fan, 8, mode="edge"), iterations=_EDGE)[8:-8, 8:-8]
    # At the sides of a sector the fan begins late, which is no skin.
    level = np.fmin(skin, np.nanmin(skin) + _SAGITTA * height)
    depth = (np.arange(height)[:, None] - np.nan_to_num(level, nan=height)[None]) / height
    welcome = np.interp(depth, _DEPTHS, _WELCOME)
    curvature = curvature * within
    found = []
    for rows in (np.arange(height)[:, None].repeat(small.shape[1], 1), *_shuffles(within)):
        bent, lit = (np.take_along_axis(values, rows, axis=0) for values in (curvature, light))
        # The chest wall above is layered, the lung below is not.
        layers = ndimage.uniform_filter1d(np.abs(bent), 15, axis=1)
        sums = np.cumsum(np.pad(layers, ((1, 0), (0, 0))), axis=0)
        above, below = (_window(sums, np.arange(height), sign) for sign in (-1, 1))
        layered = (above / np.maximum(above + below, 1e-9)) ** _LAYERED
        found.append(np.clip(-bent, 0, None) * lit * welcome * layered)
    top = float(np.quantile(found[0].max(0), 0.75))
    return np.clip(np.stack(found) / top, 0, 1) if top > 1e-9 else None


def _shuffles(within: BoolArray) -> list[npt.NDArray[np.int64]]:
    """Rows ``[H, W]`` to take so that strips as wide as the filter move up or down in a circle within the fan."""
    random = np.random.default_rng(0)
    height, width = within.shape
    strip = int(3 * _ALONG)
    first = np.where(within.any(0), within.argmax(0), 0)
    length = np.where(within.any(0), height - first, height)
    rows = np.arange(height)[:, None]
    found = []
    for _ in range(_SHUFFLES):
        shares = random.random(-(-width // strip)).repeat(strip)[:width]
        moved = first + (rows - first + np.round(shares * length).astype(int)) % length
        found.append(np.where(rows < first, rows, moved))
    return found


def _window(sums: FloatArray, rows: npt.NDArray[np.int64], sign: int) -> FloatArray:
    """Mean over the rows that lie `_NEAR` to `_FAR` above (-1) or below (1) each row, from cumulated sums."""
    height = len(rows)
    near, far = rows + sign * round(_NEAR * height), rows + sign * round(_FAR * height)
    first, last = (np.clip(v, 0, height) for v in (np.minimum(near, far), np.maximum(near, far)))
    found: FloatArray = (sums[last] - sums[first]) / np.maximum(last - first, 1)[:, None]
    return found


def _paths(responses: FloatArray) -> npt.NDArray[np.int64]:
    """Best path ``[n, W]`` of rows through each of ``[n, H, W]``, by dynamic programming."""
    count, height, width = responses.shape
    steps = np.arange(-_STEEP, _STEEP + 1)
    total = responses[:, :, 0].copy()
    came = np.zeros((count, height, width), np.int64)
    for column in range(1, width):
        padded = np.pad(total, ((0, 0), (_STEEP, _STEEP)), constant_values=-np.inf)
        choices = np.stack([padded[:, _STEEP + s : _STEEP + s + height] - _PRICE * abs(s) for s in steps])
        chosen = choices.argmax(0)
        came[:, :, column] = steps[chosen]
        total = np.take_along_axis(choices, chosen[None], 0)[0] + responses[:, :, column]
    path = np.empty((count, width), np.int64)
    path[:, -1] = total.argmax(1)
    for column in range(width - 1, 0, -1):
        path[:, column - 1] = path[:, column] + came[np.arange(count), path[:, column], column]
    return path


def _gathered(responses: FloatArray, paths: npt.NDArray[np.int64]) -> FloatArray:
    """Mean response along each path, its slope paid."""
    along = np.take_along_axis(responses, paths[:, None], axis=1)[:, 0].mean(1)
    found: FloatArray = along - _PRICE * np.abs(np.diff(paths, axis=1)).mean(1)
    return found


def _stretched(rows: FloatArray, at: FloatArray, height: int) -> FloatArray:
    """Rows of the grid's columns as rows of the frame's columns."""
    known = np.isfinite(rows)
    if not known.any():
        return np.full(len(at), np.nan)
    places = np.arange(len(rows))
    found: FloatArray = (np.interp(at, places[known], rows[known]) + 0.5) * height / _GRID[0] - 0.5
    found[~known[np.clip(np.round(at).astype(int), 0, len(rows) - 1)]] = np.nan
    return found
