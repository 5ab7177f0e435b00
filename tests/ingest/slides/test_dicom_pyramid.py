"""DICOM slides read by tiles: every pixel at its place, only the tiles that are needed, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames

from medxai.errors import GeometryError, IdentifierError, IngestError, TileError
from medxai.identity import derive_uid
from medxai.ingest.slides import dicom_frames
from medxai.ingest.slides.level import Slide
from medxai.ingest.slides.open import open_slide
from tests import slides
from tests.tools import require_data

TRUTH = slides.tissue()


def opened(datasets: list[Dataset], folder: Path) -> Slide:
    slides.save(datasets, folder / "in")
    return open_slide(folder / "in")


def concatenation(ds: Dataset, sizes: list[int]) -> list[Dataset]:
    """Return a slide of native tiles as a concatenation of so many tiles each."""
    parts, first = [], 0
    uncompressed = int(ds.Rows) * int(ds.Columns) * 3
    for number, size in enumerate(sizes):
        part = copy.deepcopy(ds)
        part.SOPInstanceUID = derive_uid("test", "part", str(number))
        part.file_meta.MediaStorageSOPInstanceUID = part.SOPInstanceUID
        part.ConcatenationUID, part.InConcatenationNumber = derive_uid("test", "whole"), number + 1
        part.InConcatenationTotalNumber, part.ConcatenationFrameOffsetNumber = len(sizes), first
        part.NumberOfFrames = size
        part.PixelData = ds.PixelData[first * uncompressed : (first + size) * uncompressed]
        if "PerFrameFunctionalGroupsSequence" in part:
            part.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[first : first + size]
        parts.append(part)
        first += size
    assert first == int(ds.NumberOfFrames)
    return parts


@pytest.mark.parametrize("syntax", ["native", "j2k", "jpeg"])
@pytest.mark.parametrize("sparse", [False, True])
def test_every_pixel_of_every_level(tmp_path: Path, syntax: slides.Syntax, sparse: bool) -> None:
    sources = [*slides.pyramid(sparse=sparse, syntax=syntax), slides.label()]
    with opened(sources, tmp_path) as slide:
        assert (slide.kind, len(slide.levels), slide.notes) == ("dicom", 3, ())
        for number, level in enumerate(slide.levels):
            factor = 2**number
            assert level.shape == (slides.SIZE[0] // factor, slides.SIZE[1] // factor)
            assert level.mpp == pytest.approx((2.0 * factor, 2.0 * factor))
            assert level.downsample == pytest.approx(factor, rel=1e-3)
            assert level.headers[0].SOPInstanceUID == sources[number].SOPInstanceUID
            means = TRUTH[: level.shape[0] * factor, : level.shape[1] * factor]
            means = means.reshape(level.shape[0], factor, level.shape[1], factor, 3).mean((1, 3))
            off = np.abs(slide.read(number, 0, 0, *level.shape) - np.rint(means))
            assert off.mean() < (1.0 if syntax == "jpeg" else 1e-9)
        assert slide.frame_of_reference == sources[0].FrameOfReferenceUID
        assert slide.icc == sources[0].OpticalPathSequence[0].ICCProfile


@pytest.mark.parametrize("sparse", [False, True])
def test_rectangles_across_tiles_and_over_the_edge(tmp_path: Path, sparse: bool) -> None:
    with opened(slides.pyramid(levels=1, sparse=sparse), tmp_path) as slide:
        for row, column, height, width in ((90, 120, 20, 30), (0, 0, 1, 1), (250, 3, 101, 700), (919, 1235, 1, 1)):
            assert np.array_equal(slide.read(0, row, column, height, width), TRUTH[row:, column:][:height, :width])
        over = slide.read(0, -10, 1200, 40, 60)
        assert (over[:10] == 255).all()
        assert (over[:, 36:] == 255).all()
        assert np.array_equal(over[10:, :36], TRUTH[:30, 1200:])
        assert (slide.read(0, 5000, 0, 3, 4) == 255).all()


def test_only_the_tiles_that_are_needed_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each once, as long as it is among the last."""
    decoded: list[int] = []
    real = dicom_frames.Frames.decode

    def counted(self: dicom_frames.Frames, number: int) -> Any:
        decoded.append(number)
        return real(self, number)

    monkeypatch.setattr(dicom_frames.Frames, "decode", counted)
    with opened(slides.pyramid(levels=1, syntax="jpeg"), tmp_path) as slide:
        slide.read(0, 90, 120, 20, 30)
        assert sorted(decoded) == [0, 1, 10, 11]
        slide.read(0, 100, 130, 20, 30)
        assert len(decoded) == 4


