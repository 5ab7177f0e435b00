"""A slide that is open: its levels, and any rectangle of one of them, read by tiles and never as a plane."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.study import Affine

if TYPE_CHECKING:
    from pydicom import Dataset

Colours = npt.NDArray[np.uint8]
SlideKind = Literal["dicom", "svs", "tiff", "picture"]

#: Distances of rows and of columns that differ by more than this share are noted.
ANISOTROPY = 0.02
#: Most pixels that one read returns; what needs more is read in pieces.
MOST_READ = 64_000_000


@dataclass(frozen=True, eq=False)
class Level:
    """One level of the pyramid.

    Attributes:
        shape: rows and columns.
        mpp: micrometres between rows and between columns.
        downsample: pixels of the finest level on the side of one of this.
        tile: rows and columns of its stored tiles.
        affine: 4x4, index ``(0, row, column, 1)`` of this level -> mm of the slide coordinate system (PS3.3
            C.8.12.2.1) at the centre of the pixel; None for formats that place nothing on the glass.
        headers: DICOM headers without pixel data: one, or the parts of a concatenation in their order.
    """

    shape: tuple[int, int]
    mpp: tuple[float, float]
    downsample: float
    tile: tuple[int, int]
    affine: Affine | None = None
    headers: tuple[Dataset, ...] = field(default=(), repr=False)


class TileSource(Protocol):
    """Where pixels come from; one for each format."""

    def read(self, level: int, row: int, column: int, height: int, width: int) -> Colours:
        """Return ``[height, width, 3]`` RGB 0..255 of a rectangle that lies within the level.

        Raises:
            TileError: a tile that it needs is damaged.
        """
        ...

    def close(self) -> None:
        """Close the files."""
        ...


@dataclass(frozen=True, eq=False)
class Slide:
    """A slide whose files are open; close it, or use it in a ``with`` statement.

    One thread at a time reads from it; another process opens the slide itself.

    Attributes:
        name: file or folder name, or the study key, for messages.
        kind: format.
        levels: the finest first.
        source: reads pixels.
        icc: ICC profile of the colours, or None.
        frame_of_reference: FrameOfReferenceUID of the slide coordinate system, or None.
        notes: what was decided or is unusual, one line each.
    """

    name: str
    kind: SlideKind
    levels: tuple[Level, ...]
    source: TileSource = field(repr=False)
    icc: bytes | None = field(default=None, repr=False)
    frame_of_reference: str | None = None
    notes: tuple[str, ...] = ()

    def read(self, level: int, row: int, column: int, height: int, width: int) -> Colours:
        """Return ``[height, width, 3]`` RGB 0..255 of a rectangle of a level; what lies outside the level is white.

        Args:
            level: number, 0 for the finest.
            row: of the first pixel, in pixels of that level.
            column: likewise.
            height: pixels of that level.
            width: likewise.

        Raises:
            TileError: a tile that it needs is damaged; the message says which.
            IngestError: there is no such level, or the rectangle is empty or larger than `MOST_READ`.
        """
        if not 0 <= level < len(self.levels):
            msg = f"there is no level {level}; levels are {describe(self.levels)}"
            raise IngestError(msg, study=self.name)
        if height < 1 or width < 1 or height * width > MOST_READ:
            msg = f"{width} x {height} pixels cannot be read at once; read from 1 to {MOST_READ // 10**6} million"
            raise IngestError(msg, study=self.name)
        rows, columns = self.levels[level].shape
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + height, rows), min(column + width, columns)
        if bottom <= top or right <= left:
            return np.full((height, width, 3), 255, np.uint8)
        inside = self.source.read(level, top, left, bottom - top, right - left)
        if inside.shape[:2] == (height, width):
            return inside
        pixels = np.full((height, width, 3), 255, np.uint8)
        pixels[top - row : bottom - row, left - column : right - column] = inside
        return pixels

    def close(self) -> None:
        """Close the files; nothing can be read afterwards."""
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def describe(levels: tuple[Level, ...]) -> str:
    """Return the levels in words: number, size and micrometres per pixel."""
    return ", ".join(
        f"{number} ({level.shape[1]} x {level.shape[0]}, {level.mpp[0]:.4g} um)" for number, level in enumerate(levels)
    )


def anisotropy_note(mpp: tuple[float, float]) -> tuple[str, ...]:
    """Return a note when rows and columns lie at different distances, else nothing."""
    if abs(mpp[0] - mpp[1]) <= ANISOTROPY * min(mpp):
        return ()
    share = max(mpp) / min(mpp) - 1
    return (
        f"pixels are no squares: {mpp[0]:.4g} um between rows, {mpp[1]:.4g} um between columns ({share:.0%} apart); "
        "tiles are resampled to squares",
    )
