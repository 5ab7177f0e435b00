"""What OHIF shows of our objects: on the right slice, at the right place, without an error of the page."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import dcmread

from medxai.export import ExportOptions, export_all
from medxai.settings import Destination
from medxai.transport.send import send
from tests.export import build
from tests.export.build import Case
from tests.pacs import Orthanc
from tests.viewer import ohif
from tests.viewer.browser import look
from tests.viewer.ohif import Step

pytestmark = pytest.mark.slow

#: Isotropic in the plane: OHIF 3.13.2 takes one pixel spacing for the other when it draws coordinates of a report.
SHAPE, SPACING = (28, 200, 256), (5.0, 0.8, 0.8)
#: Share of the picture's width that the evidence may be off.
NEAR = 0.02
Picture = npt.NDArray[np.int16]
Point = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Shown:
    """A study in the archive, as the viewer showed it."""

    case: Case
    shots: dict[str, dict[str, Any] | None]
    faults: list[str]
    slice: int
    captures: list[Path]


def place_of(case: Case) -> tuple[tuple[float, float, float], int]:
    """LPS mm of the map's peak, and its slice in the order of the D axis."""
    values = case.result.explanations[0].map
    index = [int(v) for v in np.unravel_index(int(values.argmax()), values.shape)]
    x, y, z = (case.result.study.volume.affine @ [*index, 1])[:3].tolist()
    return (x, y, z), index[0]


def show(case: Case, steps: dict[str, Step], work: Path, server: Orthanc) -> Shown:
    """Export a case, store it with its source, open its objects."""
    formats = ("parametric_map", "segmentation", "secondary_capture", "structured_report")
    options = ExportOptions(formats=formats, explanations="primary")
    outputs = export_all(case.result, work / "run", options)
    paths = [work / "run" / output.path for output in outputs]
    destination = Destination(name="o", kind="dimse", host=server.host, port=server.dicom_port, aet=server.aet)
    send(build.save_sources(case.sources, work / "source") + paths, destination)
    viewer, modules = ohif.fetch()
    with ohif.served(viewer, server.rest_url) as address:
        placed = [replace(step, out=str(work / f"{name}.png")) for name, step in steps.items()]
        url = f"{address}/viewer?StudyInstanceUIDs={case.sources[0].StudyInstanceUID}"
        found = look("shot.mjs", url, placed, modules, work)
    if folder := os.environ.get("MEDXAI_VIEWER_PICTURES"):
        for step in placed:
            target = Path(folder) / f"viewer_{case.sources[0].Modality.lower()}_{Path(step.out).name}"
            shown = Image.open(step.out).convert("RGB").resize((1050, 675), Image.Resampling.LANCZOS)
            shown.quantize(160).save(target, optimize=True)
    captures = [path for path in paths if path.name.startswith("secondary_capture")]
    shots = dict(zip(steps, found["shots"], strict=False))
    return Shown(
        case, shots, found["faults"], place_of(case)[1] if case.result.study.volume.axes == "DHW" else 0, captures
    )


