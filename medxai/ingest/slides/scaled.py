"""Rectangles of a slide at wanted micrometres per pixel: resized piece by piece as the whole plane would be."""

from __future__ import annotations

import math

import numpy as np

from medxai.ingest.slides.choose import LevelChoice
from medxai.ingest.slides.level import Colours, Slide


def scaled_shape(slide: Slide, choice: LevelChoice) -> tuple[int, int]:
    """Return rows and columns of the chosen level in wanted pixels; a part of a pixel at the edge counts."""
    rows, columns = slide.levels[choice.level].shape
    # Sizes come from quotients; a part below a millionth is none.
    return math.ceil(rows * choice.factor[0] - 1e-6), math.ceil(columns * choice.factor[1] - 1e-6)


def read_scaled(slide: Slide, choice: LevelChoice, row: int, column: int, height: int, width: int) -> Colours:
    """Return ``[height, width, 3]`` RGB 0..255 of a rectangle, in wanted pixels.

    Neighbouring rectangles fit without a seam: each is resized (triangle filter as wide as the pixels that are taken
    together) with as much of its surroundings as the filter reaches.

    Args:
        slide: open.
        choice: level and factor.
        row: of the first pixel, in wanted pixels.
        column: likewise.
        height: wanted pixels.
        width: likewise.

    Raises:
        TileError: a stored tile that it needs is damaged.
    """
    from PIL import Image

    if choice.factor == (1.0, 1.0):
        return slide.read(choice.level, row, column, height, width)
    spans = []
    for first, size, factor in ((row, height, choice.factor[0]), (column, width, choice.factor[1])):
        start, end = first / factor, (first + size) / factor
        reach = math.ceil(max(1 / factor, 1.0)) + 1
        spans.append((start, end, math.floor(start) - reach, math.ceil(end) + reach))
    (top, bottom, from_row, to_row), (left, right, from_column, to_column) = spans
    stored = slide.read(choice.level, from_row, from_column, to_row - from_row, to_column - from_column)
    box = (left - from_column, top - from_row, right - from_column, bottom - from_row)
    resized = Image.fromarray(stored).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.array(resized, dtype=np.uint8)
