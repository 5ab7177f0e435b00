"""Tumour in tiles of stained tissue: lymph node (CAMELYON) and oral cavity (OCDC), folds of whole patches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medxai.learn.loop import Recipe
from medxai.learn.tile_folds import Question, cross_validate
from medxai.learn.tiles import Cut, Tile, tiles_of
from medxai.learn.transfer import Transfer
from medxai.predict.augment import Augmentation

#: Folders below the data, both with patches ``NAME.jpg`` and ``NAME_mask.jpg``.
SETS = ("histo_camelyon", "histo_ocdc")
CUT = Cut(size=128, step=96, tumour_from=0.25, clean_below=0.01, brightest=235)
QUESTION = Question(
    name="histology",
    modality="SM",
    body_part="BREAST",
    data="16 patches of CAMELYON (CC0) and 10 of OCDC (CC BY 4.0), in tiles of 128 pixels.",
    licence="CC-BY-4.0",
    how=Transfer(
        classes=2,
        recipe=Recipe(epochs=8, batch_size=32, learning_rate=1e-3, label_smoothing=0.05, average=0.97, seed=51),
        augmentation=Augmentation(flip_axes=(0, 1), rotate_degrees=20, scale=0.1, gain=0.15, offset=0.1),
        fill=0.9,
    ),
    folds=2,
)


def all_tiles(data: Path) -> tuple[list[Tile], dict[str, str]]:
    """Tiles of both sets, and the set of each picture.

    Raises:
        SettingsError: a set is not there.
    """
    tiles: list[Tile] = []
    origin: dict[str, str] = {}
    for name in SETS:
        mine = tiles_of(data / name, CUT)
        tiles += mine
        origin |= {tile.picture: name for tile in mine}
    return tiles, origin


def train(data: Path, work: Path, say: Callable[[str], None]) -> list[Path]:
    """Train the folds; see `medxai.learn.tile_folds.cross_validate`."""
    tiles, origin = all_tiles(data)
    return cross_validate(QUESTION, tiles, work, say, origin)
