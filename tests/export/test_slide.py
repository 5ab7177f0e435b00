"""Objects of a whole slide: tiled like its level, every pixel at its place on the glass, valid, with all formats on."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import Dataset, dcmread

from medxai.export import ExportOptions, export_all, skipped
from medxai.export.slide import reduced
from medxai.ingest.slides.one_level import read_level
from medxai.ingest.slides.open import open_slide
from medxai.settings import ROLES
from tests import slides
from tests.export.build import Case, blob, result_of
from tests.tools import dicom_errors, require_data

Floats = npt.NDArray[np.float64]
TURN = np.radians(25.0)
TURNED = (-np.sin(TURN), -np.cos(TURN), 0.0, -np.cos(TURN), np.sin(TURN), 0.0)
NOT_OF_SLIDES = {"movie", "fractional_segmentation", "volumetric_report", "presentation_state", "nifti"}
OF_TILES = {"annotations", "slide_tiles"}


@pytest.fixture(scope="module", params=["full", "turned"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Straight with all tiles, and oblique with places of tiles and rows farther apart than columns."""
    folder = tmp_path_factory.mktemp("slide")
    if request.param == "full":
        return slides.slide_case(folder, syntax="jpeg")
    return slides.slide_case(folder, sparse=True, orientation=TURNED, spacing=(0.003, 0.002))


def export(case: Case, folder: Path, role: str, **options: object) -> Dataset:
    """The object of the first map."""
    wanted = ExportOptions(formats=(role,), explanations="primary", **options)  # type: ignore[arg-type]
    (output,) = export_all(case.result, folder, wanted)
    assert dicom_errors(folder / output.path) == []
    return dcmread(folder / output.path)


def places(ds: Dataset, row: Floats, column: Floats) -> Floats:
    """Slide mm ``[..., 2]`` of (row, column) of a total pixel matrix, from the attributes of an object alone."""
    origin = ds.TotalPixelMatrixOriginSequence[0]
    first = np.array([float(origin.XOffsetInSlideCoordinateSystem), float(origin.YOffsetInSlideCoordinateSystem)])
    cosines = np.array([float(v) for v in ds.ImageOrientationSlide])
    between = [float(v) for v in ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing]
    return first + column[..., None] * between[1] * cosines[:2] + row[..., None] * between[0] * cosines[3:5]


