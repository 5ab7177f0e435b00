"""Tiles from folders of three kinds, glass and stains, and groups that stay together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medxai.errors import SettingsError
from medxai.learn.clustering.data import as_input, read_tiles, split, tissue_share
from medxai.learn.clustering.settings import DataSettings
from sample_cases.synthetic_textures import CLASSES, textures, write


def save(folder: Path, name: str, image: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(image).save(folder / name)


def test_a_folder_with_a_table(tmp_path: Path) -> None:
    drawn = textures(12, 3, 32)
    write(drawn, tmp_path)
    found = read_tiles(DataSettings(folders=(tmp_path,), size=32))
    assert found.classes == tuple(sorted(CLASSES))
    assert found.groups == tuple(t.patient for t in drawn)
    np.testing.assert_array_equal(found.pixels, np.stack([t.pixels for t in drawn]))
    assert found.masks is not None
    np.testing.assert_array_equal(found.masks, np.stack([t.mask for t in drawn]))
    assert [found.classes[i] for i in found.labels] == [CLASSES[t.label] for t in drawn]
    with pytest.raises(SettingsError, match="is not 64 x 64 pixels"):
        read_tiles(DataSettings(folders=(tmp_path,), size=64))
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace("mild", "", 1))
    with pytest.raises(SettingsError, match="rows without a label"):
        read_tiles(DataSettings(folders=(tmp_path,), size=32))


def test_a_folder_of_pictures_with_masks_is_cut(tmp_path: Path) -> None:
    image = np.full((64, 96, 3), 120, np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[:32, :32] = 255
    image[32:, 64:] = 255  # glass
    save(tmp_path, "a.png", image)
    save(tmp_path, "a_mask.png", mask)
    found = read_tiles(DataSettings(folders=(tmp_path,), size=32, step=32))
    assert found.classes == ("clean", "tumour")
    assert found.labels.tolist() == [1, 0, 0, 0, 0]  # six tiles without the glass
    assert set(found.groups) == {"a"}


def test_a_folder_of_pictures_alone_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path, "b.png", np.full((70, 40, 3), 90, np.uint8))
    found = read_tiles(DataSettings(folders=(tmp_path,), size=32, step=32))
    assert not found.labelled
    assert found.labels.tolist() == [-1, -1]
    save(tmp_path, "broken.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SettingsError, match=r"broken\.png cannot be read"):
        read_tiles(DataSettings(folders=(tmp_path,), size=32))


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    empty, white, masked = tmp_path / "empty", tmp_path / "white", tmp_path / "masked"
    empty.mkdir()
    with pytest.raises(SettingsError, match="no picture of at least 32 pixels"):
        read_tiles(DataSettings(folders=(empty,), size=32))
    save(white, "w.png", np.full((32, 32, 3), 250, np.uint8))
    with pytest.raises(SettingsError, match="no tile has 20% of tissue"):
        read_tiles(DataSettings(folders=(white,), size=32))
    save(masked, "m.png", np.full((32, 32, 3), 90, np.uint8))
    save(masked, "m_mask.png", np.zeros((32, 32), np.uint8))
    with pytest.raises(SettingsError, match="only some have labels"):
        read_tiles(DataSettings(folders=(white, masked), size=32))


def test_tissue_is_what_is_darker_than_glass() -> None:
    pixels = np.full((10, 10, 3), 240, np.uint8)
    pixels[:3, :, 1] = 150
    assert tissue_share(pixels) == pytest.approx(0.3)


def test_stains_are_evened() -> None:
    """A tile under a coloured light gives the input of the same tile under white light."""
    pixels = np.random.default_rng(0).integers(60, 200, (2, 32, 48, 3)).astype(np.uint8)
    light = np.array([0.7, 1.1, 0.9])
    tinted = np.rint(pixels * light).astype(np.uint8)
    plain, evened = as_input(pixels), as_input(tinted)
    assert plain.shape == (2, 3, 32, 48)
    torch.testing.assert_close(plain, evened, atol=0.01, rtol=0)
    assert (as_input(pixels, "none") - as_input(tinted, "none")).abs().max() > 0.1
    assert plain.max() <= 1


def test_patients_stay_together_and_every_tile_is_scored_once() -> None:
    settings = DataSettings(count=90, size=32, patients=15)
    tiles = read_tiles(settings)
    scored = []
    for seed in range(settings.folds):
        parts = split(tiles, settings, seed)
        who = [{tiles.groups[i] for i in rows} for rows in (parts.train, parts.naming, parts.test)]
        assert not who[0] & who[1]
        assert not who[0] & who[2]
        assert not who[1] & who[2]
        assert sum(map(len, (parts.train, parts.naming, parts.test))) == 90
        scored += parts.test.tolist()
    assert sorted(scored) == list(range(90))
