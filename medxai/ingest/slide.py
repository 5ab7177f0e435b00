"""A DICOM whole slide: one level of its pyramid -> Volume (PS3.3 A.32.8, C.8.12.4).

The affine of a slide leads to the slide coordinate system (PS3.3 C.8.12.2.1), in mm, not to a patient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.ingest.dicom_file import image_type, read_header, read_pixels
from medxai.ingest.identifiers import check_identifiers
from medxai.ingest.slides.layout import (
    check_colour,
    frame_count,
    frame_places,
    slide_affine,
    tiles_across,
    total_size,
)
from medxai.study import FloatArray, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

#: VL Whole Slide Microscopy Image Storage.
SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
#: Pixels of the largest level that is read as a whole.
MOST_PIXELS = 64_000_000
#: Third value of ImageType (PS3.3 C.8.12.4.1.1) of what is no level of the pyramid.
_ASIDE = {
    "LABEL": "slide labels",
    "OVERVIEW": "slide overviews",
    "LOCALIZER": "slide overviews",
    "THUMBNAIL": "slide thumbnails",
}


def is_slide(header: Dataset) -> bool:
    """True for an image of a whole slide: a level of its pyramid, its label or an overview."""
    return str(header.get("SOPClassUID", "")) == SLIDE


def aside(header: Dataset) -> str | None:
    """What an image of a slide is when it is no level of the pyramid, in words; None for a level."""
    flavour = image_type(header)[2:3]
    return _ASIDE.get(flavour[0]) if flavour else None


def read_slide(files: Sequence[Path], study: str) -> tuple[Volume, tuple[str, ...]]:
    """Read the finest level of at most `MOST_PIXELS` pixels as ``[3, H, W]``, RGB 0..255.

    Args:
        files: levels of one pyramid in any order, without labels, overviews and thumbnails.
        study: pseudonymous name for messages.

    Returns:
        The volume, with the header of the level as its source, and notes on what was decided. Tiles that are not
        stored are white.

    Raises:
        IdentifierError: identifiers are missing or invalid.
        GeometryError: the place of the slide or of a tile is not stated, or contradicts itself.
        IngestError: every level is too large, the level is a concatenation or several images, or is no 8-bit colour
            image; damaged or undecodable pixel data.
    """
    headers = [read_header(path) for path in files]
    check_identifiers(headers, study)
    index, note = _choose(headers, study)
    header = headers[index]
    notes = [note]
    _check(header, study)
    affine, measured = slide_affine(header, study)
    if measured:
        notes.append("pixel spacing from the size of the imaged volume, since PixelMeasuresSequence is absent")
    places = frame_places(header, study)
    pixels = _assemble(files[index], header, places, study)
    missing = math.prod(tiles_across(header)) - len(places)
    if missing > 0:
        notes.append(f"{missing} of {len(places) + missing} tiles are not stored, and read as white")
    return (
        Volume(
            pixels=pixels,
            axes="HW",
            affine=affine,
            modality=str(header.get("Modality", "SM")),
            frame_of_reference=str(header.FrameOfReferenceUID),
            body_part=str(header.get("BodyPartExamined", "") or "").upper(),
            source=(header,),
        ),
        tuple(notes),
    )


def _choose(headers: Sequence[Dataset], study: str) -> tuple[int, str]:
    levels: dict[tuple[int, int], list[int]] = {}
    for index, header in enumerate(headers):
        levels.setdefault(total_size(header, study), []).append(index)
    ordered = sorted(levels, key=lambda size: size[0] * size[1], reverse=True)
    number = next((i for i, (rows, columns) in enumerate(ordered) if rows * columns <= MOST_PIXELS), None)
    if number is None:
        rows, columns = ordered[-1]
        msg = (
            f"the smallest of {len(ordered)} level(s) has {columns} x {rows} pixels, more than the "
            f"{MOST_PIXELS // 10**6} million that are read: add a coarser level to the slide"
        )
        raise IngestError(msg, study=study)
    rows, columns = ordered[number]
    same = levels[rows, columns]
    words = f"the level of {columns} x {rows} pixels"
    if any("ConcatenationUID" in headers[i] or "InConcatenationNumber" in headers[i] for i in same):
        msg = f"{words} is a concatenation (0020,9161) of several objects, which is not read: store it as one object"
        raise IngestError(msg, study=study)
    if len(same) > 1:
        msg = f"{words} is there {len(same)} times (focal planes, optical paths or scans): leave one of them"
        raise IngestError(msg, study=study)
    return same[0], f"level {number + 1} of {len(ordered)} of the slide, from the finest: {columns} x {rows} pixels"


def _check(header: Dataset, study: str) -> None:
    check_colour(header, study)
    if frame_count(header) * int(header.Rows) * int(header.Columns) > 4 * MOST_PIXELS:
        msg = f"tiles of {header.Columns} x {header.Rows} pixels are much larger than the level that they make up"
        raise IngestError(msg, study=study)


def _assemble(path: Path, header: Dataset, places: npt.NDArray[np.int64], study: str) -> FloatArray:
    rows, columns = total_size(header, study)
    _, array = read_pixels(path)
    tiles: npt.NDArray[Any] = array[None] if array.ndim == 3 else array
    if tiles.shape != (len(places), int(header.Rows), int(header.Columns), 3):
        msg = f"pixel data has shape {array.shape}, the header says {len(places)} tiles in colour"
        raise IngestError(msg, study=study)
    pixels = np.full((3, rows, columns), 255, np.float32)
    for tile, (row, column) in zip(tiles, places, strict=True):
        inside = tile[: rows - row, : columns - column]  # tiles may reach over the edge
        height, width = inside.shape[:2]
        pixels[:, row : row + height, column : column + width] = inside.transpose(2, 0, 1)
    return pixels
