"""What a viewer made of dicom-microscopy-viewer, as SLIM is, shows of a slide: map and bands on the right place."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import dcmread
from scipy.ndimage import distance_transform_edt

from medxai import pipeline
from medxai.export import ExportOptions, export_all
from medxai.predict.bundle_spec import SlideSpec
from medxai.session import open_session
from medxai.settings import Destination, make_settings
from medxai.transport.send import send
from tests import slides
from tests.pacs import orthanc
from tests.test_slide_run import dark_bundle, tile_block
from tests.viewer import microscopy, ohif
from tests.viewer.browser import look
from tests.viewer.microscopy import Step

pytestmark = pytest.mark.slow

#: Share of the picture's width that the evidence may be off.
NEAR = 0.02
#: Rows and columns at the upper left that the overview and the legend cover.
COVERED = (140, 400)
#: The band whose outlines are shown, and how far in pixels of the screen a line may be from where it belongs.
OUTLINED, LINE = 1, 4
Picture = npt.NDArray[np.int16]
Point = tuple[float, float]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]], list[str]]:
    """Folder of pictures, what is known of each, and the faults of the page."""
    if reason := ohif.missing():
        if os.environ.get("MEDXAI_REQUIRE_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("slide")
    (work / "archive" / "database").mkdir(parents=True)
    case = slides.slide_case(work / "in", syntax="jpeg")
    options = ExportOptions(formats=("parametric_map", "segmentation"), explanations="primary")
    outputs = [work / "run" / output.path for output in export_all(case.result, work / "run", options)]
    values = case.result.explanations[0].map
    row, column = (int(v) for v in np.unravel_index(int(values.argmax()), values.shape))
    tiled, at = tile_wise(work / "tiles")
    over_tiles = {
        "tile map": Step(str(work / "tile map.png"), at, "map"),
        "corner": Step(str(work / "corner.png"), (0, 0)),
        "annotations": Step(str(work / "annotations.png"), at, "annotations", wanted=OUTLINED),
    }
    steps = {
        "slide": Step(str(work / "slide.png"), (column, row)),
        "map": Step(str(work / "map.png"), (column, row), "map"),
        "blended": Step(str(work / "blended.png"), (column, row), "map", opacity=0.6),
        "segmentation": Step(str(work / "segmentation.png"), (column, row), "segmentation", wanted=1),
    }
    _, modules = ohif.fetch()
    site = microscopy.fetch(work / "site")
    with orthanc(work / "archive") as server:
        destination = Destination(name="o", kind="dimse", host=server.host, port=server.dicom_port, aet=server.aet)
        send([*sorted((work / "in").glob("*.dcm")), *outputs, *tiled], destination)
        with ohif.served(site, server.rest_url, microscopy.completed(server.rest_url)) as address:
            study = str(case.sources[0].StudyInstanceUID)
            found = look("slide.mjs", f"{address}/?study={study}", list(steps.values()), modules, work)
            study = str(dcmread(tiled[0]).StudyInstanceUID)
            more = look("slide.mjs", f"{address}/?study={study}", list(over_tiles.values()), modules, work)
    if folder := os.environ.get("MEDXAI_VIEWER_PICTURES"):
        picture = Image.open(work / "blended.png").convert("RGB").resize((1050, 783), Image.Resampling.LANCZOS)
        picture.save(Path(folder) / "viewer_wsi.png", optimize=True)
        picture = Image.open(work / "annotations.png").convert("RGB").resize((1050, 783), Image.Resampling.LANCZOS)
        picture.save(Path(folder) / "viewer_wsi_annotations.png", optimize=True)
    shots = dict(zip([*steps, *over_tiles], [*found["shots"], *more["shots"]], strict=False))
    return work, shots, found["faults"] + more["faults"]


def tile_wise(folder: Path) -> tuple[list[Path], tuple[int, int]]:
    """Sources and objects of a slide that was run tile by tile; column and row of its dark spot on the finest level."""
    sources = slides.save(slides.pyramid(syntax="jpeg", tag="tiles"), folder / "in")
    bundle, allow = dark_bundle(folder, tile_block(SlideSpec(mpp=2.0, tile=64, least_tissue=0.1)))
    given = {"inputs": [folder / "in"], "output": folder / "out", "bundle": str(bundle), "allow": allow}
    settings = make_settings(given | {"export": {"send_withheld": True}})
    session = open_session(settings)
    (source,) = pipeline.find_studies(settings).sources
    assert pipeline.run_study(session, source).state == "done"
    objects = [path for role in ("parametric_map", "annotations") for path in (folder / "out").glob(f"*/{role}*.dcm")]
    assert len(objects) == 2
    return [*sources, *objects], tile_spot()


def tile_spot() -> tuple[int, int]:
    """Column and row of the dark spot of a slide on its finest level."""
    rows, columns = np.nonzero(slides.tissue().mean(-1) < 120)
    return round(float(columns.mean())), round(float(rows.mean()))


def read(path: Path) -> Picture:
    """Pixels of a picture, white where the overview and the legend lie."""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.int16).copy()
    pixels[: COVERED[0], : COVERED[1]] = 255
    return pixels


def middle(wanted: npt.NDArray[np.bool_]) -> Point:
    """(x, y) of the middle of the extent."""
    rows, columns = np.nonzero(wanted)
    assert len(rows) > 50, "nothing of the kind is to be seen"
    return (float(columns.min()) + float(columns.max())) / 2, (float(rows.min()) + float(rows.max())) / 2


def spot(pixels: Picture) -> Point:
    """Middle of the dark spot of the slide."""
    return middle((pixels[..., 1] < 90) & (pixels[..., 2] - pixels[..., 1] > 50))


def hot(pixels: Picture) -> Point:
    """Middle of what is at the upper end of the viewer's colours (magma: pale yellow)."""
    return middle((pixels[..., 0] > 240) & (pixels[..., 1] > 225) & (pixels[..., 2] < 205))


