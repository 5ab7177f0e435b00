"""Fields with points are read without their masks; masks are read for scores alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxai.errors import SettingsError
from medxai.learn.nuclei.data import read_fields
from medxai.learn.nuclei.truth import read_masked
from sample_cases.synthetic_nuclei import fields, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(fields(3, 7, 96), tmp_path)
    return tmp_path


def test_fields_come_with_their_points(folder: Path) -> None:
    found = read_fields(folder, 96)
    assert [field.name for field in found] == ["field_000.png", "field_001.png", "field_002.png"]
    for field, wanted in zip(found, fields(3, 7, 96), strict=True):
        np.testing.assert_array_equal(field.pixels, wanted.pixels)
        np.testing.assert_array_equal(field.points, wanted.points)


def test_masks_may_be_absent_or_anything(folder: Path) -> None:
    before = read_fields(folder, 96)
    for path in (folder / "masks").iterdir():
        path.write_bytes(b"no picture")
    middle = read_fields(folder, 96)
    shutil.rmtree(folder / "masks")
    for first, second, third in zip(before, middle, read_fields(folder, 96), strict=True):
        np.testing.assert_array_equal(first.pixels, second.pixels)
        np.testing.assert_array_equal(first.points, third.points)
    with pytest.raises(SettingsError, match="holds no mask"):
        read_masked(folder)


def test_wrong_folders_are_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"96 x 96 pixels; at least 128 are cut out"):
        read_fields(folder, 128)
    table = folder / "points.csv"
    text = table.read_text()
    table.write_text(text + "field_001.png,96,4\n")
    with pytest.raises(SettingsError, match=r"a point of field_001\.png lies outside its 96 x 96 pixels"):
        read_fields(folder, 96)
    table.write_text(text + "field_009.png,3,4\n")
    with pytest.raises(SettingsError, match=r"field_009\.png is missing"):
        read_fields(folder, 96)
    table.write_text("image,row,column\n")
    with pytest.raises(SettingsError, match="names no picture"):
        read_fields(folder, 96)
    table.write_text("image,x,y\na.png,1,2\n")
    with pytest.raises(SettingsError, match="not a table of image, row, column"):
        read_fields(folder, 96)


def test_masks_are_numbered_without_gaps(folder: Path) -> None:
    wanted = fields(3, 7, 96)[1].instances
    path = folder / "masks" / "field_001.png"
    Image.fromarray((wanted * 300).astype(np.uint16)).save(path)
    found = read_masked(folder)[1]
    np.testing.assert_array_equal(found.instances, wanted)
    rows, columns = np.nonzero(wanted == 2)
    np.testing.assert_allclose(found.centroids[1], [rows.mean(), columns.mean()])
    Image.fromarray(np.zeros((50, 60), np.uint16)).save(path)
    with pytest.raises(SettingsError, match="differ in size"):
        read_masked(folder)