@pytest.fixture(scope="module", params=["CT", "MR"])
def volume_study(request: pytest.FixtureRequest, server: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """A CT and an MR study with map, segmentation, report and pictures open."""
    isotropic: dict[str, Any] = {"shape": SHAPE, "spacing": SPACING}
    case = build.mr_case(**isotropic) if request.param == "MR" else build.ct_case(oblique=True, **isotropic)
    world, _ = place_of(case)
    steps = {
        "parametric_map": Step("PMAP", "", world, coloured=True),
        "segmentation": Step("SEG", "", world, answers=("Yes",), coloured=True),
        "structured_report": Step("SR ", "", world, drawn=True),
        "secondary_capture": Step("S:9300", "", world),
    }
    return show(case, steps, tmp_path_factory.mktemp(request.param), server)


@pytest.fixture(scope="module")
def ultrasound(server: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """An ultrasound still with report and picture open."""
    case = build.us_case(cine=False)
    values = case.result.explanations[0].map
    row, column = (int(v) for v in np.unravel_index(int(values.argmax()), values.shape))
    steps = {
        "structured_report": Step("SR ", "", pixel=(column, row), drawn=True),
        "secondary_capture": Step("S:9300", "", index=0),
    }
    return show(case, steps, tmp_path_factory.mktemp("US"), server)


@pytest.fixture(scope="module")
def cine(server: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """An ultrasound cine: its picture at a decisive frame and at one that is not, and its report."""
    steps = {
        "decisive": Step("S:9300", "", index=1, coloured=True),
        "other": Step("S:9300", "", index=4),
        "cine_report": Step("SR ", "", pixel=(21, 28), drawn=True),
    }
    return show(build.us_case(cine=True), steps, tmp_path_factory.mktemp("CINE"), server)


def picture(shot: dict[str, Any]) -> tuple[Picture, Point]:
    """Pixels of the viewport and where the place is expected in them."""
    canvas = shot["canvas"]
    left, top = round(canvas["x"]), round(canvas["y"])
    pixels = np.asarray(Image.open(shot["out"]).convert("RGB"), np.int16)
    pixels = pixels[top : top + round(canvas["height"]), left : left + round(canvas["width"])]
    x, y = shot["place"] or (np.nan, np.nan)
    return pixels, (x - left, y - top)


def red(pixels: Picture) -> Point:
    """Middle of what is hottest in OHIF's colours of a Parametric Map."""
    redness = pixels[..., 0] - pixels[..., 1:].max(-1)
    assert redness.max() > 40, "nothing is hot"
    rows, columns = np.nonzero(redness > 0.8 * redness.max())  # how red it gets depends on the grey behind it
    return float(columns.mean()), float(rows.mean())


def orange(pixels: Picture) -> Point:
    """Middle of the extent of the bands in our colours; the viewer's own are blue."""
    rows, columns = np.nonzero(pixels[..., 0] - pixels[..., 2] > 70)
    return (float(columns.min()) + float(columns.max())) / 2, (float(rows.min()) + float(rows.max())) / 2


def outlined(pixels: Picture) -> Point:
    """Middle of yellow outlines, from their left and upper ends: what is written beside them lies to the right."""
    rows, columns = np.nonzero((pixels[..., 0] > 190) & (pixels[..., 1] > 190) & (pixels[..., 2] < 90))
    assert len(rows) > 30, "nothing is outlined"
    return float(columns[rows <= rows.min() + 1].mean()), float(rows[columns <= columns.min() + 1].mean())


def check(shown: Shown, name: str, find: Callable[[Picture], Point]) -> None:
    """The evidence lies at the place, on a slice that holds it."""
    shot = shown.shots[name]
    assert shot is not None, shown.faults
    pixels, (x, y) = picture(shot)
    found = find(pixels)
    assert np.hypot(found[0] - x, found[1] - y) < NEAR * pixels.shape[1], (found, (x, y))


def on_slice(shot: dict[str, Any], case: Case) -> bool:
    """Whether the viewport's plane passes through the peak, within half a slice."""
    world, _ = place_of(case)
    normal = np.array(shot["normal"]) / np.linalg.norm(shot["normal"])
    away = abs(float((np.array(world) - np.array(shot["focal"])) @ normal))
    return away < 0.5 * SPACING[0]


@pytest.mark.parametrize(
    ("name", "find"), [("parametric_map", red), ("segmentation", orange), ("structured_report", outlined)]
)
def test_volumes(volume_study: Shown, name: str, find: Callable[[Picture], Point]) -> None:
    check(volume_study, name, find)
    shot = volume_study.shots[name]
    assert shot is not None
    assert shot["slices"] == SHAPE[0]
    assert on_slice(shot, volume_study.case)


def test_nothing_is_shown_elsewhere(volume_study: Shown) -> None:
    """The page had no error, and every object was found in the list."""
    assert volume_study.faults == []
    assert all(shot is not None for shot in volume_study.shots.values())


def check_capture(shown: Shown, name: str = "secondary_capture") -> None:
    """The picture in the viewer is the picture of that slice."""
    shot = shown.shots[name]
    assert shot is not None, shown.faults
    pixels, _ = picture(shot)
    stored = {path: dcmread(path).pixel_array for path in shown.captures}
    # Compared small and grey, so that neither the viewer's enlargement nor its text matters.
    height = pixels.shape[0]
    scores = []
    for path, array in stored.items():
        scale = min(height / array.shape[0], pixels.shape[1] / array.shape[1])
        size = (round(array.shape[1] * scale), round(array.shape[0] * scale))
        grown = np.asarray(Image.fromarray(array).resize(size), np.int16)
        top, left = (height - size[1]) // 2, (pixels.shape[1] - size[0]) // 2
        seen = pixels[top : top + size[1], left : left + size[0]]
        part = np.abs(seen - grown[: seen.shape[0], : seen.shape[1]])
        scores.append((float(np.median(part)), float((part.max(-1) > 60).mean()), path))
    best = min(scores, key=lambda item: (item[1], item[0]))
    assert best[1] < 0.05, [score[:2] for score in scores]
    if len(stored) > 1:
        assert shown.captures.index(best[2]) == shown.slice


def test_pictures_of_volumes(volume_study: Shown) -> None:
    check_capture(volume_study)


def test_ultrasound(ultrasound: Shown) -> None:
    assert ultrasound.faults == []
    check(ultrasound, "structured_report", outlined)
    check_capture(ultrasound)


def test_cine(cine: Shown) -> None:
    """Evidence is burnt into the decisive frame alone, and the report points into the strongest one."""
    assert cine.faults == []
    (path,) = cine.captures
    stored = dcmread(path).pixel_array
    coloured = {}
    for name, index in (("decisive", 1), ("other", 4)):
        shot = cine.shots[name]
        assert shot is not None
        assert (shot["slice"], shot["slices"]) == (index, 5)
        pixels, _ = picture(shot)
        scale = min(pixels.shape[0] / stored.shape[1], pixels.shape[1] / stored.shape[2])
        rows, columns = round(45 * scale), round(61 * scale)
        top = (pixels.shape[0] - round(stored.shape[1] * scale)) // 2
        left = (pixels.shape[1] - round(stored.shape[2] * scale)) // 2
        inside = pixels[top : top + rows, left : left + columns]
        coloured[name] = float((inside.max(-1) - inside.min(-1) > 40).mean())
    assert coloured["decisive"] > 0.05
    assert coloured["other"] < 0.02  # the viewer's own letters
    check(cine, "cine_report", outlined)
    report = cine.shots["cine_report"]
    assert report is not None
    assert report["slice"] == 1


def test_the_check_would_notice(volume_study: Shown) -> None:
    """Evidence mirrored in the picture, or on the mirrored slice, fails."""
    shot = volume_study.shots["parametric_map"]
    assert shot is not None
    pixels, (x, y) = picture(shot)
    found = red(np.ascontiguousarray(pixels[:, ::-1]))
    assert np.hypot(found[0] - x, found[1] - y) > NEAR * pixels.shape[1]
    moved = shot | {"focal": [v + 3 * SPACING[0] * n for v, n in zip(shot["focal"], shot["normal"], strict=True)]}
    assert not on_slice(moved, volume_study.case)