def yellow(pixels: Picture) -> Point:
    """Middle of a segment (upper end of viridis)."""
    return middle((pixels[..., 0] > 200) & (pixels[..., 1] > 190) & (pixels[..., 2] < 90))


FIND = {"slide": spot, "map": hot, "segmentation": yellow, "tile map": hot}


def test_the_page_had_no_error(shown: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, shots, faults = shown
    assert faults == []
    assert all(shot is not None and shot["levels"] == 3 for shot in shots.values())
    assert shots["map"]["labels"] == ["GRADCAM"]
    assert shots["segmentation"]["labels"] == [f"CAM >= {low:g} (explanation)" for low in ExportOptions().bands]


@pytest.mark.parametrize("name", FIND)
def test_on_its_place(shown: tuple[Path, dict[str, Any], list[str]], name: str) -> None:
    """The slide's own spot, the map's peak and the band lie where the viewer puts the pixel of the peak."""
    work, shots, faults = shown
    assert shots[name] is not None, faults
    pixels = read(work / f"{name}.png")
    x, y = FIND[name](pixels)
    assert np.hypot(x - shots[name]["place"][0], y - shots[name]["place"][1]) < NEAR * pixels.shape[1], (x, y)


def test_the_slide_is_under_the_map(shown: tuple[Path, dict[str, Any], list[str]]) -> None:
    """Blended, both are to be seen: away from the evidence the picture is the slide, darker."""
    work, _, _ = shown
    blended, alone = (read(work / f"{name}.png").mean(-1)[200:600, 300:500] for name in ("blended", "map"))
    assert alone.mean() < 5
    assert 60 < blended.mean() < 140


@pytest.mark.parametrize("name", ["map", "segmentation"])
def test_the_check_would_notice(shown: tuple[Path, dict[str, Any], list[str]], name: str) -> None:
    """Evidence mirrored, or upside down, is too far away."""
    work, shots, _ = shown
    pixels = read(work / f"{name}.png")
    for turned in (pixels[:, ::-1], pixels[::-1]):
        x, y = FIND[name](np.ascontiguousarray(turned))
        assert np.hypot(x - shots[name]["place"][0], y - shots[name]["place"][1]) > NEAR * pixels.shape[1]


def outlined(work: Path, shots: dict[str, dict[str, Any]]) -> npt.NDArray[np.float64]:
    """``[n, 2]``, x and y on the screen of points that lie less than a pixel apart on the outlines of the object."""
    (path,) = work.glob("tiles/out/*/annotations*.dcm")
    header = dcmread(path)
    referred = header.ReferencedImageSequence[0].ReferencedSOPInstanceUID
    levels = [dcmread(at, stop_before_pixels=True) for at in (work / "tiles" / "in").glob("*.dcm")]
    columns = {str(level.SOPInstanceUID): int(level.TotalPixelMatrixColumns) for level in levels}
    factor = round(max(columns.values()) / columns[referred])
    corner, spot_at = (np.asarray(shots[name]["place"], float) for name in ("corner", "annotations"))
    (scale,) = set(np.round((spot_at - corner) / np.asarray(tile_spot()), 3))  # the same across and down
    group = header.AnnotationGroupSequence[OUTLINED]
    points = np.frombuffer(group.PointCoordinatesData, "<f4").reshape(-1, 2).astype(float)
    starts = np.frombuffer(group.LongPrimitivePointIndexList, "<u4").astype(int) // 2
    found = []
    for polygon in np.split(points, starts[1:]):
        closed = corner + scale * (np.vstack([polygon, polygon[:1]]) * factor - 0.5)
        for first, last in pairwise(closed):
            found.append(np.linspace(first, last, 2 + int(np.hypot(*(last - first)))))
    return np.concatenate(found)


def test_outlines_are_drawn_where_the_object_has_them(shown: tuple[Path, dict[str, Any], list[str]]) -> None:
    """With and without the group the picture differs along its outlines, all along them and nowhere else."""
    work, shots, faults = shown
    assert shots["annotations"] is not None, faults
    plain, drawn = read(work / "corner.png"), read(work / "annotations.png")
    changed = np.abs(drawn - plain).max(-1) > 40
    assert np.count_nonzero(changed) > 50, "no outline is drawn"
    lines = np.zeros(changed.shape, bool)
    at = np.rint(outlined(work, shots)).astype(int)
    lines[at[:, 1], at[:, 0]] = True

    def share(of: npt.NDArray[np.bool_], near: npt.NDArray[np.bool_]) -> float:
        return float((distance_transform_edt(~near)[of] <= LINE).mean())

    assert share(changed, lines) > 0.99
    assert share(lines, changed) > 0.99
    assert share(lines, np.roll(changed, 5 * LINE, axis=1)) < 0.5, "the check would not notice"
