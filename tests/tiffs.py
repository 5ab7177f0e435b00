"""Tiled pyramids of BigTIFF, written tile by tile, so that a slide of any size takes the memory of one tile."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

Colours = npt.NDArray[np.uint8]
#: (first row, first column, rows, columns, pixels of the finest level on a side of one) -> ``[rows, columns, 3]``.
Painter = Callable[[int, int, int, int, int], Colours]

_SHORT, _LONG, _RATIONAL, _LONG8, _ASCII = 3, 4, 5, 16, 2


def painter_of(picture: Colours) -> Painter:
    """Return what paints a picture that is in memory; coarse pixels are means of squares, and its outside is white."""

    def paint(row: int, column: int, rows: int, columns: int, factor: int) -> Colours:
        part = picture[row * factor : (row + rows) * factor, column * factor : (column + columns) * factor]
        full = np.full((rows * factor, columns * factor, 3), 255, np.uint8)
        full[: part.shape[0], : part.shape[1]] = part
        means = full.reshape(rows, factor, columns, factor, 3).mean((1, 3))
        return np.asarray(np.rint(means), np.uint8)

    return paint


def tissue_painter(size: tuple[int, int], texture: Colours) -> Painter:
    """Return what paints tissue of any size without holding it: three ellipses filled with a texture, on glass.

    Args:
        size: rows and columns of the finest level.
        texture: ``[H, W, 3]`` that repeats itself.
    """
    ellipses = ((0.35, 0.3, 0.25, 0.2), (0.7, 0.55, 0.2, 0.3), (0.25, 0.75, 0.15, 0.12))

    def paint(row: int, column: int, rows: int, columns: int, factor: int) -> Colours:
        r, c = np.ogrid[row : row + rows, column : column + columns]
        y, x = (r + 0.5) * factor / size[0], (c + 0.5) * factor / size[1]
        inside = np.zeros((rows, columns), bool)
        for at_y, at_x, radius_y, radius_x in ellipses:
            inside |= ((y - at_y) / radius_y) ** 2 + ((x - at_x) / radius_x) ** 2 < 1
        found = np.full((rows, columns, 3), 244, np.uint8)
        if inside.any():
            small = texture.reshape(texture.shape[0] // factor, factor, texture.shape[1] // factor, factor, 3)
            means = np.rint(small.mean((1, 3))).astype(np.uint8)
            repeated = means[r % means.shape[0], c % means.shape[1]]
            found[inside] = repeated[inside]
        return found

    return paint


def write_pyramid(
    path: Path, size: tuple[int, int], paint: Painter, *, tile: int = 256, factors: Sequence[int] = (1, 4, 16),
    mpp: tuple[float, float] | None = (0.25, 0.25), quality: int = 90, damaged: Collection[int] = (),
    description: str = "", icc: bytes = b"",
) -> Path:  # fmt: skip
    """Write a pyramid of JPEG tiles.

    Args:
        path: to write.
        size: rows and columns of the finest level.
        paint: returns the pixels of a tile.
        tile: rows and columns, a multiple of 16.
        factors: pixels of the finest level on a side of one, for each level.
        mpp: micrometres between rows and columns, written as resolution in centimetres; None writes none.
        quality: of JPEG.
        damaged: tiles of the finest level, counted row by row, that hold noise.
        description: ImageDescription of every level.
        icc: profile.
    """
    with path.open("wb") as stream:
        stream.write(b"II" + struct.pack("<HHHQ", 43, 8, 0, 0))
        link = 8  # where the offset of the next directory goes
        for number, factor in enumerate(factors):
            rows, columns = size[0] // factor, size[1] // factor
            down, across = -(-rows // tile), -(-columns // tile)
            offsets, lengths = [], []
            for index in range(down * across):
                pixels = paint(index // across * tile, index % across * tile, tile, tile, factor)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
                data = buffer.getvalue()
                if number == 0 and index in damaged:
                    data = b"\x00" + bytes(range(1, 200)) * (len(data) // 199 + 1)
                offsets.append(stream.tell())
                lengths.append(len(data))
                stream.write(data)
            entries: list[tuple[int, int, int, bytes]] = [
                (254, _LONG, 1, struct.pack("<I", int(number > 0))), (256, _LONG, 1, struct.pack("<I", columns)),
                (257, _LONG, 1, struct.pack("<I", rows)), (258, _SHORT, 3, struct.pack("<3H", 8, 8, 8)),
                (259, _SHORT, 1, struct.pack("<H", 7)), (262, _SHORT, 1, struct.pack("<H", 6)),
                (277, _SHORT, 1, struct.pack("<H", 3)), (284, _SHORT, 1, struct.pack("<H", 1)),
                (322, _LONG, 1, struct.pack("<I", tile)), (323, _LONG, 1, struct.pack("<I", tile)),
                (324, _LONG8, len(offsets), struct.pack(f"<{len(offsets)}Q", *offsets)),
                (325, _LONG8, len(lengths), struct.pack(f"<{len(lengths)}Q", *lengths)),
                (530, _SHORT, 2, struct.pack("<2H", 1, 1)),
            ]  # fmt: skip
            if description:
                text = description.encode() + b"\0"
                entries.append((270, _ASCII, len(text), text))
            if mpp is not None:
                for tag, value in ((282, mpp[1]), (283, mpp[0])):
                    per_cm = round(1e4 / (value * factor) * 1000)
                    entries.append((tag, _RATIONAL, 1, struct.pack("<II", per_cm, 1000)))
                entries.append((296, _SHORT, 1, struct.pack("<H", 3)))
            if icc:
                entries.append((34675, 7, len(icc), icc))
            link = _directory(stream, link, sorted(entries))
    return path


def _directory(stream: BinaryIO, link: int, entries: Sequence[tuple[int, int, int, bytes]]) -> int:
    """Write a directory, let the one before it point to it, and return where its own pointer is."""
    where = {}
    for tag, _, _, data in entries:
        if len(data) > 8:
            stream.seek((8 - stream.tell() % 8) % 8, 1)
            where[tag] = stream.tell()
            stream.write(data)
    stream.seek((8 - stream.tell() % 8) % 8, 1)
    start = stream.tell()
    stream.write(struct.pack("<Q", len(entries)))
    for tag, kind, count, data in entries:
        value = struct.pack("<Q", where[tag]) if tag in where else data.ljust(8, b"\0")
        stream.write(struct.pack("<HHQ", tag, kind, count) + value)
    end = stream.tell()
    stream.write(struct.pack("<Q", 0))
    stream.seek(link)
    stream.write(struct.pack("<Q", start))
    stream.seek(0, 2)
    return end
