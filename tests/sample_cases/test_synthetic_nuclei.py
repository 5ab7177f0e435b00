"""Synthetic nuclei: the same for a seed, one point on each, a fifth that touch, and colour that does not suffice."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from sample_cases.synthetic_nuclei import RADIUS, Field, fields, main


@pytest.fixture(scope="module")
def drawn() -> list[Field]:
    return fields(12, 4)


def test_the_same_for_a_seed_whatever_the_number(drawn: list[Field]) -> None:
    for first, second in zip(drawn, fields(2, 4), strict=False):
        np.testing.assert_array_equal(first.pixels, second.pixels)
        np.testing.assert_array_equal(first.instances, second.instances)
        np.testing.assert_array_equal(first.points, second.points)
    assert not np.array_equal(drawn[0].pixels, fields(1, 5)[0].pixels)


def test_every_nucleus_has_a_point_on_it(drawn: list[Field]) -> None:
    for field in drawn:
        rows, columns = field.points.astype(int).T
        np.testing.assert_array_equal(field.instances[rows, columns], np.arange(1, field.instances.max() + 1))


def test_jitter_moves_points_and_nothing_else(drawn: list[Field]) -> None:
    exact, far = fields(12, 4, jitter=0.0), fields(12, 4, jitter=3.0)
    middles = [np.array([np.argwhere(f.instances == k).mean(0) for k in range(1, len(f.points) + 1)]) for f in drawn]

    def miss(some: list[Field]) -> float:
        return float(np.mean(np.concatenate([np.hypot(*(f.points - m).T) for f, m in zip(some, middles, strict=True)])))

    for first, second in zip(exact, far, strict=True):
        np.testing.assert_array_equal(first.pixels, second.pixels)
    assert miss(exact) < 0.6  # rounding to a pixel
    assert miss(exact) < miss(drawn) < miss(far)
    assert 2.5 < miss(far) < 4.5  # 3 pixels along each axis


def test_a_fifth_of_the_nuclei_touch(drawn: list[Field]) -> None:
    touched = []
    for field in drawn:
        for number in range(1, field.instances.max() + 1):
            mine = field.instances == number
            touched.append((field.instances[binary_dilation(mine) & ~mine] > 0).any())
    assert len(touched) > 100
    assert 0.1 < np.mean(touched) < 0.3


def test_size_and_colour(drawn: list[Field]) -> None:
    areas = np.concatenate([np.bincount(f.instances.ravel())[1:] for f in drawn])
    assert 0.6 < np.sqrt(np.median(areas) / np.pi) / RADIUS < 1.4
    assert areas.max() > 3 * areas.min()
    red = [f.pixels[..., 0].astype(float) for f in drawn]
    inside = np.concatenate([r[f.instances > 0] for r, f in zip(red, drawn, strict=True)])
    outside = np.concatenate([r[f.instances == 0] for r, f in zip(red, drawn, strict=True)])
    assert inside.mean() < outside.mean() - 30  # nuclei are blue
    assert np.percentile(inside, 95) > np.percentile(outside, 10)  # yet pale ones are paler than dark tissue


def test_the_folder(tmp_path: Path) -> None:
    assert main(["--n", "2", "--seed", "4", "--size", "96", "--jitter", "0.5", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["field_000.png", "field_001.png"]
    wanted = fields(2, 4, 96, 0.5)[1]
    with Image.open(tmp_path / "masks" / "field_001.png") as mask:
        assert mask.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(mask), wanted.instances)
    with (tmp_path / "points.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["image"] == "field_001.png"]
    np.testing.assert_array_equal([(float(r["row"]), float(r["column"])) for r in rows], wanted.points)
