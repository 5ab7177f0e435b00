from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from highdicom.sr import srread
from pydicom.sr.codedict import codes

from medxai.errors import SettingsError
from medxai.export import ExportOptions, export_all, volumetric_report
from medxai.export.reporting import private
from medxai.settings import make_settings
from medxai.stack import Stack
from medxai.study import TrustReport
from tests.export import build
from tests.export.read import read
from tests.tools import dicom_errors, report_errors

CASES = {
    "oblique": lambda: build.ct_case(),
    "flipped": lambda: build.ct_case(flipped=True),
    "mr": lambda: build.mr_case(),
    "enhanced": lambda: build.enhanced_case(),
}
FORMATS = ("segmentation", "volumetric_report")


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def written(result, folder, **options):
    outputs = export_all(result, folder, ExportOptions(formats=FORMATS, **options))
    (path,) = (folder / output.path for output in outputs if output.role == volumetric_report.ROLE)
    return path


def test_volumes_are_those_of_the_segments(case, tmp_path):
    path = written(case.result, tmp_path / "run")
    assert dicom_errors(path) == []
    groups = srread(path).content.get_volumetric_roi_measurement_groups()
    by_id = {group.tracking_identifier: group for group in groups}
    assert len(by_id) == 6
    voxel = float(np.prod(case.result.study.volume.spacing))
    for explanation in case.result.explanations:
        header = read(next((tmp_path / "run").glob(f"segmentation_{explanation.method}_*.dcm")))
        values = explanation.normalised()
        for number, low in enumerate((0.25, 0.5, 0.75), 1):
            inside = values >= np.float32(low)
            group = by_id[f"{explanation.method}-{explanation.class_index}-{low:g}"]
            numbers = {(m.name.value, getattr(m.derivation, "value", "")): m.value for m in group.get_measurements()}
            assert numbers[codes.SCT.Volume.value, ""] == pytest.approx(inside.sum() * voxel, rel=1e-6)
            share = explanation.map[inside].sum(dtype=float) / explanation.map.sum(dtype=float)
            assert numbers[private("evidence_share").value, ""] == pytest.approx(share, rel=1e-6)
            assert numbers[group.finding_type.value, codes.SCT.Mean.value] == pytest.approx(
                float(explanation.map[inside].mean(dtype=float)), rel=1e-5
            )
            segment = group.referenced_segment[0]
            assert segment.referenced_sop_instance_uid == header.SOPInstanceUID
            assert segment.referenced_segment_numbers == [number]
            assert header.SegmentSequence[number - 1].TrackingUID == group.tracking_uid


def test_other_frames_of_the_segmentation_give_another_report(tmp_path):
    case = build.ct_case()
    uids = {
        str(read(written(case.result, tmp_path / str(omit), omit_empty_frames=omit)).SOPInstanceUID)
        for omit in (False, True)
    }
    assert len(uids) == 2


def test_slices_at_uneven_distances_count_by_what_lies_between_them(tmp_path):
    case = build.ct_case()
    places = np.array([0.0, 4, 8, 14, 24, 28, 32])
    stack = Stack(places, np.zeros((7, 2)), build.SHAPE[1:], 4.0, case.result.study.volume.affine, "uneven")
    volume = replace(case.result.study.volume, stack=stack)
    result = replace(case.result, study=replace(case.result.study, volume=volume))
    groups = srread(written(result, tmp_path / "run", explanations="primary")).content
    counts = (case.result.explanations[0].normalised() >= np.float32(0.25)).sum(axis=(1, 2))
    thickness = np.array([4.0, 4, 5, 8, 7, 4, 4])
    expected = float(counts @ thickness) * build.SPACING[1] * build.SPACING[2]
    first = groups.get_volumetric_roi_measurement_groups()[0]
    (found,) = (m.value for m in first.get_measurements() if m.name == codes.SCT.Volume)
    assert found == pytest.approx(expected, rel=1e-6)
    assert counts[3] > 0


def test_withheld_maps_have_no_group(tmp_path):
    withheld = TrustReport("withheld", ("the region matters no more than a random one",))
    result = replace(build.ct_case().result, trust=(withheld, TrustReport("supported")))
    groups = srread(written(result, tmp_path / "run")).content.get_volumetric_roi_measurement_groups()
    assert {group.tracking_identifier for group in groups} == {f"layercam-2-{low:g}" for low in (0.25, 0.5, 0.75)}


def test_without_a_place_in_the_patient_there_is_no_volume():
    assert "FrameOfReferenceUID" in (volumetric_report.applies(build.us_case(cine=True).result) or "")


@pytest.mark.parametrize(
    "export",
    [
        {"formats": ["volumetric_report"]},
        {"formats": FORMATS, "labelmap": True},
        {"output_set": "research", "labelmap": True},
    ],
)
def test_it_needs_binary_segments(export):
    with pytest.raises(SettingsError, match="refers to segments of a BINARY segmentation"):
        make_settings({"inputs": ["a"], "output": "b", "bundle": "c", "export": export})


@pytest.mark.slow
def test_templates_are_kept(tmp_path):
    errors = report_errors(written(build.ct_case().result, tmp_path / "run"))
    # The validator holds a group of TID 1411 against TID 1410 too, whose region it then misses.
    assert [line for line in errors if not re.search(r"Template 1410 .*Missing conditional content item", line)] == []
