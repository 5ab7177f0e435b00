"""A DICOM slide of one or many files: levels, concatenations, tiles in either organisation (PS3.3 A.32.8, C.7.6.17)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.errors import GeometryError, IngestError, TileError
from medxai.ingest.dicom_file import read_header
from medxai.ingest.identifiers import check_identifiers
from medxai.ingest.slide import aside, is_slide
from medxai.ingest.slides.dicom_frames import Frames
from medxai.ingest.slides.layout import (
    check_colour,
    frame_count,
    frame_places,
    slide_affine,
    tiles_across,
    total_size,
)
from medxai.ingest.slides.level import Colours, Level, Slide, anisotropy_note
from medxai.ingest.slides.mosaic import Mosaic, TileCache

if TYPE_CHECKING:
    from pydicom import Dataset


#: Share by which the extents of levels may differ.
_EXTENT = 0.05


@dataclass(frozen=True, eq=False)
class _Part:
    """One object of a level."""

    path: Path
    header: Dataset = field(repr=False)


def open_dicom(files: Sequence[Path], name: str) -> Slide:
    """Open the levels of one DICOM slide.

    Args:
        files: objects of one pyramid in any order; labels, overviews and thumbnails among them are left out.
        name: for messages.

    Raises:
        IdentifierError: identifiers are missing or invalid.
        GeometryError: the place of the slide or of a tile is not stated, or contradicts itself.
        IngestError: no level, levels of several slides, a concatenation with a missing part, or no 8-bit colour image.
    """
    parts = [_Part(path, read_header(path)) for path in files]
    foreign = sum(not is_slide(part.header) for part in parts)
    if foreign:
        msg = f"{foreign} of {len(parts)} DICOM files are no whole slide images; give those of one slide"
        raise IngestError(msg, study=name)
    parts = [part for part in parts if aside(part.header) is None]
    if not parts:
        msg = "holds labels, overviews or thumbnails alone, and no level of a slide"
        raise IngestError(msg, study=name)
    check_identifiers([part.header for part in parts], name)
    frames_of_reference = {str(part.header.FrameOfReferenceUID) for part in parts}
    if len(frames_of_reference) > 1:
        msg = f"files belong to {len(frames_of_reference)} slides (FrameOfReferenceUID); give those of one"
        raise IngestError(msg, study=name)
    groups: dict[tuple[int, int], list[_Part]] = {}
    for part in parts:
        groups.setdefault(total_size(part.header, name), []).append(part)
    ordered = [_whole(groups[size], name) for size in sorted(groups, key=lambda s: s[0] * s[1], reverse=True)]
    finest = total_size(ordered[0][0].header, name)
    built = [_level(level, finest, name) for level in ordered]
    levels = tuple(level for level, _, _ in built)
    _check_extents(levels, name)
    return Slide(
        name=name,
        kind="dicom",
        levels=levels,
        source=_Source([mosaic for _, mosaic, _ in built], [f for _, _, frames in built for f in frames], name),
        icc=_profile(ordered[0][0].header),
        frame_of_reference=frames_of_reference.pop(),
        notes=(*_measured(levels, name), *_missing(built), *anisotropy_note(levels[0].mpp)),
    )


class _Source:
    def __init__(self, mosaics: list[Mosaic], frames: list[Frames], name: str) -> None:
        self._mosaics, self._frames, self._name, self._cache = mosaics, frames, name, TileCache()

    def read(self, level: int, row: int, column: int, height: int, width: int) -> Colours:
        try:
            return self._mosaics[level].read(row, column, height, width, self._cache, level)
        except TileError as error:
            msg = f"level {level}: {error.reason}"
            raise TileError(msg, study=self._name) from error

    def close(self) -> None:
        for frames in self._frames:
            frames.close()


def _whole(parts: list[_Part], name: str) -> list[_Part]:
    """Return the parts of one level in their order (PS3.3 C.7.6.16.2.2.4)."""
    rows, columns = total_size(parts[0].header, name)
    words = f"the level of {columns} x {rows} pixels"
    concatenations = {str(part.header.get("ConcatenationUID", "") or "") for part in parts}
    if concatenations == {""}:
        if len(parts) > 1:
            msg = f"{words} is there {len(parts)} times (focal planes, optical paths or scans): leave one of them"
            raise IngestError(msg, study=name)
        return parts
    if len(concatenations) > 1:
        msg = f"{words} is there {len(concatenations)} times (ConcatenationUID, 0020,9161): leave one of them"
        raise IngestError(msg, study=name)
    parts = sorted(parts, key=lambda part: int(part.header.get("InConcatenationNumber", 0) or 0))
    numbers = [int(part.header.get("InConcatenationNumber", 0) or 0) for part in parts]
    total = max(int(part.header.get("InConcatenationTotalNumber", 0) or 0) for part in parts) or max(numbers)
    if numbers != list(range(1, total + 1)):
        lost = sorted(set(range(1, total + 1)) - set(numbers))
        detail = f"part {lost[0]} is missing" if lost else "a part is there twice"
        msg = f"{words} is a concatenation of {total} objects (0020,9161) and {detail}; give all files of the slide"
        raise IngestError(msg, study=name)
    tiles = {(int(part.header.Rows), int(part.header.Columns)) for part in parts}
    if len(tiles) > 1:
        msg = f"{words} is a concatenation whose parts have tiles of different sizes; convert the slide anew"
        raise IngestError(msg, study=name)
    return parts


def _level(parts: list[_Part], finest: tuple[int, int], name: str) -> tuple[Level, Mosaic, list[Frames]]:
    header = parts[0].header
    for part in parts:
        check_colour(part.header, name)
    affine, _ = slide_affine(header, name)
    counts = [frame_count(part.header) for part in parts]
    starts = np.cumsum([0, *counts])
    places = np.concatenate(
        [frame_places(part.header, name, int(starts[i]), int(starts[-1])) for i, part in enumerate(parts)]
    )
    if len(np.unique(places, axis=0)) < len(places):
        msg = "two tiles have the same position; slides with one focal plane and one optical path are read"
        raise GeometryError(msg, study=name)
    frames = [Frames(part.path, part.header, name, int(starts[i])) for i, part in enumerate(parts)]

    def decode(number: int) -> Colours:
        part = int(np.searchsorted(starts, number, side="right")) - 1
        return frames[part].decode(number - int(starts[part]))

    shape, tile = total_size(header, name), (int(header.Rows), int(header.Columns))
    spacing = np.linalg.norm(affine[:3, 1:3], axis=0) * 1000
    level = Level(
        shape=shape,
        mpp=(float(spacing[0]), float(spacing[1])),
        downsample=(finest[0] / shape[0] * finest[1] / shape[1]) ** 0.5,
        tile=tile,
        affine=affine,
        headers=tuple(part.header for part in parts),
    )
    return level, Mosaic.of(shape, tile, places, decode), frames


def _check_extents(levels: Sequence[Level], name: str) -> None:
    """Refuse levels that do not show the same part of the glass."""
    extents = [tuple(size * mpp for size, mpp in zip(level.shape, level.mpp, strict=True)) for level in levels]
    for number, (level, extent) in enumerate(zip(levels, extents, strict=True)):
        for found, wanted, pixel in zip(extent, extents[0], level.mpp, strict=True):
            # Each level may have lost a part of its own pixels.
            if abs(found - wanted) > max(_EXTENT * wanted, 2 * pixel):
                msg = (
                    f"level {number} covers {extent[1] / 1000:.4g} x {extent[0] / 1000:.4g} mm and the finest "
                    f"{extents[0][1] / 1000:.4g} x {extents[0][0] / 1000:.4g} mm, so they are no pyramid: give the "
                    "files of one scan"
                )
                raise GeometryError(msg, study=name)


def _measured(levels: Sequence[Level], name: str) -> list[str]:
    if not any(slide_affine(level.headers[0], name)[1] for level in levels):
        return []
    return ["pixel spacing from the size of the imaged volume, since PixelMeasuresSequence is absent"]


def _missing(built: Sequence[tuple[Level, Mosaic, list[Frames]]]) -> list[str]:
    notes = []
    for number, (level, mosaic, _) in enumerate(built):
        down, across = tiles_across(level.headers[0])
        missing = down * across - len(mosaic.places)
        if missing > 0:
            notes.append(f"level {number}: {missing} of {down * across} tiles are not stored, and read as white")
    return notes


def _profile(header: Dataset) -> bytes | None:
    """ICC profile of the optical path (PS3.3 C.8.12.5), or of the image."""
    for item in (*(header.get("OpticalPathSequence", None) or ()), header):
        profile = item.get("ICCProfile", None)
        if profile:
            return bytes(profile)
    return None
