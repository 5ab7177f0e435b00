"""Whole slides: the level that is read, its pixels at their place, and what is refused with which words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames

from medxai.errors import GeometryError, IdentifierError, IngestError, MedxaiError
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.ingest.repair import repair
from medxai.ingest.slides import one_level
from medxai.study import Study
from tests import slides
from tests.tools import dicom_errors, require_data

TRUTH = slides.tissue().transpose(2, 0, 1)


def ingest(datasets: list[Dataset], folder: Path) -> Study:
    """One slide through discovery and reading."""
    slides.save(datasets, folder / "in")
    (source,) = discover([folder / "in"], folder / "work").sources
    return read_study(source)


@pytest.mark.parametrize("syntax", ["native", "j2k", "jpeg"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_finest_level_comes_back_pixel_by_pixel(tmp_path: Path, syntax: slides.Syntax, sparse: bool) -> None:
    """In either organisation of tiles; JPEG within its loss, and never the padding over the edge."""
    sources = slides.pyramid(sparse=sparse, syntax=syntax)
    study = ingest(sources, tmp_path)
    volume = study.volume
    assert (volume.axes, volume.modality, volume.pixels.dtype) == ("HW", "SM", np.float32)
    assert volume.pixels.shape == (3, *slides.SIZE)
    off = np.abs(volume.pixels - TRUTH)
    assert off.mean() < (1.0 if syntax == "jpeg" else 1e-9)
    assert volume.pixels[:, -1].min() > 30  # the padding is 7
    assert study.notes == ("level 1 of 3 of the slide, from the finest: 1236 x 920 pixels",)
    assert volume.source[0].SOPInstanceUID == sources[0].SOPInstanceUID
    assert volume.frame_of_reference == sources[0].FrameOfReferenceUID


@pytest.mark.parametrize("angle", [0.0, 30.0])
def test_the_affine_leads_to_the_slide(tmp_path: Path, angle: float) -> None:
    """To the millimetres that a tile's own position states, for rows and columns of different spacing."""
    turn = np.radians(angle)
    directions = (-np.sin(turn), -np.cos(turn), 0.0, -np.cos(turn), np.sin(turn), 0.0)
    sources = slides.pyramid(levels=1, sparse=True, orientation=directions, spacing=(0.003, 0.002))
    volume = ingest(sources, tmp_path).volume
    assert volume.calibrated
    assert volume.spacing == pytest.approx((0.0, 0.003, 0.002), rel=1e-9)
    for item in sources[0].PerFrameFunctionalGroupsSequence:
        place = item.PlanePositionSlideSequence[0]
        index = [0, place.RowPositionInTotalImagePixelMatrix - 1, place.ColumnPositionInTotalImagePixelMatrix - 1, 1]
        stated = (place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem)
        assert (volume.affine @ index)[:2] == pytest.approx([float(v) for v in stated], abs=1e-9)


def test_height_is_in_micrometres(tmp_path: Path) -> None:
    sources = slides.pyramid(levels=1)
    sources[0].TotalPixelMatrixOriginSequence[0].ZOffsetInSlideCoordinateSystem = "5"
    assert ingest(sources, tmp_path).volume.affine[2, 3] == pytest.approx(0.005)