def assemble(ds: Dataset, frames: npt.NDArray[np.generic], channel: int | None = None) -> npt.NDArray[np.generic]:
    """Total pixel matrix of tiles; by order where every tile is stored, otherwise by the mm of each tile."""
    rows, columns = int(ds.TotalPixelMatrixRows), int(ds.TotalPixelMatrixColumns)
    across = -(-columns // ds.Columns)
    out = np.zeros((rows + ds.Rows, columns + ds.Columns), frames.dtype)
    for number, frame in enumerate(frames):
        if ds.DimensionOrganizationType == "TILED_FULL":
            tiles = across * -(-rows // ds.Rows)
            if channel is not None and number // tiles != channel - 1:
                continue
            row, column = number % tiles // across * ds.Rows, number % tiles % across * ds.Columns
        else:
            item = ds.PerFrameFunctionalGroupsSequence[number]
            if channel is not None and item.SegmentIdentificationSequence[0].ReferencedSegmentNumber != channel:
                continue
            place = item.PlanePositionSlideSequence[0]
            here = np.array([float(place.XOffsetInSlideCoordinateSystem), float(place.YOffsetInSlideCoordinateSystem)])
            zero = np.zeros(1)
            start = places(ds, zero, zero)[0]
            matrix = np.stack([places(ds, zero + 1, zero)[0] - start, places(ds, zero, zero + 1)[0] - start], 1)
            exact = np.linalg.solve(matrix, here - start)
            row, column = (int(v) for v in np.rint(exact))
            assert np.abs(exact - (row, column)).max() < 1e-2
            assert (row, column) == (
                place.RowPositionInTotalImagePixelMatrix - 1, place.ColumnPositionInTotalImagePixelMatrix - 1,
            )  # fmt: skip
        out[row : row + ds.Rows, column : column + ds.Columns] = frame
    return out[:rows, :columns]


def like_the_level(ds: Dataset, source: Dataset) -> None:
    """Grid, tiles and frame of reference are those of the level."""
    for keyword in ("TotalPixelMatrixRows", "TotalPixelMatrixColumns", "Rows", "Columns", "FrameOfReferenceUID",
                    "ImageOrientationSlide", "StudyInstanceUID", "ContainerIdentifier", "PatientID"):  # fmt: skip
        assert ds[keyword].value == source[keyword].value, keyword
    spacings = [
        [float(v) for v in item.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing]
        for item in (ds, source)
    ]
    assert spacings[0] == spacings[1]
    reference = ds.ReferencedSeriesSequence[0]
    assert reference.SeriesInstanceUID == source.SeriesInstanceUID
    assert reference.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def map_of(ds: Dataset) -> npt.NDArray[np.generic]:
    frames = np.frombuffer(ds.FloatPixelData, "<f4").reshape(-1, ds.Rows, ds.Columns)
    assert len(frames) == ds.NumberOfFrames
    return assemble(ds, frames)


def test_each_value_of_the_map_lies_at_its_place_on_the_glass(case: Case, tmp_path: Path) -> None:
    """Place of every pixel by the source's numbers, value at that place by the map's."""
    ds = export(case, tmp_path / "run", "parametric_map")
    source = case.sources[0]
    like_the_level(ds, source)
    assert (ds.DimensionOrganizationType, ds.ContentLabel, ds.Modality) == ("TILED_FULL", "HEATMAP", "OT")
    assert "AI explanation, not for diagnosis" in ds.SeriesDescription
    values = map_of(ds)
    row, column = np.meshgrid(*(np.arange(n, dtype=float) for n in values.shape), indexing="ij")
    if source.DimensionOrganizationType == "TILED_SPARSE":
        # From the stated place of each tile.
        stated = np.full((*values.shape, 2), np.nan)
        cosines = np.array([float(v) for v in source.ImageOrientationSlide])
        rows_mm, columns_mm = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        for item in source.PerFrameFunctionalGroupsSequence:
            place = item.PlanePositionSlideSequence[0]
            r, c = place.RowPositionInTotalImagePixelMatrix - 1, place.ColumnPositionInTotalImagePixelMatrix - 1
            corner = [float(place.XOffsetInSlideCoordinateSystem), float(place.YOffsetInSlideCoordinateSystem)]
            part = stated[r : r + source.Rows, c : c + source.Columns]
            h, w = np.meshgrid(*(np.arange(n, dtype=float) for n in part.shape[:2]), indexing="ij")
            part[:] = corner + (
                w[..., None] * float(columns_mm) * cosines[:2] + h[..., None] * float(rows_mm) * cosines[3:5]
            )
    else:
        stated = places(source, row, column)
    assert np.abs(places(ds, row, column) - stated).max() < 1e-6
    expected = case.result.explanations[0].normalised()
    assert np.array_equal(values, expected)
    peak = np.unravel_index(int(values.argmax()), values.shape)
    spot = (0.62 * (slides.SIZE[0] - 1), 0.28 * (slides.SIZE[1] - 1))
    assert np.hypot(peak[0] - spot[0], peak[1] - spot[1]) < 1
    volume = case.result.study.volume
    assert (volume.affine @ [0, *peak, 1])[:2] == pytest.approx(stated[peak], abs=1e-6)


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize("omit", [True, False])
def test_bands_lie_where_the_map_does(case: Case, tmp_path: Path, labelmap: bool, omit: bool) -> None:
    ds = export(case, tmp_path / "run", "segmentation", labelmap=labelmap, omit_empty_frames=omit)
    like_the_level(ds, case.sources[0])
    assert ds.DimensionOrganizationType == ("TILED_SPARSE" if omit else "TILED_FULL")
    assert ds.SegmentationType == ("LABELMAP" if labelmap else "BINARY")
    assert (int(ds.NumberOfFrames) < 50) is omit
    values = case.result.explanations[0].normalised()
    bands = ExportOptions().bands
    assert len([item for item in ds.SegmentSequence if item.SegmentNumber > 0]) == len(bands)
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    if labelmap:
        assert np.array_equal(assemble(ds, frames), np.searchsorted(np.float32(bands), values, side="right"))
        return
    for number, low in enumerate(bands, 1):
        assert np.array_equal(assemble(ds, frames, number), values >= np.float32(low))


def test_every_format_at_once(case: Case, tmp_path: Path) -> None:
    """What applies is written and valid, what does not says why, and a second run gives the same bytes."""
    options = ExportOptions(formats=ROLES)
    reasons = skipped(case.result, options)
    assert set(reasons) == NOT_OF_SLIDES | OF_TILES
    assert all("slide" in reason for role, reason in reasons.items() if role not in {"movie", "annotations"})
    outputs = export_all(case.result, tmp_path / "run", options)
    assert {output.role for output in outputs} == set(ROLES) - NOT_OF_SLIDES - OF_TILES
    for output in outputs:
        if output.path.endswith(".dcm"):
            assert dicom_errors(tmp_path / "run" / output.path) == [], output.path
    assert export_all(copy.deepcopy(case.result), tmp_path / "again", options) == outputs


def test_a_report_counts_in_the_whole_slide(case: Case, tmp_path: Path) -> None:
    """Outlines surround the peak, in coordinates of the total pixel matrix."""
    ds = export(case, tmp_path / "run", "structured_report")
    regions = [item for item in ds.iterall() if item.keyword == "GraphicData"]
    regions = [np.asarray(item.value, float).reshape(-1, 2) for item in regions]
    origins = [item.value for item in ds.iterall() if item.keyword == "PixelOriginInterpretation"]
    assert len(regions) == len(origins) == 1 + len(ExportOptions().bands)
    assert set(origins) == {"VOLUME"}
    values = case.result.explanations[0].map
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    for points in regions:
        low, high = points.min(0) - 1, points.max(0) + 1
        assert (low < (column, row)).all()
        assert ((column, row) < high).all()
    assert not [item for item in ds.iterall() if item.keyword == "ReferencedFrameNumber"]


def test_a_large_slide_becomes_a_smaller_picture(case: Case) -> None:
    """Blocks of pixels keep their place and colour, and the map its maximum; trust stays with its map."""
    small = reduced(case.result, 400)
    volume, first = small.study.volume, small.explanations[0]
    assert volume.shape == first.map.shape == (230, 309)
    assert first.map.max() == case.result.explanations[0].map.max()
    full = case.result.study.volume
    assert volume.pixels[:, 100, 50] == pytest.approx(full.pixels[:, 400:404, 200:204].mean((1, 2)), rel=1e-5)
    assert volume.affine @ [0, 100, 50, 1] == pytest.approx(full.affine @ [0, 401.5, 201.5, 1])
    assert reduced(case.result) is case.result


def test_no_evidence_no_segmentation(case: Case, tmp_path: Path) -> None:
    empty = tuple(replace(item, map=np.zeros_like(item.map)) for item in case.result.explanations)
    result = replace(case.result, explanations=empty)
    options = ExportOptions(formats=("parametric_map", "segmentation"))
    assert "no map has positive evidence" in skipped(result, options)["segmentation"]
    outputs = export_all(result, tmp_path / "run", options)
    assert {output.role for output in outputs} == {"parametric_map"}


@pytest.mark.data
def test_a_real_slide(tmp_path: Path) -> None:
    """42 JPEG tiles of 500 x 500, rows and columns of different spacing."""
    source = slides.real_level(require_data("wsi", "small_dicom.dcm"))
    with open_slide(slides.save([source], tmp_path / "in")) as slide:
        volume, _ = read_level(slide, "0123456789ab")
    case = Case(result_of(volume, blob(volume.shape, (1600, 700), (200, 150))), [source])
    ds = export(case, tmp_path / "map", "parametric_map")
    like_the_level(ds, source)
    assert np.array_equal(map_of(ds), case.result.explanations[0].normalised())
    segmentation = export(case, tmp_path / "bands", "segmentation")
    like_the_level(segmentation, source)
    frames = segmentation.pixel_array.reshape(-1, 500, 500)
    assert np.array_equal(assemble(segmentation, frames, 1), map_of(ds) >= np.float32(ExportOptions().bands[0]))
