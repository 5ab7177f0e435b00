"""What OHIF shows of the objects of `medxai brain explain` on an oblique MR series: the planted regions, in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import dcmread

from medxai.brain_explain import begin, explain_cohort
from medxai.brain_settings import ExplainSettings
from medxai.explain.brain_evidence import write_evidence
from medxai.prepare.brain.settings import AtlasOptions
from medxai.prepare.brain.subject import SubjectFeatures
from medxai.settings import Destination
from medxai.transport.send import send
from sample_cases.synthetic_brain import Planted
from tests.export.brain import cohort
from tests.pacs import Orthanc
from tests.viewer import ohif
from tests.viewer.browser import look
from tests.viewer.ohif import Step
from tests.viewer.test_viewer import NEAR, Picture, Point, orange, outlined, picture, red

pytestmark = pytest.mark.slow

#: Regions whose evidence is planted: two boxes of the features' grid that share a corner.
NODE, OTHER = 31, 33
SHAPE, STEPS = (26, 176, 168), (5.0, 1.2, 1.2)
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shown:
    """The study of a subject, as the viewer showed it.

    Attributes:
        shots: by kind of object.
        faults: of the page and its requests.
        places: LPS mm that each kind has to be at, all on one slice.
    """

    shots: dict[str, dict[str, Any] | None]
    faults: list[str]
    places: dict[str, Float]


def regions_on(features: SubjectFeatures, affine: Float) -> npt.NDArray[np.int64]:
    """``[D, H, W]`` on the series: region of the cell that each voxel's centre lies in; 0 outside the brain."""
    assert features.alff is not None
    index = np.indices(SHAPE).reshape(3, -1)
    cell = np.linalg.inv(features.affine) @ affine @ np.r_[index, np.ones((1, index.shape[1]))]
    cell = np.floor(cell[:3] + 0.5).astype(int)
    inside = ((cell >= 0) & (cell < np.array(features.alff.shape)[:, None])).all(0)
    found = np.zeros(index.shape[1], np.int64)
    labels = np.where(features.alff != 0, cohort.atlas_labels(features), 0)
    found[inside] = labels[tuple(cell[:, inside])]
    return found.reshape(SHAPE)


def places_of(labels: npt.NDArray[np.int64], affine: Float) -> dict[str, Float]:
    """Where each kind of object has to be seen, on the slice through the middle of the first region."""
    plane = round(float(np.argwhere(labels == NODE + 1)[:, 0].mean()))
    first = np.argwhere(labels[plane] == NODE + 1)
    both = np.argwhere(np.isin(labels[plane], [NODE + 1, OTHER + 1]))

    def mm(pixel: Float) -> Float:
        return np.asarray(affine @ [plane, *pixel, 1])[:3]

    middle = mm(first.mean(0))
    extent = mm((both.min(0) + both.max(0)) / 2)
    return {"parametric_map": middle, "segmentation": extent, "structured_report": middle}


@pytest.fixture(scope="module")
def shown(server: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The command's own way, with evidence that was planted in one region, one edge and two windows."""
    work = tmp_path_factory.mktemp("brain")
    people = cohort.people(2, planted=Planted(windows=12, dynamic_windows=(6, 9)))
    bundle, allow = cohort.write_bundle(work, people)
    features, name = people[1].features, people[1].features.subject
    data = cohort.write_cohort(work / "features", people[1:], space="")
    image, table = cohort.write_atlas(work / "atlas", features)
    affine = cohort.write_series(work / "mr", SHAPE, STEPS, features)
    settings = ExplainSettings(features=data, bundle=str(bundle), output=work / "out", allow=allow, subjects=(name,),
                               series=work / "mr", atlas=AtlasOptions(image=image, table=table),
                               top_regions=2)  # fmt: skip
    run = begin(settings)
    planted = cohort.planted_evidence(features, run.model, NODE, OTHER)
    write_evidence(settings.output / name, planted, run.evidence_key(name))
    (outcome,) = explain_cohort(settings)
    assert outcome.state == "done", outcome.reason
    places = places_of(regions_on(features, affine), affine)
    sources = sorted((work / "mr").glob("*.dcm"))
    destination = Destination(name="o", kind="dimse", host=server.host, port=server.dicom_port, aet=server.aet)
    send(sources + [settings.output / name / f"{kind}.dcm" for kind in places], destination)
    world: dict[str, tuple[float, float, float]] = {
        k: (float(x), float(y), float(z)) for k, (x, y, z) in places.items()
    }
    steps = {
        "parametric_map": Step("PMAP", "", world["parametric_map"], coloured=True),
        "segmentation": Step("SEG", "", world["segmentation"], answers=("Yes",), coloured=True),
        "structured_report": Step("SR ", "", world["structured_report"], drawn=True),
    }
    taken = [Step(**{**vars(step), "out": str(work / f"{kind}.png")}) for kind, step in steps.items()]
    viewer, modules = ohif.fetch()
    with ohif.served(viewer, server.rest_url) as address:
        url = f"{address}/viewer?StudyInstanceUIDs={dcmread(sources[0]).StudyInstanceUID}"
        found = look("shot.mjs", url, taken, modules, work)
    shots = dict(zip(places, found["shots"], strict=False))
    if (folder := os.environ.get("MEDXAI_VIEWER_PICTURES")) and all(shots.values()):
        beside([shot for shot in shots.values() if shot], Path(folder) / "viewer_brain.png")
    return Shown(shots, found["faults"], places)


def beside(shots: list[dict[str, Any]], target: Path) -> None:
    """Write the viewports beside each other."""
    panels = [Image.fromarray(picture(shot)[0].astype(np.uint8)).resize((600, 470)) for shot in shots]
    sheet = Image.new("RGB", (600 * len(panels), 470))
    for number, panel in enumerate(panels):
        sheet.paste(panel, (600 * number, 0))
    sheet.quantize(160).save(target, optimize=True)


def away(shot: dict[str, Any], place: Float) -> float:
    """Distance in mm of a place from the plane on the screen."""
    normal = np.array(shot["normal"]) / np.linalg.norm(shot["normal"])
    return abs(float((place - np.array(shot["focal"])) @ normal))


def off(pixels: Picture, point: Point, find: Callable[[Picture], Point]) -> float:
    """How far what is drawn lies from a point, as a share of the picture's width."""
    x, y = find(pixels)
    return float(np.hypot(x - point[0], y - point[1])) / pixels.shape[1]


KINDS: list[tuple[str, Callable[[Picture], Point]]] = [
    ("parametric_map", red), ("segmentation", orange), ("structured_report", outlined),
]  # fmt: skip


@pytest.mark.parametrize(("name", "find"), KINDS)
def test_the_planted_regions_are_seen_where_the_affine_says(
    shown: Shown, name: str, find: Callable[[Picture], Point]
) -> None:
    shot = shown.shots[name]
    assert shot is not None, shown.faults
    assert shot["slices"] == SHAPE[0]
    assert away(shot, shown.places[name]) < 0.5 * STEPS[0]
    assert off(*picture(shot), find) < NEAR


def test_the_page_had_no_fault(shown: Shown) -> None:
    assert shown.faults == []


@pytest.mark.parametrize(("name", "find"), KINDS)
def test_the_check_would_notice_a_mirrored_overlay(shown: Shown, name: str, find: Callable[[Picture], Point]) -> None:
    shot = shown.shots[name]
    assert shot is not None
    pixels, point = picture(shot)
    assert off(np.ascontiguousarray(pixels[::-1, ::-1]), point, find) > NEAR
