"""A small picture of a whole slide, made in pieces, in which damaged tiles are white."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from medxai.errors import IngestError, TileError
from medxai.ingest.slides.choose import LevelChoice, choose_level
from medxai.ingest.slides.level import Colours, Slide
from medxai.ingest.slides.scaled import read_scaled, scaled_shape

#: Pixels of a level that are read at once, along a side.
_PIECE = 2048
#: Pixels of the picture below which a piece with a damaged tile is not divided further.
_SMALLEST = 8
#: Most pixels of a picture.
_MOST = 64_000_000


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """The whole slide, small.

    Attributes:
        pixels: ``[H, W, 3]`` RGB 0..255.
        mpp: micrometres per pixel, the same for rows and columns.
        damaged: reasons of the tiles that could not be read, which are white.
    """

    pixels: Colours = field(repr=False)
    mpp: float
    damaged: tuple[str, ...] = ()


def thumbnail(slide: Slide, *, mpp: float | None = None, longest: int | None = None) -> Thumbnail:
    """Return a small picture; its pixels are squares also where those of the slide are not.

    Args:
        slide: open.
        mpp: micrometres per pixel; at least those of the finest level.
        longest: pixels of the longer side, in place of `mpp`.

    Raises:
        IngestError: neither or both are given, or the picture would be too large.
    """
    if (mpp is None) == (longest is None):
        msg = "a thumbnail has either micrometres per pixel or a longest side"
        raise IngestError(msg, study=slide.name)
    finest = slide.levels[0]
    if mpp is None:
        assert longest is not None  # noqa: S101
        mpp = max(finest.shape[0] * finest.mpp[0], finest.shape[1] * finest.mpp[1]) / longest
    choice = choose_level(slide, max(mpp, *finest.mpp), tolerance=1e-6)
    rows, columns = scaled_shape(slide, choice)
    if rows * columns > _MOST:
        msg = f"a picture of {columns} x {rows} pixels is too large; ask for more micrometres per pixel"
        raise IngestError(msg, study=slide.name)
    pixels = np.full((rows, columns, 3), 255, np.uint8)
    damaged: dict[str, None] = {}
    down, across = (max(1, math.floor(_PIECE * factor)) for factor in choice.factor)
    for row in range(0, rows, down):
        for column in range(0, columns, across):
            piece = pixels[row : row + down, column : column + across]
            _fill(piece, slide, choice, row, column, damaged)
    return Thumbnail(pixels, choice.mpp, tuple(damaged))


def _fill(piece: Colours, slide: Slide, choice: LevelChoice, row: int, column: int, damaged: dict[str, None]) -> None:
    height, width = piece.shape[:2]
    try:
        piece[:] = read_scaled(slide, choice, row, column, height, width)
    except TileError as error:
        if max(height, width) <= _SMALLEST:
            damaged[error.reason] = None
            return
        middle, centre = max(1, height // 2), max(1, width // 2)
        for top, bottom in ((0, middle), (middle, height)):
            for left, right in ((0, centre), (centre, width)):
                if bottom > top and right > left:
                    _fill(piece[top:bottom, left:right], slide, choice, row + top, column + left, damaged)
