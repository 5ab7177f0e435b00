"""SVS, TIFF and plain pictures; what is missing is said with the way out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from medxai.errors import IngestError, TileError
from medxai.ingest.slides.colour_profile import to_srgb
from medxai.ingest.slides.open import open_slide
from tests import slides, tiffs
from tests.tools import require_data

SIZE = (920, 1236)
TRUTH = slides.tissue(SIZE)
PAINT = tiffs.painter_of(TRUTH)


#: Made once, since it holds the time.
SRGB = bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


def test_every_level_of_a_tiff(tmp_path: Path) -> None:
    path = tiffs.write_pyramid(tmp_path / "a.tif", SIZE, PAINT, tile=128, factors=(1, 2, 4), icc=SRGB)
    with open_slide(path) as slide:
        assert (slide.kind, slide.frame_of_reference) == ("tiff", None)
        for number, level in enumerate(slide.levels):
            factor = 2**number
            assert level.shape == (SIZE[0] // factor, SIZE[1] // factor)
            assert level.mpp == pytest.approx((0.25 * factor, 0.25 * factor), rel=1e-6)
            assert level.tile == (128, 128)
            assert level.affine is None
            found = slide.read(number, 10, 100, 200, 150).astype(int)
            assert np.abs(found - PAINT(10, 100, 200, 150, factor)).mean() < 2
        assert slide.icc == SRGB


def test_rows_and_columns_of_a_tiff_that_differ(tmp_path: Path) -> None:
    path = tiffs.write_pyramid(tmp_path / "a.tif", SIZE, PAINT, factors=(1,), mpp=(0.5, 0.25))
    with open_slide(path) as slide:
        assert slide.levels[0].mpp == pytest.approx((0.5, 0.25), rel=1e-6)
        assert "0.5 um between rows, 0.25 um between columns (100% apart)" in slide.notes[0]


def test_a_tiff_without_micrometres(tmp_path: Path) -> None:
    path = tiffs.write_pyramid(tmp_path / "a.tif", SIZE, PAINT, factors=(1, 4), mpp=None)
    with pytest.raises(IngestError, match=r"a.tif: states no micrometres per pixel.*--mpp"):
        open_slide(path)
    with open_slide(path, mpp=0.4) as slide:
        assert slide.levels[1].mpp == pytest.approx((1.6, 1.6), rel=1e-2)


def test_a_damaged_tile_of_a_tiff_costs_itself_alone(tmp_path: Path) -> None:
    """OpenSlide refuses everything after an error; the file is opened anew."""
    path = tiffs.write_pyramid(tmp_path / "a.tif", SIZE, PAINT, tile=128, factors=(1,), damaged=(13,))
    with open_slide(path) as slide:
        for _ in range(2):
            with pytest.raises(TileError, match="level 0: the tile from row 128, column 384 on cannot be decoded"):
                slide.read(0, 130, 400, 20, 20)
            assert np.abs(slide.read(0, 0, 0, 128, 1236).astype(int) - TRUTH[:128]).mean() < 2


def test_openslide_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiffs.write_pyramid(tmp_path / "a.tif", (64, 64), PAINT, tile=64, factors=(1,))
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(IngestError, match=r"OpenSlide, which is not installed: pip install 'medxai\[pathology\]'"):
        open_slide(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_has_the_size_that_is_given(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(TRUTH).save(path, quality=95, icc_profile=SRGB)
    with pytest.raises(IngestError, match=r"plain picture, which states no micrometres per pixel.*--mpp"):
        open_slide(path)
    with open_slide(path, mpp=(0.5, 0.6)) as slide:
        assert (slide.kind, slide.levels[0].shape, slide.levels[0].mpp) == ("picture", SIZE, (0.5, 0.6))
        assert "no squares" in slide.notes[0]
        assert slide.icc == SRGB
        assert np.abs(slide.read(0, 500, 900, 30, 40).astype(int) - TRUTH[500:530, 900:940]).mean() < 2
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(IngestError, match="between 0 and 1000"):
            open_slide(path, mpp=wrong)


def test_what_is_no_slide(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no slide")
    with pytest.raises(IngestError, match=r"a.txt: OpenSlide cannot read it"):
        open_slide(tmp_path / "a.txt")
    with pytest.raises(IngestError, match=r"b.svs: does not exist"):
        open_slide(tmp_path / "b.svs")
    (tmp_path / "c.txt").write_text("no slide")
    with pytest.raises(IngestError, match="2 files and none of them DICOM"):
        open_slide(tmp_path)
    with pytest.raises(IngestError, match="no file was given"):
        open_slide([])


def test_a_profile_brings_colours_to_srgb(tmp_path: Path) -> None:
    """A profile of sRGB changes nothing; one with swapped primaries is told from it."""
    path = tmp_path / "a.png"
    Image.fromarray(TRUTH).save(path, icc_profile=SRGB)
    with open_slide(path, mpp=0.5) as slide:
        tile = slide.read(0, 0, 0, 300, 400)
        assert np.abs(to_srgb(slide)(tile).astype(int) - tile).max() <= 1
    profile = bytearray(SRGB)
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    Image.fromarray(TRUTH).save(path, icc_profile=bytes(profile))
    with open_slide(path, mpp=0.5) as slide:
        swapped = to_srgb(slide)(tile)
        assert np.abs(swapped.astype(int) - tile[..., [1, 0, 2]]).max() <= 2
    Image.fromarray(TRUTH).save(path, icc_profile=b"no profile")
    with open_slide(path, mpp=0.5) as slide, pytest.raises(IngestError, match="ICC profile is damaged"):
        to_srgb(slide)
    Image.fromarray(TRUTH).save(path)
    with open_slide(path, mpp=0.5) as slide, pytest.raises(IngestError, match="carries no ICC profile"):
        to_srgb(slide)


def test_a_grey_picture_is_noted(tmp_path: Path) -> None:
    Image.new("L", (40, 30), 128).save(tmp_path / "grey.png")
    with open_slide(tmp_path / "grey.png", mpp=0.5) as slide:
        assert slide.notes == ("has no colours, so that stains cannot be told apart",)
        assert (slide.read(0, 0, 0, 30, 40) == 128).all()


@pytest.mark.data
def test_a_real_svs() -> None:
    """Its sole level against the tile that Pillow decodes from the file on its own."""
    path = require_data("wsi", "small_HE.svs")
    with open_slide(path) as slide:
        assert (slide.kind, slide.levels[0].shape) == ("svs", (2967, 2220))
        assert slide.levels[0].mpp == pytest.approx((0.499, 0.499))
        tile = slide.read(0, 1200, 960, 240, 240).astype(int)
    with Image.open(path) as image:
        picture = np.asarray(image.crop((960, 1200, 1200, 1440)).convert("RGB")).astype(int)
    assert np.abs(picture - tile).max() <= 2
