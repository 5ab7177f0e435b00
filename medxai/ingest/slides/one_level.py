"""One level of a slide as a volume: what a network that is not of tiles sees, or what a map of tiles is drawn on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from medxai.errors import IngestError, TileError
from medxai.ingest.slides.level import Slide
from medxai.study import FloatArray, Volume, image_affine

#: Pixels of the largest level that a network sees as a whole.
MOST_PIXELS = 64_000_000
#: Pixels of the largest level that a map is drawn on: map, bands and pictures lie in memory beside it.
MOST_DRAWN = 16_000_000
#: Rows and columns that are read at once.
_PIECE = 1024


def read_level(slide: Slide, study: str, cell_um: float | None = None) -> tuple[Volume, tuple[str, ...]]:
    """Read a level as ``[3, H, W]`` RGB 0..255; tiles that are not stored are white.

    Args:
        slide: open.
        study: pseudonymous name for messages.
        cell_um: micrometres of a cell of the map that is drawn on it: the coarsest level that is at least as fine, and
            damaged tiles are white. None for the finest level of at most `MOST_PIXELS`, of which every tile is needed.

    Returns:
        The volume; for DICOM with the header of the level as its source, so that objects are tiled like it; for other
        formats at the corner of its own plane. And notes on what was decided.

    Raises:
        IngestError: every level is too large, or a tile that is needed is damaged.
    """
    number = _choose(slide, study, cell_um)
    level = slide.levels[number]
    pixels = np.full((3, *level.shape), 255, np.float32)
    damaged = 0
    for row in range(0, level.shape[0], _PIECE):
        for column in range(0, level.shape[1], _PIECE):
            part = pixels[:, row : row + _PIECE, column : column + _PIECE]
            damaged += _fill(part, slide, number, row, column, strict=cell_um is None)
    words = f"level {number + 1} of {len(slide.levels)} of the slide, from the finest: {level.shape[1]} x "
    notes = [f"{words}{level.shape[0]} pixels", *slide.notes]
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


def _choose(slide: Slide, study: str, cell_um: float | None) -> int:
    most = MOST_PIXELS if cell_um is None else MOST_DRAWN
    fits = [n for n, level in enumerate(slide.levels) if level.shape[0] * level.shape[1] <= most]
    if not fits:
        rows, columns = slide.levels[-1].shape
        msg = (
            f"the smallest of {len(slide.levels)} level(s) has {columns} x {rows} pixels, more than the "
            f"{most // 10**6} million that are read: add a coarser level to the slide"
        )
        raise IngestError(msg, study=study)
    fine = [n for n in fits if cell_um is not None and max(slide.levels[n].mpp) <= cell_um * 1.05]
    return max(fine) if fine else min(fits)


def _fill(part: FloatArray, slide: Slide, number: int, row: int, column: int, *, strict: bool) -> int:
    """Read a rectangle into `part`; one with a damaged tile by the size of stored tiles. Returns how many failed."""
    height, width = part.shape[1:]
    try:
        part[:] = slide.read(number, row, column, height, width).transpose(2, 0, 1)
        return 0
    except TileError:
        if strict:
            raise
    down, across = slide.levels[number].tile
    if height <= down and width <= across:
        return 1
    # The next borders of stored tiles after the first pixel.
    tops = [0, *range(down - row % down, height, down), height]
    lefts = [0, *range(across - column % across, width, across), width]
    failed = 0
    for top, bottom in pairwise(tops):
        for left, right in pairwise(lefts):
            failed += _fill(part[:, top:bottom, left:right], slide, number, row + top, column + left, strict=False)
    return failed
