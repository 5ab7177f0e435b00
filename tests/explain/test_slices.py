"""Slices by their share of the evidence, and the native grid of a map in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from highdicom.sr import srread

from medxai.explain.cells import cells_of, source_axes
from medxai.explain.slices import describe_slices, rank_slices, slice_shares
from medxai.export import ExportOptions, page, structured_report
from medxai.study import TrustReport
from tests.export import build


def planted(case: build.Case, shares: list[float]) -> object:
    """The case's first explanation with given shares of evidence, in a corner of each slice."""
    explanation = case.result.explanations[0]
    values = np.zeros_like(explanation.map)
    values[:, 3:5, 2:6] = np.array(shares, np.float32)[:, None, None]
    return replace(explanation, map=values)


@pytest.mark.parametrize("flipped", [False, True])
def test_slices_are_ranked_with_their_place_and_instance(flipped: bool) -> None:
    case = build.ct_case(oblique=False, flipped=flipped)
    volume = case.result.study.volume
    ranking = rank_slices(volume, planted(case, [0, 1, 5, 0, 2, 0, 0]))
    assert ranking is not None
    assert [s.index for s in ranking.slices[:3]] == [2, 4, 1]
    assert [s.share for s in ranking.slices[:3]] == pytest.approx([5 / 8, 2 / 8, 1 / 8])
    assert sum(s.share for s in ranking.slices) == pytest.approx(1)
    for item in ranking.slices:
        source = case.sources[item.index]
        assert item.position_mm == pytest.approx(float(source.ImagePositionPatient[2]))
        assert (item.image, item.instance) == (source.InstanceNumber, source.SOPInstanceUID)


def test_a_tilted_stack_counts_along_its_normal() -> None:
    case = build.ct_case()
    ranking = rank_slices(case.result.study.volume, planted(case, [1, 2, 3, 4, 5, 6, 7]))
    assert ranking is not None
    places = [s.position_mm for s in sorted(ranking.slices, key=lambda s: s.index)]
    assert np.diff(places) == pytest.approx([4.0] * 6)


def test_frames_of_one_object_are_its_images() -> None:
    case = build.enhanced_case()
    ranking = rank_slices(case.result.study.volume, case.result.explanations[0])
    assert ranking is not None
    assert {s.index: s.image for s in ranking.slices} == dict(enumerate(case.result.study.volume.frame_numbers))


def test_images_cines_and_empty_maps_have_no_ranking() -> None:
    for cine in (False, True):
        case = build.us_case(cine=cine)
        assert rank_slices(case.result.study.volume, case.result.explanations[0]) is None
        assert describe_slices(case.result.study.volume, case.result.explanations[0]) is None
    case = build.ct_case()
    ranking = rank_slices(case.result.study.volume, planted(case, [0] * 7))
    assert ranking is not None
    assert ranking.slices == ()
    assert not slice_shares(np.zeros((3, 4, 5), np.float32)).any()


def test_a_map_without_depth_says_so() -> None:
    """One cell along the slices in one window; two cells; fine cells; a window of several."""
    case = build.ct_case(oblique=False)
    volume, flat = case.result.study.volume, case.result.explanations[0]

    def note(raw: tuple[int, ...], deep: float) -> str:
        changed = replace(flat, raw=np.ones(raw, np.float32), cell_mm=(deep, 3.2, 2.4))
        found = rank_slices(volume, changed)
        assert found is not None
        return found.note

    assert "no depth of its own: one cell of 28 mm covers all 7 slices" in note((1, 1, 11, 15), 28)
    assert note((1, 2, 11, 15), 14).startswith("one cell is 14 mm deep")
    assert note((3, 1, 11, 15), 14).startswith("within a window the map has no depth of its own")
    assert note((1, 7, 11, 15), 4) == ""


def test_the_native_grid_in_words() -> None:
    case = build.ct_case()
    one = replace(case.result.explanations[0], raw=np.ones((1, 4, 8, 8), np.float32), cell_mm=(64.0, 45.0, 45.0))
    assert cells_of(one).text() == "map of 4 x 8 x 8 cells of 64 x 45 x 45 mm"
    many = replace(one, raw=np.ones((3, 1, 1, 1), np.float32))
    assert cells_of(many).text() == "map of 1 x 1 x 1 cell of 64 x 45 x 45 mm in each of 3 windows"
    still = build.us_case(cine=False).result.explanations[0]
    assert cells_of(still).text(unit="pixels") == "map of 11 x 15 cells of 1.2 x 0.8 pixels"


def test_prepared_axes_are_found_for_any_stack() -> None:
    """A sagittal stack is prepared in axial order: its slices run along the last prepared axis."""
    case = build.mr_case()
    explanation, volume = case.result.explanations[0], case.result.study.volume
    axial = np.zeros((4, 4))
    axial[2, 0], axial[1, 1], axial[0, 2], axial[3, 3] = 2.0, 1.0, 1.0, 1.0
    assert source_axes(replace(explanation, input_affine=axial), volume) == (2, 0, 1)


def test_page_and_report_name_slices_and_grid(tmp_path) -> None:
    case = build.ct_case(oblique=False)
    explanation = planted(case, [0, 1, 5, 0, 2, 0, 0])
    result = replace(case.result, explanations=(explanation, case.result.explanations[1]))
    text = page.write(result, tmp_path, ExportOptions())[0].read_text()
    assert "Map of 1 x 11 x 15 cells of 16 x 3.2 x 2.4 mm" in text
    assert 'data-slice="2">slice 3 (image 3, at 120.0 mm): 62.5%' in text
    assert text.count('class="curve shares"') == 2
    assert "covers all 7 slices" in text
    (path,) = structured_report.write(result, tmp_path, ExportOptions())
    (group, *_) = srread(path).content.get_planar_roi_measurement_groups()
    texts = {i.ConceptNameCodeSequence[0].CodeValue: i.TextValue for i in group[0].ContentSequence
             if i.ValueType == "TEXT"}  # fmt: skip
    assert texts["slices"].startswith("slice 3 (image 3, at 120.0 mm): 62.5%, slice 5 (image 5, at 128.0 mm): 25.0%")
    assert str(case.sources[2].SOPInstanceUID) in texts["slices"]
    assert texts["native_grid"] == "map of 1 x 11 x 15 cells of 16 x 3.2 x 2.4 mm"


def test_a_withheld_map_sends_nobody_to_a_slice(tmp_path) -> None:
    case = build.ct_case(oblique=False)
    result = replace(case.result, trust=(TrustReport("withheld", ("no",)), TrustReport("limited", ("hm",))))
    assert page.write(result, tmp_path, ExportOptions())[0].read_text().count('class="curve shares"') == 1
