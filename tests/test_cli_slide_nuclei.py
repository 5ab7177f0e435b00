"""`medxai slide nuclei`: all files of a slide, by pseudonym, the same twice; and what is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from scipy.spatial import cKDTree

from medxai.cli_slide_nuclei import parse_region
from medxai.errors import SettingsError
from medxai.nuclei_run import folder_of
from tests import nuclei as discs
from tests import slides, tiffs
from tests.studies import command, hashes, key_of
from tests.tools import dicom_errors

Capture = pytest.CaptureFixture[str]

SHAPE = (470, 620)
PLACES = discs.grid_of_places(SHAPE, (41.0, 53.0))
#: Pixels that the network, which looks at every fourth, may be off.
NEAR = 3.0


def dicom_slide(folder: Path) -> Path:
    pixels = discs.picture(SHAPE, PLACES)
    slides.save([slides.level(pixels, spacing=(0.0005, 0.0005), syntax="j2k"), slides.label()], folder)
    return folder


def polygons(group: object) -> list[np.ndarray]:
    """``[n, 2]`` columns and rows of each polygon of a group."""
    points = np.frombuffer(group.PointCoordinatesData, "<f4").reshape(-1, 2)  # type: ignore[attr-defined]
    starts = np.frombuffer(group.LongPrimitivePointIndexList, "<u4").astype(int) // 2  # type: ignore[attr-defined]
    return np.split(points, starts[1:])


def centres(shapes: list[np.ndarray]) -> np.ndarray:
    """``[n, 2]`` row and column of the middle of the extent of each polygon."""
    return np.array([(shape.min(0) + shape.max(0))[::-1] / 2 for shape in shapes])


def test_a_dicom_slide_goes_all_the_way(tmp_path: Path, capfd: Capture) -> None:
    source, (bundle, allow) = dicom_slide(tmp_path / "in"), discs.dark_bundle(tmp_path)
    asked = ("slide", "nuclei", source, "-b", bundle, "--allow", allow)
    done = command(capfd, *asked, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    key = key_of(source, tmp_path / "unpacked")
    folder = folder_of(tmp_path / "out", key)
    assert done.out.startswith(f"{key}: {len(PLACES)} nuclei, ")
    names = {"nuclei.tsv", "nuclei.geojson", "nuclei.html", "nuclei.png", "nuclei_annotations.dcm", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names

    lines = [line.split("\t") for line in (folder / "nuclei.tsv").read_text().splitlines()]
    assert lines[0][:5] == ["nucleus", "tile", "row", "column", "area_um2"]
    rows = np.array([[float(v) for v in line[2:5]] for line in lines[1:]])
    near, which = cKDTree(PLACES).query(rows[:, :2])
    assert sorted(which.tolist()) == list(range(len(PLACES)))
    assert near.max() < NEAR

    features = json.loads((folder / "nuclei.geojson").read_text())["features"]
    assert {feature["properties"]["objectType"] for feature in features} == {"detection"}
    rings = [np.array(feature["geometry"]["coordinates"][0]) for feature in features]
    assert all((ring[0] == ring[-1]).all() for ring in rings)
    assert np.abs(centres(rings) - rows[:, :2]).max() < 1.0
    assert features[7]["properties"]["measurements"]["Area um^2"] == rows[7, 2]

    assert dicom_errors(folder / "nuclei_annotations.dcm") == []
    ds, level = dcmread(folder / "nuclei_annotations.dcm"), dcmread(source / "0.dcm", stop_before_pixels=True)
    assert ds.StudyInstanceUID == level.StudyInstanceUID
    assert ds.PatientID == level.PatientID
    assert ds.ReferencedImageSequence[0].ReferencedSOPInstanceUID == level.SOPInstanceUID
    groups = ds.AnnotationGroupSequence
    assert sum(int(group.NumberOfAnnotations) for group in groups) == len(PLACES)
    shapes = [shape for group in groups for shape in polygons(group)]
    near, _ = cKDTree(centres(shapes)).query(rows[:, :2])
    assert near.max() < 1.0
    for group in groups:
        assert group.AnnotationPropertyTypeCodeSequence[0].CodeValue == "84640000"
        (area,) = group.MeasurementsSequence
        values = np.frombuffer(area.MeasurementValuesSequence[0].FloatingPointValues, "<f4")
        assert len(values) == int(group.NumberOfAnnotations)
        assert np.isin(np.round(values, 2), np.round(rows[:, 2].astype(np.float32), 2)).all()

    page = (folder / "nuclei.html").read_text()
    assert discs.CAUTION in page
    assert f"{len(PLACES)} nuclei" in page
    assert "<script" not in page
    assert 'src="data:image/png' in page
    for text in (page, done.out, done.err, *[p.read_text() for p in folder.glob("*.[tgj]*s*n*")]):
        assert "SECRET" not in text
        assert "Secret" not in text

    again = command(capfd, *asked, "-o", tmp_path / "again")
    assert again.code == 0
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out")
    before = (folder / "nuclei.html").stat().st_mtime_ns
    assert command(capfd, *asked, "-o", tmp_path / "out").out == done.out
    assert (folder / "nuclei.html").stat().st_mtime_ns == before, "what is there is not made again"


def test_a_tiff_has_no_object_and_says_so(tmp_path: Path, capfd: Capture) -> None:
    """With a region, in pixels of the finest level, and a damaged tile outside of it."""
    paint, size = tiffs.painter_of(discs.picture(SHAPE, PLACES, 2)), (SHAPE[0] * 2, SHAPE[1] * 2)
    path = tiffs.write_pyramid(
        tmp_path / "NAME^OF^PATIENT.tif", size, paint, factors=(1, 4), mpp=(0.25, 0.25), quality=98, damaged=(9,)
    )
    bundle, allow = discs.dark_bundle(tmp_path)
    asked = ("slide", "nuclei", path, "-o", tmp_path / "out", "-b", bundle, "--allow", allow)
    whole = command(capfd, *asked)
    assert whole.code == 0, whole.err
    assert "1 could not be read" in whole.out
    part = command(capfd, *asked, "--region", "100,200,400,500")
    assert part.code == 0, part.err
    inside = ((PLACES * 2 >= [100, 200]) & (PLACES * 2 < [500, 700])).all(1)
    assert part.out.split(": ")[1].startswith(f"{inside.sum()} nuclei")
    (folder,) = (tmp_path / "out").glob("[!.]*")
    assert not (folder / "nuclei_annotations.dcm").exists()
    page = (folder / "nuclei.html").read_text()
    assert "convert it to DICOM first" in page
    assert "from row 100 and column 200 on, 400 rows and 500 columns" in page
    assert not list((tmp_path / "out" / ".medxai" / "nuclei").iterdir())
    text = "".join((whole.out, whole.err, page, (folder / "nuclei.tsv").read_text()))
    assert "PATIENT" not in text
    assert not [p for p in (tmp_path / "out").rglob("*") if "PATIENT" in p.name]


def test_a_coarse_patch_says_so(tmp_path: Path, capfd: Capture) -> None:
    """Half as fine as the network: enlarged, the same nuclei on their places, and the page tells."""
    shape = (150, 190)
    places = discs.grid_of_places(shape, (41.0, 53.0))
    large = discs.picture(shape, places)
    Image.fromarray(large[::2, ::2]).save(tmp_path / "a.png")
    bundle, allow = discs.dark_bundle(tmp_path)
    asked = ("slide", "nuclei", tmp_path / "a.png", "-o", tmp_path / "out", "-b", bundle, "--allow", allow)
    done = command(capfd, *asked, "--mpp", 1.0)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "out").glob("*-nuclei")
    lines = [line.split("\t") for line in (folder / "nuclei.tsv").read_text().splitlines()[1:]]
    found = np.array([[float(v) for v in line[2:4]] for line in lines])
    near, which = cKDTree(places / 2).query(found)
    assert sorted(which.tolist()) == list(range(len(places)))
    assert near.max() < NEAR
    assert "fields are enlarged 2 times" in (folder / "nuclei.html").read_text()
    too_coarse = command(capfd, *asked, "--mpp", 2.0)
    assert too_coarse.code == 2
    assert "take a finer scan" in too_coarse.errors[0]


def test_what_cannot_be_done_is_one_line(tmp_path: Path, capfd: Capture) -> None:
    bundle, allow = discs.dark_bundle(tmp_path)
    Image.fromarray(np.full((90, 80, 3), 246, np.uint8)).save(tmp_path / "a.png")
    asked = ("slide", "nuclei", tmp_path / "a.png", "-o", tmp_path / "out", "-b", bundle, "--allow", allow)
    unknown = command(capfd, *asked)
    assert unknown.code == 2
    assert unknown.errors[0].endswith("give them with --mpp (open_slide(mpp=...))")
    assert "a.png" not in unknown.err
    empty = command(capfd, *asked, "--mpp", 0.5)
    assert empty.code == 2
    assert "no tissue on" in empty.errors[0]
    assert command(capfd, *asked, "--region", "1,2,3").errors[0].startswith("error: --region is TOP,LEFT,HEIGHT,WIDTH")
    other = command(capfd, *asked[:-4], "-b", "phantom_ct")
    assert "does not outline nuclei" in other.errors[0]


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,x", "-1,0,5,5", "0,0,0,5"])
def test_regions_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError, match="TOP,LEFT,HEIGHT,WIDTH"):
        parse_region(text)
    assert parse_region("1,2,3,4") == (1, 2, 3, 4)
