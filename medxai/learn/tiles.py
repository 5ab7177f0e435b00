"""Tiles of pictures with a mask: cut out, labelled by the share of the mask, stored for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.errors import SettingsError
from medxai.learn.cohort_table import CohortRow

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cut:
    """How tiles are cut.

    Attributes:
        size: pixels along each side.
        step: between neighbours.
        tumour_from: least share of the mask in a tile with tumour.
        clean_below: a tile with at most this share is clean; what lies between is not used.
        darkest: tiles with a mean below it hold nothing.
        brightest: tiles with a mean above it hold nothing.
    """

    size: int = 128
    step: int = 96
    tumour_from: float = 0.25
    clean_below: float = 0.01
    darkest: float = 0.0
    brightest: float = 255.0


@dataclass(frozen=True, eq=False)
class Tile:
    """One tile: ``pixels [size, size, 3]``, ``mask [size, size]``, its picture, place and class (1 is tumour)."""

    picture: str
    row: int
    column: int
    pixels: Pixels
    mask: Mask
    label: int


def tiles_of(folder: Path, cut: Cut) -> list[Tile]:
    """Tiles of every ``NAME`` in a folder that has a ``NAME_mask``.

    Raises:
        SettingsError: there are none.
    """
    found = [tile for path in _pictures(folder) for tile in _cut(path, cut)]
    if not found:
        msg = f"no picture with a mask in {folder.name}; --data must hold it"
        raise SettingsError(msg)
    return found


def store_tiles(tiles: Sequence[Tile], labels: Sequence[str], folder: Path, largest: float = 0.75) -> list[CohortRow]:
    """Write tiles with tumour and their masks as PNG, as rows of a table for `medxai trust validate`.

    Args:
        tiles: those of a held-out fold.
        labels: names of the classes.
        folder: of the files.
        largest: tiles with a larger share of tumour say nothing about place and are left out.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for tile in tiles:
        if not tile.label or tile.mask.mean() > largest:
            continue
        name = f"{tile.picture}_{tile.row}_{tile.column}"
        Image.fromarray(tile.pixels).save(folder / f"{name}.png")
        Image.fromarray(tile.mask.astype(np.uint8) * 255).save(folder / f"{name}_mask.png")
        rows.append(CohortRow(f"{name}.png", labels[tile.label], f"{name}_mask.png", tile.picture))
    return rows


def _pictures(folder: Path) -> Iterator[tuple[Path, Path]]:
    for mask in sorted(folder.glob("*_mask.*")):
        yield mask.with_name(mask.name.replace("_mask", "")), mask


def _cut(paths: tuple[Path, Path], cut: Cut) -> Iterator[Tile]:
    from PIL import Image

    with Image.open(paths[0]) as image, Image.open(paths[1]) as mask:
        pixels, inside = np.asarray(image.convert("RGB")), np.asarray(mask.convert("RGB")).max(-1) > 127
    size = cut.size
    for row in range(0, pixels.shape[0] - size + 1, cut.step):
        for column in range(0, pixels.shape[1] - size + 1, cut.step):
            place = (slice(row, row + size), slice(column, column + size))
            share, grey = float(inside[place].mean()), float(pixels[place].mean())
            label = 1 if share >= cut.tumour_from else 0 if share <= cut.clean_below else None
            if label is not None and (label or cut.darkest <= grey <= cut.brightest):
                yield Tile(paths[0].stem, row, column, pixels[place], inside[place], label)