@pytest.mark.parametrize("angle", [0.0, 30.0])
def test_the_affine_leads_to_the_glass(tmp_path: Path, angle: float) -> None:
    """To the millimetres that a tile's own position states, for rows and columns of different spacing."""
    turn = np.radians(angle)
    directions = (-np.sin(turn), -np.cos(turn), 0.0, -np.cos(turn), np.sin(turn), 0.0)
    sources = slides.pyramid(levels=2, sparse=True, orientation=directions, spacing=(0.003, 0.002))
    with opened(sources, tmp_path) as slide:
        assert slide.levels[1].mpp == pytest.approx((6.0, 4.0))
        assert "3 um between rows, 2 um between columns (50% apart)" in slide.notes[0]
        for level, source in zip(slide.levels, sources, strict=True):
            assert level.affine is not None
            for item in source.PerFrameFunctionalGroupsSequence[::7]:
                place = item.PlanePositionSlideSequence[0]
                row, column = place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix
                stated = (place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem)
                found = level.affine @ [0, row - 1, column - 1, 1]
                assert found[:2] == pytest.approx([float(v) for v in stated], abs=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_concatenation_is_one_level(tmp_path: Path, sparse: bool) -> None:
    fine, coarse = slides.pyramid(levels=2, sparse=sparse)
    parts = concatenation(fine, [41, 7, 52])
    with opened([parts[2], coarse, parts[0], parts[1]], tmp_path) as slide:
        assert [len(level.headers) for level in slide.levels] == [3, 1]
        assert [part.InConcatenationNumber for part in slide.levels[0].headers] == [1, 2, 3]
        assert np.array_equal(slide.read(0, 0, 0, *slides.SIZE), TRUTH)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    parts = concatenation(slides.pyramid(levels=1)[0], [41, 7, 52])
    with pytest.raises(IngestError, match=r"concatenation of 3 objects .* and part 2 is missing"):
        opened([parts[0], parts[2]], tmp_path)


def test_parts_that_hold_the_same_tile(tmp_path: Path) -> None:
    parts = concatenation(slides.pyramid(levels=1, sparse=True)[0], [50, 50])
    parts[1].PerFrameFunctionalGroupsSequence = parts[0].PerFrameFunctionalGroupsSequence
    with pytest.raises(GeometryError, match="two tiles have the same position"):
        opened(parts, tmp_path)


def test_levels_of_two_scans_are_no_pyramid(tmp_path: Path) -> None:
    fine, coarse = slides.level(TRUTH), slides.level(slides.tissue((400, 618)), 1)
    words = r"level 1 covers 2.472 x 1.6 mm and the finest 2.472 x 1.84 mm, so they are no pyramid"
    with pytest.raises(GeometryError, match=words):
        opened([fine, coarse], tmp_path)


def test_tiles_that_are_not_stored_are_white_and_noted(tmp_path: Path) -> None:
    with opened(slides.pyramid(levels=1, sparse=True, skip=(0, 1)), tmp_path) as slide:
        rows, columns = slides.TILE
        assert (slide.read(0, 0, 0, rows, 2 * columns) == 255).all()
        assert np.array_equal(slide.read(0, rows, 0, 50, 300), TRUTH[rows : rows + 50, :300])
        assert slide.notes == ("level 0: 2 of 100 tiles are not stored, and read as white",)


def damaged(ds: Dataset, number: int) -> Dataset:
    """Put noise in the place of a JPEG frame."""
    frames = list(generate_frames(ds.PixelData, number_of_frames=int(ds.NumberOfFrames)))
    frames[number] = bytes(range(2, 252)) * 4
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].is_undefined_length = True
    return ds


