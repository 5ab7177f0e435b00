"""Where the findings of a lung ultrasound frame are expected, given its pleural line and its class.

Volpicelli et al. 2012 (Intensive Care Med 38:577): B-lines begin at the pleural line, consolidations lie below it,
A-lines of aerated lung repeat the distance from skin to pleura. Above the line is chest wall, outside the fan is
nothing: no class has evidence there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medxai.learn.lung_us.pleura import PleuralLine

FloatArray = npt.NDArray[np.float64]

#: Stored with cached priors; to be raised when what is drawn changes.
VERSION = 1
#: Lengths as shares of the frame's height: half-width of a line's band, fade of B-lines below the pleura, depth and
#: soft edge of the sub-pleural area.
_BAND, _FADE, _DEEP, _EDGE = 0.03, 0.10, 0.35, 0.05
#: A-lines looked for, search around their place (share of the height), and robust deviations that make one visible.
_A_LINES, _SEARCH, _VISIBLE = 3, 0.02, 3.0


@dataclass(frozen=True, eq=False)
class Prior:
    """Where evidence is expected.

    Attributes:
        values: ``[H, W]`` in 0..1.
        only_where: it says where evidence may lie and nothing of its shape.
    """

    values: FloatArray
    only_where: bool


def prior_of(label: str, frame: npt.NDArray[np.floating], line: PleuralLine | None) -> Prior | None:
    """Draw the prior of a class; None without a line, and for classes that none is known for.

    Args:
        label: ``covid``, ``bacterial_pneumonia`` or ``healthy``; others have no prior.
        frame: grey ``[H, W]``, searched for A-lines when it is healthy.
        line: of the frame.
    """
    if line is None:
        return None
    height = frame.shape[0]
    below = _distance(line, frame.shape) / height
    lung = lung_region(line, frame.shape)
    if label == "covid":
        return Prior(
            np.where(below < 0, _bell(below / _BAND), _bell(below / _FADE)) * _in_fan(line, frame.shape), False
        )
    if label == "bacterial_pneumonia":
        return Prior(lung * _bell(np.clip(below - _DEEP, 0, None) / _EDGE), False)
    if label == "healthy":
        shown = visible_a_lines(frame, line)
        if not shown:
            return Prior(lung, True)
        rows = [_bell((below - number * line.depth / height) / _BAND) for number in (0, *shown)]
        return Prior(np.max(rows, axis=0) * _in_fan(line, frame.shape), False)
    return None


def lung_region(line: PleuralLine, shape: tuple[int, ...]) -> FloatArray:
    """1 at the pleural line and below it within the fan, 0 above, with the soft edge of the line's band ``[H, W]``."""
    above = np.clip(-_distance(line, shape) / shape[0], 0, None)
    return _bell(above / _BAND) * (above < 2 * _BAND) * _in_fan(line, shape)


def visible_a_lines(frame: npt.NDArray[np.floating], line: PleuralLine) -> tuple[int, ...]:
    """Which multiples 1..3 of the skin-pleura distance show a bright line below the pleura."""
    grey, height = np.asarray(frame, np.float64), frame.shape[0]
    columns = np.flatnonzero(np.isfinite(line.rows))
    ridge = -ndimage.gaussian_filter(grey, (0.01 * height, 0.02 * frame.shape[1]), order=(2, 0), mode="nearest")
    first = int(np.ceil(0.4 * line.depth))
    shifts = np.arange(first, height)
    rows = np.round(line.rows[columns]).astype(int)[None] + shifts[:, None]
    kept = (rows < height).mean(1) > 0.7
    shifts, rows = shifts[kept], np.minimum(rows[kept], height - 1)
    if len(shifts) < 8:
        return ()
    profile = ridge[rows, columns[None]].mean(1)
    middle = float(np.median(profile))
    noise = 1.4826 * float(np.median(np.abs(profile - middle)))
    found = []
    for number in range(1, _A_LINES + 1):
        near = np.abs(shifts - number * line.depth) <= max(1.0, _SEARCH * height)
        if near.any() and float(profile[near].max()) > middle + _VISIBLE * max(noise, 1e-12):
            found.append(number)
    return tuple(found)


def _distance(line: PleuralLine, shape: tuple[int, ...]) -> FloatArray:
    """Rows ``[H, W]`` below the line; where it was not seen, as in the next column where it was."""
    return np.arange(shape[0])[:, None] - _filled(line.rows)[None]


def _in_fan(line: PleuralLine, shape: tuple[int, ...]) -> FloatArray:
    inside: FloatArray = (np.arange(shape[0])[:, None] >= np.nan_to_num(line.skin, nan=np.inf)[None]).astype(np.float64)
    return inside


def _filled(rows: FloatArray) -> FloatArray:
    known = np.flatnonzero(np.isfinite(rows))
    filled: FloatArray = np.interp(np.arange(len(rows)), known, rows[known])
    return filled


def _bell(x: FloatArray) -> FloatArray:
    found: FloatArray = np.exp(-0.5 * x**2)
    return found
