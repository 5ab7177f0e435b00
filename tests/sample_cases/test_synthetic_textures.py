"""Synthetic textures: the same for a seed, even classes and patients, masks on what is brown, colours that vary."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_cases.synthetic_textures import CLASSES, Texture, main, textures


@pytest.fixture(scope="module")
def drawn() -> list[Texture]:
    return textures(90, 4, patients=10)


def of(drawn: list[Texture], label: int) -> list[Texture]:
    return [t for t in drawn if t.label == label]


def test_the_same_for_a_seed_whatever_the_number(drawn: list[Texture]) -> None:
    for first, second in zip(drawn, textures(12, 4, patients=10), strict=False):
        np.testing.assert_array_equal(first.pixels, second.pixels)
        np.testing.assert_array_equal(first.mask, second.mask)
    assert not np.array_equal(drawn[0].pixels, textures(1, 5, patients=10)[0].pixels)


def test_patterns_and_patients_are_even(drawn: list[Texture]) -> None:
    assert [len(of(drawn, label)) for label in range(3)] == [30, 30, 30]
    who = {t.patient for t in drawn}
    assert len(who) == 10
    for patient in who:
        assert sorted(t.label for t in drawn if t.patient == patient) == [0] * 3 + [1] * 3 + [2] * 3


def test_masks_are_what_the_pattern_is_made_of(drawn: list[Texture]) -> None:
    """Nothing, few large pieces, many small ones; darker than the rest of the tile."""
    from scipy.ndimage import label

    assert not any(t.mask.any() for t in of(drawn, 0))
    for tile in of(drawn, 1):
        assert 0.03 < tile.mask.mean() < 0.6
        assert label(tile.mask)[1] <= 3
    for tile in of(drawn, 2):
        assert 0.01 < tile.mask.mean() < 0.07
        assert label(tile.mask)[1] >= 8
    for tile in of(drawn, 1) + of(drawn, 2):
        grey = tile.pixels.mean(-1)
        assert grey[tile.mask].mean() < 0.8 * grey[~tile.mask].mean()


def test_colour_varies_more_than_patterns_do(drawn: list[Texture]) -> None:
    """Blank tiles differ among each other by more than dots change the mean colour."""
    means = np.array([t.pixels.mean((0, 1)) for t in drawn])
    labels = np.array([t.label for t in drawn])
    between = np.abs(means[labels == 2].mean(0) - means[labels == 0].mean(0)).max()
    assert means[labels == 0].std(0).min() > between
    still = np.array([t.pixels.mean((0, 1)) for t in textures(30, 4, jitter=0.0) if t.label == 0])
    assert still.std(0).max() < 0.2 * means[labels == 0].std(0).min()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--n", "6", "--size", "48", "--out", str(tmp_path)]) == 0
    assert "labels.csv" in capsys.readouterr().out
    with (tmp_path / "labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == list(CLASSES) * 2
    for row in rows:
        assert Image.open(tmp_path / row["path"]).size == (48, 48)
        assert Image.open(tmp_path / row["mask"]).size == (48, 48)