def test_a_damaged_tile_costs_itself_alone(tmp_path: Path) -> None:
    with opened([damaged(slides.pyramid(levels=1, syntax="jpeg")[0], 11)], tmp_path) as slide:
        with pytest.raises(TileError, match="level 0: frame 12 cannot be decoded") as caught:
            slide.read(0, 100, 130, 20, 30)
        assert caught.value.study == "in"
        near = slide.read(0, 0, 0, 96, 1236).astype(int)
        assert np.abs(near - TRUTH[:96]).mean() < 1
        assert np.abs(slide.read(0, 192, 0, 728, 1236).astype(int) - TRUTH[192:]).mean() < 1


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    """What was written before its end is still read."""
    (path,) = slides.save(slides.pyramid(levels=1), tmp_path / "in")
    path.write_bytes(path.read_bytes()[:-2_000_000])
    with open_slide(path) as slide:
        assert np.array_equal(slide.read(0, 0, 0, 96, 500), TRUTH[:96, :500])
        with pytest.raises(TileError, match="frame 100"):
            slide.read(0, 900, 1200, 20, 36)


def test_refusals(tmp_path: Path) -> None:
    one, two = slides.pyramid(levels=1)[0], slides.pyramid(levels=1, tag="other")[0]
    with pytest.raises(IngestError, match="files belong to 2 slides"):
        opened([one, two], tmp_path / "two")
    again = copy.deepcopy(one)
    again.SOPInstanceUID += ".1"
    again.file_meta.MediaStorageSOPInstanceUID = again.SOPInstanceUID
    with pytest.raises(IngestError, match="the level of 1236 x 920 pixels is there 2 times"):
        opened([one, again], tmp_path / "twice")
    with pytest.raises(IngestError, match="labels, overviews or thumbnails alone"):
        opened([slides.label()], tmp_path / "label")
    other = copy.deepcopy(one)
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    with pytest.raises(IngestError, match="1 of 2 DICOM files are no whole slide images"):
        opened([two, other], tmp_path / "ct")
    with pytest.raises(IngestError, match="DICOM states its micrometres per pixel"):
        open_slide(tmp_path / "two" / "in" / "0.dcm", mpp=0.5)
    with (
        opened([one], tmp_path / "good") as slide,
        pytest.raises(IngestError, match=r"no level 1; levels are 0 \(1236 x 920, 2 um\)"),
    ):
        slide.read(1, 0, 0, 5, 5)


def test_an_unknown_syntax_names_itself(tmp_path: Path) -> None:
    source = slides.pyramid(levels=1, syntax="jpeg")[0]
    source.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    with pytest.raises(IngestError, match=r"tiles are stored as JPEG Lossless.*, which is not read tile by tile"):
        opened([source], tmp_path)


def test_order_of_tiles_is_not_guessed(tmp_path: Path) -> None:
    source = slides.pyramid(levels=1)[0]
    del source.DimensionOrganizationType
    with pytest.raises(GeometryError, match="their order is unknown"):
        opened([source], tmp_path)


@pytest.mark.data
def test_a_real_slide(tmp_path: Path) -> None:
    """As it is its tiles have no places; with them neighbouring tiles belong together."""
    path = require_data("wsi", "small_dicom.dcm")
    with pytest.raises(IdentifierError, match="FrameOfReferenceUID is absent"):
        open_slide(path)
    with opened([slides.real_level(path)], tmp_path) as slide:
        assert "pixels are no squares" in slide.notes[0]
        strip = slide.read(0, 900, 0, 200, 3236).astype(float).mean(-1)
        steps = np.abs(np.diff(strip, axis=1)).mean(0)
        assert steps[499::500].mean() < 2 * np.median(steps)


@pytest.mark.parametrize("sparse", [False, True])
def test_openslide_reads_the_same(tmp_path: Path, sparse: bool) -> None:
    """The DICOM reader of another group, on the same files."""
    openslide = pytest.importorskip("openslide")
    slides.save(slides.pyramid(sparse=sparse, syntax="jpeg"), tmp_path / "in")
    theirs = openslide.OpenSlide(tmp_path / "in" / "0.dcm")
    with open_slide(tmp_path / "in") as slide:
        assert [(h, w) for w, h in theirs.level_dimensions] == [level.shape for level in slide.levels]
        assert float(theirs.properties["openslide.mpp-x"]) == pytest.approx(slide.levels[0].mpp[1])
        region = np.asarray(theirs.read_region((200, 300), 0, (400, 250)))[..., :3].astype(int)
        assert np.abs(region - slide.read(0, 300, 200, 250, 400)).max() <= 1
