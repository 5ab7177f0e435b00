"""`medxai slide`: what is printed and drawn is what is in the slide."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import slides, stained, tiffs
from tests.studies import command
from tests.tools import require_data

Capture = pytest.CaptureFixture[str]

SIZE = (768, 1024)


def synthetic(folder: Path, damaged: tuple[int, ...] = ()) -> Path:
    texture = stained.colours(stained.amounts((256, 256), 1, glass=0.0))
    paint = tiffs.tissue_painter(SIZE, texture)
    return tiffs.write_pyramid(
        folder / "a.tif", SIZE, paint, tile=128, factors=(1, 4), mpp=(1.0, 1.0), damaged=damaged
    )  # fmt: skip


def test_info_of_a_tiff(tmp_path: Path, capfd: Capture) -> None:
    done = command(capfd, "slide", "info", synthetic(tmp_path), "--tile", 64)
    out = done.out
    assert done.code == 0
    assert "a.tif: tiff" in out
    assert "1024 x 768" in out
    assert "256 x 192" in out
    share = float(re.search(r"tissue: ([\d.]+)%", out)[1])  # type: ignore[index]
    paint = tiffs.tissue_painter((192, 256), np.zeros((256, 256, 3), np.uint8))
    truth = (paint(0, 0, 192, 256, 1) == 0).all(-1).mean()
    assert share == pytest.approx(100 * truth, abs=2)
    tiles, good = (int(re.search(words, out)[1]) for words in (r"tiles: (\d+) of 192", r"good (\d+),"))  # type: ignore[index]
    assert good == tiles > 50


def test_info_of_dicom_files(tmp_path: Path, capfd: Capture) -> None:
    paths = slides.save(slides.pyramid(spacing=(0.0005, 0.0004)), tmp_path)
    done = command(capfd, "slide", "info", *paths, "--tile", 64)
    out = done.out
    assert done.code == 0
    assert "dicom" in out
    assert "0.5, 0.4" in out
    assert "on the glass in mm" in out
    assert "note: pixels are no squares" in out
    assert "SECRET" not in out


def test_a_damaged_tile_is_counted(tmp_path: Path, capfd: Capture) -> None:
    out = command(capfd, "slide", "info", synthetic(tmp_path, damaged=(18,)), "--tile", 64).out
    assert "unreadable 4" in out
    assert "damaged: level 0: the tile from row 256, column 256 on" in out


def test_overview_shows_outline_and_tiles(tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "new" / "a.png"
    source = synthetic(tmp_path, damaged=(18,))
    assert command(capfd, "slide", "overview", source, "-o", target, "--tile", 64).out.strip() == str(target)
    picture = np.asarray(Image.open(target))
    assert picture.shape[1] >= 900
    good, black = (0, 158, 115), (0, 0, 0)
    assert (picture[:750] == good).all(-1).sum() > 1000
    # The tiles that cannot be read lie on the stored tile of rows and columns 256 to 384.
    frames = np.argwhere((picture[:750] == black).all(-1))
    assert frames.min() > 250
    assert frames.max() < 390


def test_what_cannot_be_read_is_one_line(tmp_path: Path, capfd: Capture) -> None:
    Image.fromarray(slides.tissue((100, 120))).save(tmp_path / "a.png")
    done = command(capfd, "slide", "info", tmp_path / "a.png")
    assert done.code == 2
    assert done.errors[0].endswith("give them with --mpp (open_slide(mpp=...))")
    assert command(capfd, "slide", "info", tmp_path / "a.png", "--mpp", 2, "--tile", 32).code == 0


@pytest.mark.data
def test_pen_marks_of_a_real_slide(tmp_path: Path, capfd: Capture) -> None:
    """A pathologist drew around the tumour in green and blue: 24 of 57 tiles hold ink, as counted by eye."""
    slides.save([slides.real_level(require_data("wsi", "small_dicom.dcm"))], tmp_path)
    out = command(capfd, "slide", "info", tmp_path).out
    assert "tiles: 57 of 121" in out
    assert "good 33" in out
    assert "ink 24" in out


@pytest.mark.data
def test_a_real_slide(capfd: Capture) -> None:
    path = require_data("wsi", "small_HE.svs")
    out = command(capfd, "slide", "info", path).out
    assert "2220 x 2967" in out
    assert "blurred 0" in out
