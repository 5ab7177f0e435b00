"""SVS, pyramidal TIFF and other formats of scanners, through OpenSlide (LGPL, of the extra ``pathology``)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medxai.errors import IngestError, TileError
from medxai.ingest.slides.level import Colours, Level, Slide, anisotropy_note

#: mm per unit of TIFF's resolution are OpenSlide's work; these are its names of micrometres per pixel.
_MPP = ("openslide.mpp-y", "openslide.mpp-x")


def openslide() -> ModuleType:
    """Return the OpenSlide module.

    Raises:
        IngestError: it is not installed.
    """
    try:
        import openslide as module
    except (ImportError, OSError) as error:  # OSError: the library itself is missing
        msg = "SVS and TIFF slides need OpenSlide, which is not installed: pip install 'medxai[pathology]'"
        raise IngestError(msg) from error
    return module


def open_vendor(path: Path, mpp: tuple[float, float] | None, name: str) -> Slide:
    """Open a slide in a format of OpenSlide.

    Args:
        path: of the file.
        mpp: micrometres between rows and between columns of the finest level, or None for what the file states.
        name: for messages.

    Raises:
        IngestError: OpenSlide is missing or cannot read the file, or micrometres per pixel are unknown.
    """
    source = _Source(path, name)
    properties = source.handle.properties
    try:
        spacing = mpp or _stated(properties, name)
        shapes = [(rows, columns) for columns, rows in source.handle.level_dimensions]
        levels = tuple(
            Level(
                shape=shape,
                mpp=(spacing[0] * shapes[0][0] / shape[0], spacing[1] * shapes[0][1] / shape[1]),
                downsample=float(source.handle.level_downsamples[number]),
                tile=_tile(properties, number, shape),
            )
            for number, shape in enumerate(shapes)
        )
        profile = source.handle.color_profile
    except BaseException:
        source.close()
        raise
    return Slide(
        name=name,
        kind="svs" if properties.get("openslide.vendor") == "aperio" else "tiff",
        levels=levels,
        source=source,
        icc=profile.tobytes() if profile is not None else None,
        notes=anisotropy_note(levels[0].mpp),
    )


class _Source:
    """An open file; opened again after an error, since OpenSlide refuses everything after the first."""

    def __init__(self, path: Path, name: str) -> None:
        self._module, self._path, self._name = openslide(), path, name
        self.handle = self._open()

    def _open(self) -> Any:
        try:
            return self._module.OpenSlide(self._path)
        except (self._module.OpenSlideError, OSError) as error:
            msg = f"OpenSlide cannot read it ({type(error).__name__}); the file is damaged or of another format"
            raise IngestError(msg, study=self._name) from error

    def read(self, level: int, row: int, column: int, height: int, width: int) -> Colours:
        columns0, rows0 = self.handle.level_dimensions[0]
        columns, rows = self.handle.level_dimensions[level]
        # The place is asked for in pixels of the finest level, whatever is read.
        at = (round(column * columns0 / columns), round(row * rows0 / rows))
        try:
            picture = np.asarray(self.handle.read_region(at, level, (width, height)))
        except self._module.OpenSlideError as error:
            self._reopen()
            msg = f"level {level}: {self._damaged(level, row, column, height, width)} cannot be decoded; it is damaged"
            raise TileError(msg, study=self._name) from error
        alpha = picture[..., 3:].astype(np.uint16)
        if (alpha == 255).all():
            return np.ascontiguousarray(picture[..., :3])
        # What was not scanned is transparent: white. The alpha of this RGBA is not premultiplied.
        mixed = (picture[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
        return mixed.astype(np.uint8)

    def _reopen(self) -> None:
        self.handle.close()
        self.handle = self._open()

    def _damaged(self, level: int, row: int, column: int, height: int, width: int) -> str:
        """Name the first stored tile of a rectangle that cannot be decoded, found by asking for a pixel of each."""
        columns, rows = self.handle.level_dimensions[level]
        columns0, rows0 = self.handle.level_dimensions[0]
        down, across = _tile(self.handle.properties, level, (rows, columns))
        for first_row in range(row // down * down, row + height, down):
            for first_column in range(column // across * across, column + width, across):
                middle = (min(first_row + down // 2, rows - 1), min(first_column + across // 2, columns - 1))
                at = (round(middle[1] * columns0 / columns), round(middle[0] * rows0 / rows))
                try:
                    self.handle.read_region(at, level, (1, 1))
                except self._module.OpenSlideError:
                    self._reopen()
                    return f"the tile from row {first_row}, column {first_column} on"
        return f"a tile in the {width} x {height} pixels from row {row}, column {column} on"

    def close(self) -> None:
        self.handle.close()


def _stated(properties: Any, name: str) -> tuple[float, float]:
    values = []
    for key in _MPP:
        try:
            values.append(float(properties[key]))
        except (KeyError, ValueError):
            values.append(0.0)
    if not all(0 < value < 1000 for value in values):
        msg = "states no micrometres per pixel, so that tiles have no size: give them with --mpp (open_slide(mpp=...))"
        raise IngestError(msg, study=name)
    return values[0], values[1]


def _tile(properties: Any, number: int, shape: tuple[int, int]) -> tuple[int, int]:
    names = (f"openslide.level[{number}].tile-height", f"openslide.level[{number}].tile-width")
    height, width = (int(properties.get(name, size)) for name, size in zip(names, shape, strict=True))
    return height, width
