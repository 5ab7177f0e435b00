from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from medxai.export import ExportOptions, parametric_map
from tests.export import build
from tests.export.read import float_planes, read
from tests.tools import dicom_errors

CASES = {
    "oblique": lambda: build.ct_case(),
    "flipped": lambda: build.ct_case(flipped=True),
    "axial": lambda: build.ct_case(oblique=False),
    "mr": lambda: build.mr_case(),
    "enhanced": lambda: build.enhanced_case(),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def test_values_sit_at_their_positions(case, tmp_path):
    paths = parametric_map.write(case.result, tmp_path, ExportOptions())
    assert len(paths) == 2
    for path, explanation in zip(paths, case.result.explanations, strict=True):
        ds = read(path)
        np.testing.assert_array_equal(float_planes(ds, case.result.study.volume), explanation.normalised())
        assert float_planes(ds, case.result.study.volume).max() == 1.0


def test_orientation_and_spacing_are_those_of_the_source(case, tmp_path):
    ds = read(parametric_map.write(case.result, tmp_path, ExportOptions())[0])
    shared = ds.SharedFunctionalGroupsSequence[0]
    affine = case.result.study.volume.affine
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    np.testing.assert_allclose(cosines[:3] * spacing[1], affine[:3, 2], atol=1e-6)
    np.testing.assert_allclose(cosines[3:] * spacing[0], affine[:3, 1], atol=1e-6)
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(build.SPACING[0], abs=1e-4)


def test_each_frame_names_the_source_slice_it_lies_on(case, tmp_path):
    ds = read(parametric_map.write(case.result, tmp_path, ExportOptions())[0])
    volume = case.result.study.volume
    for item in ds.PerFrameFunctionalGroupsSequence:
        here = [float(v) for v in item.PlanePositionSequence[0].ImagePositionPatient]
        reference = item.DerivationImageSequence[0].SourceImageSequence[0]
        if volume.frame_numbers:
            frame = case.sources[0].PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
            there = frame.PlanePositionSequence[0].ImagePositionPatient
        else:
            uids = {ds.SOPInstanceUID: ds for ds in case.sources}
            there = uids[reference.ReferencedSOPInstanceUID].ImagePositionPatient
        assert here == pytest.approx([float(v) for v in there], abs=1e-6)


def test_frames_ascend_along_the_normal_as_ohif_takes_for_granted(case, tmp_path):
    ds = read(parametric_map.write(case.result, tmp_path, ExportOptions())[0])
    cosines = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    normal = np.cross(np.array(cosines[:3], float), np.array(cosines[3:], float))
    items = ds.PerFrameFunctionalGroupsSequence
    heights = [np.dot(np.array(item.PlanePositionSequence[0].ImagePositionPatient, float), normal) for item in items]
    assert (np.diff(heights) > 0).all()
    assert [item.FrameContentSequence[0].DimensionIndexValues for item in items] == list(range(1, len(items) + 1))


def test_the_header_says_what_the_numbers_are(tmp_path):
    case = build.ct_case()
    ds = read(parametric_map.write(case.result, tmp_path, ExportOptions())[0])
    mapping = ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "130403"
    assert "0.36" in mapping.LUTExplanation
    assert "16x3.2x2.4 mm" in mapping.LUTExplanation
    assert ds.ContentLabel == "HEATMAP"
    assert ds.ContentQualification == "RESEARCH"
    assert list(ds.ImageType) == ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    assert ds.BodyPartExamined == "HEAD"
    for word in ("Grad-CAM", "bleeding", "features.norm5", "2.375", "0.36", "16x3.2x2.4 mm", "relu=True"):
        assert word in ds.DerivationDescription
    assert ds.StudyInstanceUID == case.sources[0].StudyInstanceUID
    assert ds.SeriesInstanceUID != case.sources[0].SeriesInstanceUID
    assert ds.PatientID == "SECRET-4711"
    assert (ds.ContentDate, ds.InstanceCreationTime) == ("20240305", "101112")
    assert any(item.get("DeviceUID") for item in ds.ContributingEquipmentSequence)


def test_the_validator_finds_no_error(case, tmp_path):
    for path in parametric_map.write(case.result, tmp_path, ExportOptions()):
        assert dicom_errors(path) == []


@pytest.mark.parametrize(("part", "side"), [("KNEE", "L"), ("", None), ("CHEST", None)])
def test_the_validator_accepts_paired_unpaired_and_unknown_body_parts(part, side, tmp_path):
    case = build.ct_case()
    for header in case.result.study.volume.source:
        header.BodyPartExamined = part
        if side:
            header.Laterality = side
    volume = replace(case.result.study.volume, body_part=part)
    result = replace(case.result, study=replace(case.result.study, volume=volume))
    assert dicom_errors(parametric_map.write(result, tmp_path, ExportOptions())[0]) == []


@pytest.mark.parametrize(
    ("part", "side", "code", "frame_side"),
    [
        ("CHEST", None, "816094009", "U"),
        ("KNEE", "R", "72696002", "R"),
        ("KNEE", None, None, None),
        ("", None, None, None),
    ],
)
def test_the_anatomy_of_the_frames_is_coded_where_it_is_known(part, side, code, frame_side, tmp_path):
    case = build.ct_case()
    for header in case.result.study.volume.source:
        header.BodyPartExamined = part
        if side:
            header.Laterality = side
    volume = replace(case.result.study.volume, body_part=part)
    result = replace(case.result, study=replace(case.result.study, volume=volume))
    ds = read(parametric_map.write(result, tmp_path, ExportOptions())[0])
    items = ds.SharedFunctionalGroupsSequence[0].get("FrameAnatomySequence", [])
    assert [(i.AnatomicRegionSequence[0].CodeValue, i.FrameLaterality) for i in items] == (
        [(code, frame_side)] if code else []
    )


def test_every_part_of_the_table_has_a_code():
    from pydicom.sr.codedict import codes

    from medxai.export.anatomy import PARTS

    assert all(len(part) <= 16 and getattr(codes.SCT, name).value for part, (name, _) in PARTS.items())


def test_source_headers_stay_as_they_were(case, tmp_path):
    before = copy.deepcopy(case.result.study.volume.source)
    parametric_map.write(case.result, tmp_path, ExportOptions())
    assert list(before) == list(case.result.study.volume.source)


def test_headers_with_missing_or_odd_patient_attributes_are_accepted(tmp_path):
    case = build.ct_case()
    for header in case.result.study.volume.source:
        for keyword in ("AccessionNumber", "StudyID", "PatientBirthDate", "ReferringPhysicianName"):
            delattr(header, keyword)
        header.PatientSex = "W"
    path = parametric_map.write(case.result, tmp_path, ExportOptions())[0]
    assert read(path).PatientSex == ""
    assert dicom_errors(path) == []


def test_it_does_not_apply_without_a_place_in_the_patient():
    assert parametric_map.applies(build.ct_case().result) is None
    assert "FrameOfReferenceUID" in (parametric_map.applies(build.us_case(cine=True).result) or "")
    result = build.ct_case().result
    other = replace(result, study=replace(result.study, kind="nifti", volume=replace(result.study.volume, source=())))
    assert "not DICOM" in (parametric_map.applies(other) or "")
