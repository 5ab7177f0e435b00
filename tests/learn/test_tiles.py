"""Tiles and blocks of cohorts: classes by the share of the mask, places found again, a table that is read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxai.errors import SettingsError
from medxai.ingest.nifti import read_nifti
from medxai.learn.cohort_table import write_table
from medxai.learn.ms_lesions import SPEC, Side, _store, drawn, held_out
from medxai.learn.tiles import Cut, store_tiles, tiles_of
from medxai.trust.cohort.table import read_table


def test_tiles_are_cut_and_labelled(tmp_path: Path) -> None:
    pixels = np.full((96, 64, 3), 100, np.uint8)
    mask = np.zeros((96, 64), np.uint8)
    mask[:32, :16] = 255  # half of the first tile
    mask[32:34, :32] = 255  # a sixteenth of the third
    pixels[64:, 32:] = 250  # glass
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    cut = Cut(size=32, step=32, tumour_from=0.25, clean_below=0.0, brightest=240)
    tiles = tiles_of(tmp_path, cut)
    assert [(t.row, t.column, t.label) for t in tiles] == [(0, 0, 1), (0, 32, 0), (32, 32, 0), (64, 0, 0)]
    rows = store_tiles(tiles, ("clean", "tumour"), tmp_path / "cases")
    write_table(tmp_path / "labels.csv", rows)
    (row,) = read_table(tmp_path / "labels.csv", tmp_path / "cases")
    assert (row.label, row.patient) == ("tumour", "a")
    assert row.mask is not None
    with Image.open(row.mask) as image:
        assert np.array_equal(np.asarray(image) > 0, tiles[0].mask)
    assert not store_tiles(tiles, ("clean", "tumour"), tmp_path / "cases", largest=0.4)
    with pytest.raises(SettingsError, match="no picture with a mask"):
        tiles_of(tmp_path / "cases" / "none", cut)


def test_blocks_come_back_at_their_place(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    shape = (60, 100, 110)
    pixels = source.uniform(0.3, 0.6, shape).astype(np.float32)
    lesion = np.zeros(shape, bool)
    lesion[5:11, 6:14, 7:15] = True
    affine = np.array([[0, 0, 1.0, -30], [0, 1.0, 0, 10], [1.0, 0, 0, 5], [0, 0, 0, 1]])
    side = Side("left", pixels, lesion, affine)
    places = held_out(side)
    assert {label for _, label in places} == {0, 1}
    chosen = [label for _, label in drawn(side)]
    assert chosen.count(0) == chosen.count(1)
    place = next(place for place, label in places if label)
    row = _store(side, place, tmp_path)
    volume, mask = read_nifti(tmp_path / row.path), read_nifti(tmp_path / row.mask)
    assert volume.shape == SPEC.window
    np.testing.assert_allclose(mask.affine, volume.affine)
    index = np.argwhere(mask.pixels[0] > 0)[0]
    world = (volume.affine @ [*index, 1])[:3]
    back = np.rint((np.linalg.inv(affine) @ [*world, 1])[:3]).astype(int)
    assert lesion[tuple(back)]
    np.testing.assert_allclose(volume.pixels[0][tuple(index)] / 160, pixels[tuple(back)], rtol=1e-5)
