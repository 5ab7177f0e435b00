"""A plain picture (PNG, JPEG) as a slide of one level, whose micrometres per pixel the caller knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medxai.errors import IngestError
from medxai.ingest.picture import read_picture
from medxai.ingest.slides.level import Colours, Level, Slide, anisotropy_note


def open_patch(path: Path, mpp: tuple[float, float] | None, name: str) -> Slide:
    """Read a picture of tissue.

    Args:
        path: PNG or JPEG of at most 64 million pixels.
        mpp: micrometres between rows and between columns.
        name: for messages.

    Raises:
        IngestError: not readable, or `mpp` is not given.
    """
    from PIL import Image

    if mpp is None:
        msg = (
            "is a plain picture, which states no micrometres per pixel, so that tiles have no size: "
            "give them with --mpp (open_slide(mpp=...))"
        )
        raise IngestError(msg, study=name)
    pixels = read_picture(path, modality="SM").pixels
    notes = anisotropy_note(mpp)
    if pixels.shape[0] == 1:
        pixels = np.repeat(pixels, 3, axis=0)
        notes = (*notes, "has no colours, so that stains cannot be told apart")
    with Image.open(path) as image:
        icc = image.info.get("icc_profile")
    colours = np.ascontiguousarray(np.rint(pixels).astype(np.uint8).transpose(1, 2, 0))
    shape = (colours.shape[0], colours.shape[1])
    return Slide(
        name=name,
        kind="picture",
        levels=(Level(shape=shape, mpp=mpp, downsample=1.0, tile=shape),),
        source=_Source(colours),
        icc=icc or None,
        notes=notes,
    )


class _Source:
    def __init__(self, pixels: Colours) -> None:
        self._pixels = pixels

    def read(self, level: int, row: int, column: int, height: int, width: int) -> Colours:
        return self._pixels[row : row + height, column : column + width].copy()

    def close(self) -> None:
        """Nothing is open."""
