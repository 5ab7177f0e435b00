"""The course of a cine as a picture: probability of each class over time, decisive frames marked."""

from __future__ import annotations

import numpy as np

from medxai.explain.cine import CineEvidence
from medxai.export.colours import UInt8

#: Colours of classes, told apart by people with any colour vision (Okabe and Ito 2008), on dark ground.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (0, 114, 178), (213, 94, 0))
_GROUND, _GRID, _MARK, _CURSOR = (19, 26, 34), (36, 48, 64), (255, 196, 92), (232, 237, 243)
_SCALE = 3


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Return one colour for each class; they repeat after seven."""
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


def course(evidence: CineEvidence, width: int, height: int, index: int | None = None) -> UInt8:
    """Return ``[height, width, 3]``: probabilities from 0 below to 1 above, decisive frames marked at the bottom.

    Args:
        evidence: of the cine.
        width: in pixels.
        height: in pixels.
        index: frame with a cursor.
    """
    from PIL import Image, ImageDraw

    wide, high = width * _SCALE, height * _SCALE
    canvas = Image.new("RGB", (wide, high), _GROUND)
    draw = ImageDraw.Draw(canvas)
    total, classes = evidence.probabilities.shape
    base = high - 5 * _SCALE

    def across(frame: float) -> float:
        return float((frame + 0.5) * wide / total)

    for share in (0.0, 0.5, 1.0):
        y = base - share * (base - 2 * _SCALE)
        draw.line((0, y, wide, y), fill=_GRID, width=1)
    for frame in evidence.decisive:
        draw.rectangle((across(frame - 0.5), base + _SCALE, across(frame + 0.5) - 1, high), fill=_MARK)
    for number, colour in enumerate(class_colours(classes)):
        points = [
            (across(frame), base - float(p) * (base - 2 * _SCALE))
            for frame, p in enumerate(evidence.probabilities[:, number])
        ]
        draw.line(points, fill=colour, width=2 * _SCALE)
    if index is not None:
        draw.line((across(index), 0, across(index), high), fill=_CURSOR, width=_SCALE)
    return np.asarray(canvas.resize((width, height), Image.Resampling.LANCZOS), dtype=np.uint8)
