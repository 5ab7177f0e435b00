"""Tiles to be clustered: synthetic or from folders, glass left out, stains evened, dealt out by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medxai.errors import SettingsError
from medxai.learn.clustering.settings import DataSettings
from medxai.learn.splits import grouped_folds
from medxai.learn.tiles import Cut, Mask, Pixels, tiles_of
from medxai.networks.graded_tiles import evened

#: A pixel whose darkest colour is above it is glass.
GLASS = 220
_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class TileSet:
    """Tiles with what is known of them.

    Attributes:
        pixels: ``[N, size, size, 3]`` as they were.
        masks: ``[N, size, size]`` what makes the class; None where nobody drew it.
        labels: ``[N]`` index in `classes`; -1 where not known.
        groups: patient or picture of each.
        sets: where each comes from.
        classes: names; none for tiles without labels.
    """

    pixels: Pixels
    masks: Mask | None
    labels: npt.NDArray[np.int64]
    groups: tuple[str, ...]
    sets: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def labelled(self) -> bool:
        """Whether scores can be given."""
        return bool(self.classes)


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of tiles: learnt from without labels, with labels that name clusters, scored. No group is in two."""

    train: npt.NDArray[np.int64]
    naming: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


def read_tiles(settings: DataSettings) -> TileSet:
    """Tiles with enough tissue.

    Raises:
        SettingsError: a folder holds none, or folders with and without labels are mixed.
    """
    if not settings.folders:
        from sample_cases.synthetic_textures import CLASSES, textures

        drawn = textures(settings.count, settings.seed, settings.size, settings.patients)
        return TileSet(
            np.stack([t.pixels for t in drawn]),
            np.stack([t.mask for t in drawn]),
            np.array([t.label for t in drawn], np.int64),
            tuple(t.patient for t in drawn),
            ("synthetic",) * len(drawn),
            CLASSES,
        )
    parts = [_folder(folder, settings) for folder in settings.folders]
    if len({part.classes for part in parts}) > 1:
        msg = "the folders of tiles have different classes, or only some have labels; give each its own run"
        raise SettingsError(msg)
    whole = _joined(parts)
    kept = np.flatnonzero([tissue_share(tile) >= settings.tissue for tile in whole.pixels])
    if not len(kept):
        msg = f"no tile has {settings.tissue:.0%} of tissue; lower data.tissue"
        raise SettingsError(msg)
    return _some(whole, kept)


def tissue_share(pixels: Pixels) -> float:
    """Share of the pixels ``[H, W, 3]`` that are darker than glass."""
    return float((pixels.min(-1) < GLASS).mean())


def as_input(pixels: Pixels, stain: str = "tile") -> Tensor:
    """Network input ``[N, 3, H, W]`` in 0..1 of tiles ``[N, H, W, 3]``; see `DataSettings.stain`."""
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255
    if stain == "none":
        return x
    return evened(x)


def split(tiles: TileSet, settings: DataSettings, seed: int) -> Split:
    """Deal groups out: fold `seed` is scored, the next one names clusters, the others are learnt from.

    Raises:
        SettingsError: too few groups, or a fold without one of the classes.
    """
    fold = grouped_folds(tiles.labels.tolist(), tiles.groups, settings.folds, settings.seed)
    place = (fold - seed) % settings.folds
    train, naming, test = np.flatnonzero(place > 1), np.flatnonzero(place == 1), np.flatnonzero(place == 0)
    return Split(train, naming, test)


def _folder(folder: Path, settings: DataSettings) -> TileSet:
    table = folder / "labels.csv"
    if table.exists():
        return _table(table, settings.size)
    if any(folder.glob("*_mask.*")):
        cut = Cut(settings.size, settings.step, settings.tumour_from, settings.clean_below, brightest=255.0)
        tiles = tiles_of(folder, cut)
        return TileSet(
            np.stack([t.pixels for t in tiles]),
            np.stack([t.mask for t in tiles]),
            np.array([t.label for t in tiles], np.int64),
            tuple(t.picture for t in tiles),
            (folder.name,) * len(tiles),
            ("clean", "tumour"),
        )
    pixels, groups = [], []
    for path in sorted(p for p in folder.glob("*") if p.suffix.lower() in _ENDINGS):
        image = _read(path)
        for row in range(0, image.shape[0] - settings.size + 1, settings.step):
            for column in range(0, image.shape[1] - settings.size + 1, settings.step):
                pixels.append(image[row : row + settings.size, column : column + settings.size])
                groups.append(path.stem)
    if not pixels:
        msg = f"no picture of at least {settings.size} pixels a side in {folder.name}; --data must hold some"
        raise SettingsError(msg)
    unknown = np.full(len(pixels), -1, np.int64)
    return TileSet(np.stack(pixels), None, unknown, tuple(groups), (folder.name,) * len(pixels), ())


def _table(table: Path, size: int) -> TileSet:
    from medxai.trust.cohort.table import read_table

    rows = read_table(table, table.parent)
    classes = tuple(sorted({row.label for row in rows}))
    if "" in classes:
        msg = f"{table.parent.name}/labels.csv has rows without a label; fill them in or remove the file"
        raise SettingsError(msg)
    images = [_read(row.image) for row in rows]
    wrong = next((row.image.name for row, i in zip(rows, images, strict=True) if i.shape[:2] != (size, size)), None)
    if wrong is not None:
        msg = f"{wrong} is not {size} x {size} pixels; set data.size or cut the tiles anew"
        raise SettingsError(msg)
    masks = [np.zeros((size, size), bool) if row.mask is None else _read(row.mask).max(-1) > 127 for row in rows]
    return TileSet(
        np.stack(images),
        np.stack(masks) if any(row.mask for row in rows) else None,
        np.array([classes.index(row.label) for row in rows], np.int64),
        tuple(row.patient for row in rows),
        (table.parent.name,) * len(rows),
        classes,
    )


def _read(path: Path) -> Pixels:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        msg = f"{path.name} cannot be read as a picture ({type(error).__name__})"
        raise SettingsError(msg) from error


def _joined(parts: Sequence[TileSet]) -> TileSet:
    masks = [part.masks for part in parts if part.masks is not None]
    return TileSet(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate(masks) if len(masks) == len(parts) else None,
        np.concatenate([part.labels for part in parts]),
        tuple(group for part in parts for group in part.groups),
        tuple(name for part in parts for name in part.sets),
        parts[0].classes,
    )


def _some(tiles: TileSet, rows: npt.NDArray[np.int64]) -> TileSet:
    return TileSet(
        tiles.pixels[rows],
        None if tiles.masks is None else tiles.masks[rows],
        tiles.labels[rows],
        tuple(tiles.groups[i] for i in rows),
        tuple(tiles.sets[i] for i in rows),
        tiles.classes,
    )
