"""Where tiles of a DICOM slide lie: in the total pixel matrix, and on the glass in mm (PS3.3 C.8.12.2.1, C.8.12.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medxai.errors import GeometryError, IngestError
from medxai.study import Affine

if TYPE_CHECKING:
    from pydicom import Dataset

#: How far the row and column directions may be from unit length and from a right angle.
_DIRECTIONS = 1e-3


def total_size(header: Dataset, study: str) -> tuple[int, int]:
    """Return rows and columns of the total pixel matrix.

    Raises:
        GeometryError: they are not stated.
    """
    size = (int(header.get("TotalPixelMatrixRows", 0) or 0), int(header.get("TotalPixelMatrixColumns", 0) or 0))
    if min(size) < 1 or min(int(header.Rows), int(header.Columns)) < 1:
        msg = (
            "TotalPixelMatrixRows (0048,0007) or TotalPixelMatrixColumns (0048,0006) is absent: convert the slide anew"
        )
        raise GeometryError(msg, study=study)
    return size


def frame_count(header: Dataset) -> int:
    """Return the number of tiles that an object stores."""
    return int(header.get("NumberOfFrames", 1) or 1)


def tiles_across(header: Dataset) -> tuple[int, int]:
    """Return rows and columns of tiles that cover the total pixel matrix."""
    return (
        math.ceil(int(header.TotalPixelMatrixRows) / int(header.Rows)),
        math.ceil(int(header.TotalPixelMatrixColumns) / int(header.Columns)),
    )


def check_colour(header: Dataset, study: str) -> None:
    """Refuse what is no 8-bit colour image of one focal plane and one optical path.

    Raises:
        IngestError: another kind of image.
        GeometryError: more tiles than the total pixel matrix has room for.
    """
    if int(header.get("SamplesPerPixel", 1)) != 3 or int(header.get("BitsAllocated", 0)) != 8:
        msg = "is no 8-bit colour image (SamplesPerPixel, BitsAllocated); slides of other kinds are not read"
        raise IngestError(msg, study=study)
    for name in ("NumberOfOpticalPaths", "TotalPixelMatrixFocalPlanes", "NumberOfFocalPlanes"):
        if int(header.get(name, 1) or 1) > 1:
            msg = f"{name} is {int(header[name].value)}; slides with one focal plane and one optical path are read"
            raise IngestError(msg, study=study)
    frames, tiles = frame_count(header), math.prod(tiles_across(header))
    if frames > tiles:
        msg = f"NumberOfFrames is {frames}, the total pixel matrix has room for {tiles} tiles"
        raise GeometryError(msg, study=study)


def slide_affine(header: Dataset, study: str) -> tuple[Affine, bool]:
    """Return index ``(0, row, column, 1)`` -> slide mm, and whether the spacing comes from the imaged volume's size.

    Raises:
        GeometryError: origin, orientation or spacing are not stated, or the directions are not at right angles.
    """
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
    rows, columns = total_size(header, study)
    return (height / rows, width / columns), True


def frame_places(
    header: Dataset, study: str, first: int = 0, frames_of_all: int | None = None
) -> npt.NDArray[np.int64]:
    """Return the zero-based (row, column) of the first pixel of each frame, ``[n, 2]``.

    Args:
        header: of the object.
        study: pseudonymous name for messages.
        first: number of frames that earlier parts of a concatenation hold.
        frames_of_all: frames of all parts together; those of this object when there is no other part.

    Raises:
        GeometryError: the order or the place of the tiles is not stated, or contradicts itself.
    """
    frames = frame_count(header)
    total = frames if frames_of_all is None else frames_of_all
    down, across = tiles_across(header)
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
    if total != down * across:
        msg = f"{total} tiles without positions, where the total pixel matrix needs {down * across}"
        raise GeometryError(msg, study=study)
    # Row by row (PS3.3 C.7.6.17.3).
    number = first + np.arange(frames)
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
    size = total_size(header, study)
    if (places < 0).any() or (places >= size).any():
        msg = "a tile lies outside the total pixel matrix (0048,021E; 0048,021F): convert the slide anew"
        raise GeometryError(msg, study=study)
    if len(np.unique(places, axis=0)) < frames:
        msg = "two tiles have the same position; slides with one focal plane and one optical path are read"
        raise GeometryError(msg, study=study)
    return places
