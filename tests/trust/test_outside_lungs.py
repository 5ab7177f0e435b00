"""The alarm for evidence outside the lungs, and metal: planted maps with known shares."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from medxai.export import ExportOptions, page
from medxai.export.reporting import MEANINGS
from medxai.prepare.lungs import lungs
from medxai.study import Explanation, TrustReport, Volume
from medxai.trust.gate.figures import NAMES
from medxai.trust.lungs import NAME, alarm, margin_mm, outside_lungs
from medxai.trust.metal import metal, metal_share
from tests.export import build

SHAPE, MM = (24, 80, 90), (5.0, 4.0, 4.0)
GOOD = TrustReport("supported", (), {"drop": 1.0}, 0.9)


def chest() -> Volume:
    """A body of air, tissue and two cylinders of lung, 40 mm in radius, the whole depth of the stack."""
    h, w = np.meshgrid(np.arange(SHAPE[1]) * MM[1], np.arange(SHAPE[2]) * MM[2], indexing="ij")
    plane = np.where(np.hypot((h - 160) / 1.0, (w - 180) / 1.2) < 120, 40.0, -1000.0)
    for side in (-1, 1):
        plane[np.hypot(h - 160, w - 180 - side * 65) < 40] = -850.0
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = (*MM, 1.0)
    return Volume(np.broadcast_to(plane, (1, *SHAPE)).astype(np.float32).copy(), "DHW", affine, "CT")


def mapped(volume: Volume, weights: dict[tuple[int, int], float], cell: float = 16.0) -> Explanation:
    """A map with evidence of some weight in boxes of 3 x 3 voxels at (row, column), in all slices."""
    values = np.zeros(SHAPE, np.float32)
    for (row, column), weight in weights.items():
        values[:, row - 1 : row + 2, column - 1 : column + 2] = weight
    return replace(build.explain(volume, values), cell_mm=(cell, cell, cell))


#: A lung's middle, the middle of the heart, the table.
LUNG, HEART, TABLE = (40, 29), (40, 45), (76, 45)


@pytest.mark.parametrize(
    ("weights", "share", "verdict"),
    [
        ({LUNG: 1.0}, 0.0, "supported"),
        ({LUNG: 3.0, TABLE: 1.0}, 0.25, "supported"),
        ({LUNG: 1.0, TABLE: 1.0}, 0.5, "limited"),
        ({LUNG: 1.0, HEART: 3.0}, 0.75, "withheld"),
        ({TABLE: 1.0}, 1.0, "withheld"),
    ],
)
def test_the_share_outside_decides(weights: dict[tuple[int, int], float], share: float, verdict: str) -> None:
    volume = chest()
    explanation, region = mapped(volume, weights), lungs(volume)
    assert region is not None
    assert outside_lungs(explanation, volume, region) == pytest.approx(share, abs=0.01)
    report = alarm(GOOD, explanation, volume, region)
    assert report.verdict == verdict
    assert report.index == GOOD.index
    assert report.figures["drop"] == 1.0
    words = f"{share:.0%} of the evidence lies outside the lungs: a shortcut is possible"
    assert (words in report.reasons) is (verdict != "supported")


def test_the_margin_is_half_a_cell_and_never_wide() -> None:
    """The middle of the heart is 23 mm from both lungs: no margin reaches it; 20 mm off a lung one of 20 mm does."""
    volume = chest()
    region = lungs(volume)
    assert region is not None
    assert margin_mm(mapped(volume, {LUNG: 1.0}, 16.0), volume) == (8.0, 8.0, 8.0)
    assert margin_mm(mapped(volume, {LUNG: 1.0}, 90.0), volume) == (20.0, 20.0, 20.0)
    near = (53, 29)  # three rows of 4 mm: 12, 16 and 20 mm from the last row of the lung
    assert outside_lungs(mapped(volume, {near: 1.0}, 8.0), volume, region) == pytest.approx(1.0)
    assert outside_lungs(mapped(volume, {near: 1.0}, 90.0), volume, region) == pytest.approx(0.0)
    assert outside_lungs(mapped(volume, {HEART: 1.0}, 16.0), volume, region) == pytest.approx(1.0)


def test_without_lungs_nothing_is_supported_and_empty_maps_have_no_share() -> None:
    volume = chest()
    report = alarm(GOOD, mapped(volume, {LUNG: 1.0}), volume, None)
    assert report.verdict == "limited"
    assert "no lungs were found" in report.reasons[0]
    assert math.isnan(report.figures[NAME])
    region = lungs(volume)
    empty = TrustReport("withheld", ("the map is empty",))
    judged = alarm(empty, mapped(volume, {}), volume, region)
    assert judged.reasons == empty.reasons
    assert math.isnan(judged.figures[NAME])


def test_it_is_shown_and_is_no_part_of_the_index(tmp_path) -> None:
    assert NAME not in NAMES
    assert NAME in MEANINGS
    case = build.ct_case()
    report = TrustReport(
        "limited", ("41% of the evidence lies outside the lungs: a shortcut is possible",), {NAME: 0.41}
    )
    text = page.write(replace(case.result, trust=(report, GOOD)), tmp_path, ExportOptions())[0].read_text()
    assert text.count("Share of the evidence outside the lungs</td>") == 1
    assert "41% of the evidence lies outside the lungs: a shortcut is possible." in text


def test_metal_in_the_body_is_told_from_metal_on_it() -> None:
    volume = chest()
    assert metal(volume) is None
    inside = volume.pixels.copy()
    inside[0, 10:12, 40, 44:46] = 3071.0
    deep = replace(volume, pixels=inside)
    assert metal_share(deep) == pytest.approx(4 / (volume.pixels > -500).sum(), rel=0.35)
    assert "metal in the body" in (metal(deep) or "")
    skin = volume.pixels.copy()
    skin[0, 10:12, 10, 45] = 3071.0
    assert metal(replace(volume, pixels=skin)) is None
