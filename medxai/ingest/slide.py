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

from medxai.errors import GeometryError, IngestError
from medxai.ingest.dicom_file import image_type, read_header, read_pixels
from medxai.ingest.identifiers import check_identifiers
from medxai.study import Affine, FloatArray, Volume

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
#: How far the row and column directions may be from unit length and from a right angle.
_DIRECTIONS = 1e-3


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
    affine, measured = _affine(header, study)
    if measured:
        notes.append("pixel spacing from the size of the imaged volume, since PixelMeasuresSequence is absent")
    places = _places(header, study)
    pixels = _assemble(files[index], header, places, study)
    missing = _grid(header)[0] * _grid(header)[1] - len(places)
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


def _size(header: Dataset, study: str) -> tuple[int, int]:
    """Rows and columns of the total pixel matrix."""
    size = (int(header.get("TotalPixelMatrixRows", 0) or 0), int(header.get("TotalPixelMatrixColumns", 0) or 0))
    if min(size) < 1 or min(int(header.Rows), int(header.Columns)) < 1:
        msg = (
            "TotalPixelMatrixRows (0048,0007) or TotalPixelMatrixColumns (0048,0006) is absent: convert the slide anew"
        )
        raise GeometryError(msg, study=study)
    return size


def _grid(header: Dataset) -> tuple[int, int]:
    """Rows and columns of tiles."""
    return (
        math.ceil(int(header.TotalPixelMatrixRows) / int(header.Rows)),
        math.ceil(int(header.TotalPixelMatrixColumns) / int(header.Columns)),
    )


def _choose(headers: Sequence[Dataset], study: str) -> tuple[int, str]:
    levels: dict[tuple[int, int], list[int]] = {}
    for index, header in enumerate(headers):
        levels.setdefault(_size(header, study), []).append(index)
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
    if int(header.get("SamplesPerPixel", 1)) != 3 or int(header.get("BitsAllocated", 0)) != 8:
        msg = "is no 8-bit colour image (SamplesPerPixel, BitsAllocated); slides of other kinds are not read"
        raise IngestError(msg, study=study)
    for name in ("NumberOfOpticalPaths", "TotalPixelMatrixFocalPlanes", "NumberOfFocalPlanes"):
        if int(header.get(name, 1) or 1) > 1:
            msg = f"{name} is {int(header[name].value)}; slides with one focal plane and one optical path are read"
            raise IngestError(msg, study=study)
    frames, tiles = int(header.get("NumberOfFrames", 1) or 1), math.prod(_grid(header))
    if frames > tiles:
        msg = f"NumberOfFrames is {frames}, the total pixel matrix has room for {tiles} tiles"
        raise GeometryError(msg, study=study)
    if frames * int(header.Rows) * int(header.Columns) > 4 * MOST_PIXELS:
        msg = f"tiles of {header.Columns} x {header.Rows} pixels are much larger than the level that they make up"
        raise IngestError(msg, study=study)


def _affine(header: Dataset, study: str) -> tuple[Affine, bool]:
    """Index -> slide mm, and whether the spacing had to be found from the size of the imaged volume."""
    origin = header.get("TotalPixelMatrixOriginSequence", None)
    orientation = header.get("ImageOrientationSlide", None)
    if not origin or not orientation or len(orientation) != 6:
        name = "TotalPixelMatrixOriginSequence (0048,0008)" if not origin else "ImageOrientationSlide (0048,0102)"
        msg = f"{name} is absent, so the place of the pixels on the slide is unknown: convert the slide anew"
        raise GeometryError(msg, study=study)
    right, down = np.asarray([float(v) for v in orientation]).reshape(2, 3)
    skew = max(abs(float(right @ right) - 1), abs(float(down @ down) - 1), abs(float(right @ down)))
    if not skew < _DIRECTIONS:
        msg = "ImageOrientationSlide (0048,0102) holds no two directions at right angles: convert the slide anew"
        raise GeometryError(msg, study=study)
    spacing, measured = _spacing(header, study)
    affine = np.zeros((4, 4))
    affine[:3, 1], affine[:3, 2] = down * spacing[0], right * spacing[1]
    # X and Y are in mm, Z is in micrometres (PS3.3 C.8.12.4).
    affine[:, 3] = (
        float(origin[0].XOffsetInSlideCoordinateSystem),
        float(origin[0].YOffsetInSlideCoordinateSystem),
        float(origin[0].get("ZOffsetInSlideCoordinateSystem", 0) or 0) / 1000,
        1.0,
    )
    return affine, measured