def test_the_finest_level_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three levels the second when the first is too large, none when all are."""
    monkeypatch.setattr(one_level, "MOST_PIXELS", 618 * 460)
    sources = slides.pyramid()
    study = ingest(sources, tmp_path)
    assert study.notes == ("level 2 of 3 of the slide, from the finest: 618 x 460 pixels",)
    assert study.volume.source[0].SOPInstanceUID == sources[1].SOPInstanceUID
    assert study.volume.spacing[1] == pytest.approx(0.004)
    assert study.volume.affine[:2, 3] == pytest.approx([31.5 - 0.001, 17.25 - 0.001])
    monkeypatch.setattr(one_level, "MOST_PIXELS", 1_000)
    with pytest.raises(IngestError, match=r"the smallest of 3 level\(s\) has 309 x 230 pixels, more than"):
        read_study(discover([tmp_path / "in"], tmp_path / "work").sources[0])


def test_what_is_no_level_is_left_out_and_counted(tmp_path: Path) -> None:
    aside = [slides.label(flavour=name) for name in ("LABEL", "OVERVIEW", "THUMBNAIL")]
    slides.save([*aside, *slides.pyramid(levels=2)], tmp_path / "in")
    (tmp_path / "in" / "copy.dcm").write_bytes((tmp_path / "in" / "3.dcm").read_bytes())
    found = discover([tmp_path / "in"], tmp_path / "work")
    assert [len(source.files) for source in found.sources] == [2]
    assert found.left_out == {
        "slide labels": 1, "slide overviews": 1, "slide thumbnails": 1, "copies of another file": 1,
    }  # fmt: skip
    assert read_study(found.sources[0]).volume.shape == slides.SIZE


def test_a_label_alone_is_no_study(tmp_path: Path) -> None:
    slides.save([slides.label()], tmp_path / "in")
    with pytest.raises(IngestError, match="1 slide labels"):
        discover([tmp_path / "in"], tmp_path / "work")


def test_two_slides_are_two_studies(tmp_path: Path) -> None:
    slides.save(slides.pyramid(levels=2), tmp_path / "in" / "a")
    slides.save(slides.pyramid(levels=2, tag="other"), tmp_path / "in" / "b")
    found = discover([tmp_path / "in"], tmp_path / "work")
    assert [len(source.files) for source in found.sources] == [2, 2]


def test_tiles_that_are_not_stored_are_white(tmp_path: Path) -> None:
    study = ingest(slides.pyramid(levels=1, sparse=True, skip=(0, 1)), tmp_path)
    rows, columns = slides.TILE
    assert (study.volume.pixels[:, :rows, : 2 * columns] == 255).all()
    assert np.array_equal(study.volume.pixels[:, rows:], TRUTH[:, rows:])
    assert study.notes[1] == "level 0: 2 of 100 tiles are not stored, and read as white"


def test_a_level_of_one_tile(tmp_path: Path) -> None:
    """NumberOfFrames and the organisation may be absent then."""
    picture = slides.tissue((90, 70))
    source = slides.level(picture, tile=(90, 70))
    del source.NumberOfFrames, source.DimensionOrganizationType
    assert np.array_equal(ingest([source], tmp_path).volume.pixels, picture.transpose(2, 0, 1))


def _put(**values: Any) -> Any:
    return lambda ds: [setattr(ds, name, value) for name, value in values.items()]


def _drop(*names: str) -> Any:
    return lambda ds: [delattr(ds, name) for name in names]


def _same_place(ds: Dataset) -> None:
    for item in ds.PerFrameFunctionalGroupsSequence[:2]:
        item.PlanePositionSlideSequence[0].RowPositionInTotalImagePixelMatrix = 1
        item.PlanePositionSlideSequence[0].ColumnPositionInTotalImagePixelMatrix = 1


def _outside(ds: Dataset) -> None:
    ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSlideSequence[0].RowPositionInTotalImagePixelMatrix = 921


def _unplaced(ds: Dataset) -> None:
    del ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSlideSequence


REFUSED: dict[str, tuple[Any, bool, type[MedxaiError], str]] = {
    "part of a concatenation": (
        _put(ConcatenationUID="1.2.3", InConcatenationNumber=2), False, IngestError, "part 1 is missing",
    ),
    "focal planes": (_put(TotalPixelMatrixFocalPlanes=3), False, IngestError, "TotalPixelMatrixFocalPlanes is 3"),
    "optical paths": (_put(NumberOfOpticalPaths=2), False, IngestError, "NumberOfOpticalPaths is 2"),
    "grey": (_put(SamplesPerPixel=1), False, IngestError, "no 8-bit colour image"),
    "no frame of reference": (_drop("FrameOfReferenceUID"), False, IdentifierError, "FrameOfReferenceUID is absent"),
    "no origin": (_drop("TotalPixelMatrixOriginSequence"), False, GeometryError, "TotalPixelMatrixOriginSequence"),
    "no orientation": (_drop("ImageOrientationSlide"), False, GeometryError, "ImageOrientationSlide"),
    "skew": (_put(ImageOrientationSlide=[0, 1, 0, 0, 1, 0]), False, GeometryError, "right angles"),
    "no size": (_drop("TotalPixelMatrixRows"), False, GeometryError, "TotalPixelMatrixRows"),
    "no spacing": (
        _drop("SharedFunctionalGroupsSequence", "ImagedVolumeWidth"), False, GeometryError, "PixelSpacing",
    ),
    "too many tiles": (_put(TotalPixelMatrixRows=400), False, GeometryError, "room for 50 tiles"),
    "too few tiles": (_put(TotalPixelMatrixRows=990), False, GeometryError, "100 tiles without positions"),
    "order unknown": (_drop("DimensionOrganizationType"), False, GeometryError, "their order is unknown"),
    "same place": (_same_place, True, GeometryError, "two tiles have the same position"),
    "outside": (_outside, True, GeometryError, "a tile lies outside"),
    "unplaced": (_unplaced, True, GeometryError, "tile 4 has no position"),
    "cut": (_put(PixelData=b"\0" * 3000), False, IngestError, "cannot be decoded|damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(tmp_path: Path, name: str) -> None:
    change, sparse, kind, words = REFUSED[name]
    (source,) = slides.pyramid(levels=1, sparse=sparse)
    change(source)
    with pytest.raises(kind, match=words) as caught:
        ingest([source], tmp_path)
    assert "SECRET" not in str(caught.value)


def test_two_images_of_one_level(tmp_path: Path) -> None:
    first, second = slides.level(slides.tissue()), slides.level(slides.tissue())
    second.SOPInstanceUID += ".1"
    second.file_meta.MediaStorageSOPInstanceUID = second.SOPInstanceUID
    with pytest.raises(IngestError, match="the level of 1236 x 920 pixels is there 2 times"):
        ingest([first, second], tmp_path)


def test_spacing_from_the_imaged_volume(tmp_path: Path) -> None:
    """Where the functional groups, which hold it, are absent."""
    (source,) = slides.pyramid(levels=1)
    del source.SharedFunctionalGroupsSequence
    study = ingest([source], tmp_path)
    assert study.volume.spacing[1:] == pytest.approx((0.002, 0.002), rel=1e-6)
    assert any("size of the imaged volume" in note for note in study.notes)


@pytest.mark.data
def test_a_real_slide_of_unknown_order_is_refused(tmp_path: Path) -> None:
    """Its identifiers can be repaired; the order of its tiles cannot be known from the header, and is no row by row."""
    path = require_data("wsi", "small_dicom.dcm")
    with pytest.raises(IdentifierError, match="FrameOfReferenceUID is absent"):
        read_study(discover([path], tmp_path).sources[0])
    repair(path, tmp_path / "fixed")
    with pytest.raises(GeometryError, match="their order is unknown"):
        read_study(discover([tmp_path / "fixed"], tmp_path).sources[0])


@pytest.mark.data
def test_a_real_slide_with_places(tmp_path: Path) -> None:
    """The JPEG tiles of the same file with the place of each: a picture without seams and without padding."""
    path = require_data("wsi", "small_dicom.dcm")
    source = slides.real_level(path)
    (written,) = slides.save([source], tmp_path / "in")
    assert dicom_errors(written) == []
    pixels = read_study(discover([tmp_path / "in"], tmp_path / "w").sources[0]).volume.pixels
    stored = dcmread(path)
    tiles = list(generate_frames(stored.PixelData, number_of_frames=42))
    for number, at in ((0, (0, 0)), (8, (1000, 500)), (41, (2500, 3000))):
        picture = np.asarray(Image.open(io.BytesIO(tiles[number])).convert("RGB"), np.float32).transpose(2, 0, 1)
        part = pixels[:, at[0] : at[0] + 500, at[1] : at[1] + 500]
        assert np.abs(part - picture[:, : part.shape[1], : part.shape[2]]).mean() < 1
    steps = np.abs(np.diff(pixels.mean(0), axis=1)).mean(0)  # from column to column
    seams = steps[499::500][:6].mean()
    assert seams < 2 * np.median(steps), "neighbouring tiles do not belong together"
    assert (pixels.max(0) > 0).mean() > 0.999
