"""A coarse level of a slide as a volume: what maps are drawn on and what objects are tiled like."""

from __future__ import annotations

import numpy as np

from medxai.errors import IngestError, TileError
from medxai.ingest.slides.level import Slide, describe
from medxai.study import FloatArray, Volume, image_affine

#: Pixels of the largest level that is read as a whole, and what one with a map, its bands and pictures stays within.
MOST_PIXELS = 16_000_000
#: Rows and columns that are read at once.
_PIECE = 1024


def coarse_volume(slide: Slide, mpp: float, study: str) -> tuple[Volume, tuple[str, ...]]:
    """Read the coarsest level that is at least as fine as the cells of a map, ``[3, H, W]`` RGB 0..255.

    Args:
        slide: open.
        mpp: micrometres of a cell.
        study: pseudonymous name for messages.

    Returns:
        The volume; for DICOM with the header of the level as its source, so that objects are tiled like it; for other
        formats at the corner of its own plane. And notes on what was decided; damaged tiles are white.

    Raises:
        IngestError: the level is larger than `MOST_PIXELS`; a pyramid has a coarser one.
    """
    fine = [n for n, level in enumerate(slide.levels) if max(level.mpp) <= mpp * 1.05]
    number = max(fine, key=lambda n: slide.levels[n].downsample, default=0)
    small = [n for n, level in enumerate(slide.levels) if level.shape[0] * level.shape[1] <= MOST_PIXELS]
    if not small:
        msg = (
            f"every level has more than {MOST_PIXELS // 10**6} million pixels ({describe(slide.levels)}), and a map "
            "needs one to lie on: add a coarser level to the slide"
        )
        raise IngestError(msg, study=study)
    number = number if number in small else min(small, key=lambda n: slide.levels[n].downsample)
    level = slide.levels[number]
    pixels = np.full((3, *level.shape), 255, np.float32)
    damaged = 0
    for row in range(0, level.shape[0], _PIECE):
        for column in range(0, level.shape[1], _PIECE):
            part = pixels[:, row : row + _PIECE, column : column + _PIECE]
            damaged += _fill(part, slide, number, row, column)
    words = f"level {number + 1} of {len(slide.levels)} of the slide, from the finest: {level.shape[1]} x "
    notes = [*slide.notes, f"{words}{level.shape[0]} pixels"]
    if damaged:
        notes.append(f"{damaged} damaged tiles of this level are white")
    header = level.headers[0] if level.headers else None
    millimetres = (level.mpp[0] / 1000, level.mpp[1] / 1000)
    volume = Volume(
        pixels=pixels,
        axes="HW",
        affine=image_affine(*millimetres) if level.affine is None else level.affine,
        modality="SM" if header is None else str(header.get("Modality", "SM")),
        frame_of_reference=slide.frame_of_reference,
        body_part="" if header is None else str(header.get("BodyPartExamined", "") or "").upper(),
        source=level.headers[:1],
    )
    return volume, tuple(notes)


def _fill(part: FloatArray, slide: Slide, number: int, row: int, column: int) -> int:
    """Read a rectangle into `part`; one with a damaged tile by the size of stored tiles. Returns how many failed."""
    height, width = part.shape[1:]
    try:
        part[:] = slide.read(number, row, column, height, width).transpose(2, 0, 1)
        return 0
    except TileError:
        down, across = slide.levels[number].tile
        if height <= down and width <= across:
            return 1
    # The next borders of stored tiles after the first pixel.
    first, left = down - row % down, across - column % across
    failed = 0
    tops = [0, *range(first, height, down)]
    lefts = [0, *range(left, width, across)]
    for top, bottom in zip(tops, [*tops[1:], height], strict=True):
        for start, end in zip(lefts, [*lefts[1:], width], strict=True):
            piece = part[:, top:bottom, start:end]
            failed += _fill(piece, slide, number, row + top, column + start)
    return failed