def _spacing(header: Dataset, study: str) -> tuple[tuple[float, float], bool]:
    """Mm between rows and between columns, and whether it is a quotient."""
    groups = [
        *header.get("SharedFunctionalGroupsSequence", []),
        *header.get("PerFrameFunctionalGroupsSequence", [])[:1],
    ]
    for group in groups:
        for item in group.get("PixelMeasuresSequence", []):
            value = item.get("PixelSpacing", None)
            if value and all(float(v) > 0 for v in value):
                return (float(value[0]), float(value[1])), False
    height, width = (float(header.get(name, 0) or 0) for name in ("ImagedVolumeHeight", "ImagedVolumeWidth"))
    if not (height > 0 and width > 0):
        msg = "PixelSpacing (0028,0030) is absent from the functional groups, and so is the size of the imaged volume"
        raise GeometryError(msg, study=study)
    rows, columns = _size(header, study)
    return (height / rows, width / columns), True


def _places(header: Dataset, study: str) -> npt.NDArray[np.int64]:
    """Zero-based (row, column) of the first pixel of each frame, ``[n, 2]``."""
    frames = int(header.get("NumberOfFrames", 1) or 1)
    down, across = _grid(header)
    kind = str(header.get("DimensionOrganizationType", "") or "")
    groups = header.get("PerFrameFunctionalGroupsSequence", None) or []
    if kind != "TILED_FULL" and groups:
        return _sparse(groups, header, frames, study)
    if kind != "TILED_FULL" and down * across > 1:
        # Files exist whose tiles go column by column: the order must not be guessed.
        msg = (
            "tiles have no position (PlanePositionSlideSequence, 0048,021A) and DimensionOrganizationType (0020,9311) "
            "is not TILED_FULL, so their order is unknown: convert the slide anew"
        )
        raise GeometryError(msg, study=study)
    if frames != down * across:
        msg = f"{frames} tiles without positions, where the total pixel matrix needs {down * across}"
        raise GeometryError(msg, study=study)
    # Row by row (PS3.3 C.7.6.17.3).
    number = np.arange(frames)
    size = np.array([int(header.Rows), int(header.Columns)])
    places: npt.NDArray[np.int64] = np.stack([number // across, number % across], axis=1) * size
    return places


def _sparse(groups: Sequence[Dataset], header: Dataset, frames: int, study: str) -> npt.NDArray[np.int64]:
    if len(groups) != frames:
        msg = f"{len(groups)} per-frame functional groups (5200,9230) for {frames} tiles"
        raise GeometryError(msg, study=study)
    names = ("RowPositionInTotalImagePixelMatrix", "ColumnPositionInTotalImagePixelMatrix")
    places = np.empty((frames, 2), np.int64)
    for i, group in enumerate(groups):
        items = group.get("PlanePositionSlideSequence", None)
        if not items or any(name not in items[0] for name in names):
            msg = f"tile {i + 1} has no position (PlanePositionSlideSequence, 0048,021A): convert the slide anew"
            raise GeometryError(msg, study=study)
        places[i] = [int(items[0][name].value) - 1 for name in names]
    size = (int(header.TotalPixelMatrixRows), int(header.TotalPixelMatrixColumns))
    if (places < 0).any() or (places >= size).any():
        msg = "a tile lies outside the total pixel matrix (0048,021E; 0048,021F): convert the slide anew"
        raise GeometryError(msg, study=study)
    if len(np.unique(places, axis=0)) < frames:
        msg = "two tiles have the same position; slides with one focal plane and one optical path are read"
        raise GeometryError(msg, study=study)
    return places


def _assemble(path: Path, header: Dataset, places: npt.NDArray[np.int64], study: str) -> FloatArray:
    rows, columns = _size(header, study)
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
