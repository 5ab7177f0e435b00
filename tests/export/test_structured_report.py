from __future__ import annotations

import copy
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from highdicom.sr import Comprehensive3DSR, srread
from pydicom.sr.codedict import codes

from medxai.export import ExportOptions, export_all, structured_report
from medxai.export.outlines import area, encloses
from medxai.export.provenance import PATIENT_STUDY
from medxai.export.reporting import MEANINGS, SCHEME, peak_place, private, region_place
from medxai.identity import derive_uid
from medxai.settings import Destination
from medxai.study import TrustReport
from medxai.trust.gate.figures import NAMES
from tests.export import build
from tests.export.read import read
from tests.tools import dicom_errors, report_errors

NAN = float("nan")
CASES = {
    "oblique": lambda: build.ct_case(),
    "flipped": lambda: build.ct_case(flipped=True),
    "mr": lambda: build.mr_case(),
    "enhanced": lambda: build.enhanced_case(),
    "ultrasound": lambda: build.us_case(cine=False),
    "cine": lambda: build.us_case(cine=True),
}
LIMITED = TrustReport(
    "limited",
    ("slight noise in the image changes the map", "a \\ b"),
    {"deletion": 1 / 3, "outside": 0.125, "specificity": NAN, "a_figure_with_a_long_name": -2.0},
    0.625,
)
WITHHELD = TrustReport("withheld", ("the region matters no more than a random one",), {"deletion": -0.25})


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def judged(result, *reports):
    return replace(result, trust=reports)


def written(result, folder, **options):
    (path,) = structured_report.write(result, folder, ExportOptions(**options))
    return path


def groups(path):
    """Groups as highdicom reads them, those with a region first, by tracking identifier; without those of classes."""
    report = srread(path)
    assert isinstance(report, Comprehensive3DSR)
    found = report.content.get_planar_roi_measurement_groups() + report.content.get_image_measurement_groups()
    return {group.tracking_identifier: group for group in found if group.finding_type != private("class_result")}


def maps(path):
    """Groups of whole maps, without those of their bands."""
    return {name: group for name, group in groups(path).items() if "." not in name}


def numbers(group):
    return {item.name.value: item.value for item in group.get_measurements()}


def texts(group):
    found = {}
    for item in group[0].ContentSequence:
        if item.ValueType == "TEXT":
            found.setdefault(item.ConceptNameCodeSequence[0].CodeValue, []).append(item.TextValue)
    return found


def test_figures_and_words_come_back(case, tmp_path):
    result = judged(case.result, LIMITED, replace(LIMITED, verdict="supported", reasons=()))
    path = written(result, tmp_path)
    assert dicom_errors(path) == []
    found = maps(path)
    assert list(found) == ["gradcam-1", "layercam-2"]
    for group, explanation, report in zip(found.values(), result.explanations, result.trust, strict=True):
        values = numbers(group)
        assert values[codes.DCM.Probability.value] == float(result.prediction.probabilities[explanation.class_index])
        assert values["score"] == explanation.score
        shares = result.prediction.probabilities.astype(float)
        assert values["entropy"] == pytest.approx(-(shares * np.log(shares)).sum() / math.log(3), rel=1e-5)
        assert "spread" not in values
        assert values["index"] == report.index
        assert {name: value for name, value in report.figures.items() if not math.isnan(value)} == {
            name: values[name] for name in values if name in report.figures
        }
        lengths = [item.name for item in group.get_measurements() if item.unit != codes.UCUM.NoUnits]
        assert lengths in ([], [private("peak_depth")])
        (verdict,) = group.get_qualitative_evaluations(name=private("verdict"))
        assert verdict.value == private(report.verdict)
        words = texts(group)
        assert words.get("reason", []) == [reason.replace("\\", "/") for reason in report.reasons]
        assert (words["class"], words["decided"]) == ([explanation.class_label], [result.prediction.label])
        assert "not_sent" not in words
        assert words["111001"] == [{"gradcam": "Grad-CAM", "layercam": "Layer-CAM"}[explanation.method]]
    assert found["gradcam-1"].finding_type == codes.DCM.GradientWeightedClassActivation


def test_the_point_is_where_the_map_is_strongest(case, tmp_path):
    volume = case.result.study.volume
    for group, explanation in zip(maps(written(case.result, tmp_path)).values(), case.result.explanations, strict=True):
        source = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
        column, row = (float(v) - 0.5 for v in group.roi.GraphicData)
        frame = source.get("ReferencedFrameNumber")
        if volume.axes == "HW":
            index: tuple[int, ...] = ()
        elif frame is not None:
            index = (volume.frame_numbers.index(int(frame)),)
        else:
            index = ([s.SOPInstanceUID for s in case.sources].index(source.ReferencedSOPInstanceUID),)
        assert explanation.map[(*index, int(row), int(column))] == explanation.map.max()
        (maximum,) = (item for item in group.get_measurements() if item.name == group.finding_type)
        assert maximum.value == float(explanation.map.max())
        assert maximum.derivation == codes.SCT.Maximum
        assert source.ReferencedSOPClassUID == case.sources[0].SOPClassUID
        assert (frame is not None) == (len(volume.frame_numbers) > 0)


def test_bands_are_outlined_on_the_peak_slice(case, tmp_path):
    volume = case.result.study.volume
    found = groups(written(case.result, tmp_path))
    for explanation in case.result.explanations:
        values = explanation.normalised()
        plane, row, column = peak_place(explanation)
        here = values if values.ndim == 2 else values[plane]
        source, frames = region_place(case.result, plane)
        for low in (0.25, 0.5, 0.75):
            group = found[f"{explanation.method}-{explanation.class_index}-{low:g}"]
            points = np.array(group.roi.GraphicData).reshape(-1, 2)
            assert group.roi.GraphicType == "POLYLINE"
            assert np.array_equal(points[0], points[-1])
            assert encloses(points, (column + 0.5, row + 0.5))
            reference = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
            assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
            assert ([int(reference.ReferencedFrameNumber)] if frames else None) == frames
            values_of = {item.name.value: item.value for item in group.get_measurements()}
            square = volume.spacing[1] * volume.spacing[2]
            # A Gaussian has one part in each band: all of its pixels on the slice.
            count = int((here >= np.float32(low)).sum())
            assert values_of[codes.SCT.Area.value] == pytest.approx(count * square, rel=1e-6)
            assert area(points) == pytest.approx(count, rel=0.25)
            assert values_of[group.finding_type.value] == low


def test_uncertainty_over_windows_and_of_classes_that_do_not_exclude_each_other(tmp_path):
    result = build.ct_case().result
    windows = np.array([[0.0, 1.0, 0.0], [0.0, 4.0, 0.0], [0.0, 2.5, 0.0]], np.float32)
    several = np.array([0.9, 0.5, 0.2], np.float32)
    prediction = replace(result.prediction, window_logits=windows, probabilities=several)
    values = numbers(maps(written(replace(result, prediction=prediction), tmp_path))["gradcam-1"])
    assert values["spread"] == pytest.approx(windows[:, 1].std(), rel=1e-6)
    assert values["entropy"] == pytest.approx(1.0)  # one in two


def test_without_trust_the_report_is_there(case, tmp_path):
    path = written(case.result, tmp_path)
    assert dicom_errors(path) == []
    for group in maps(path).values():
        assert group.get_qualitative_evaluations(name=private("verdict")) == []
        assert not {"index", *NAMES} & set(numbers(group))
        assert "reason" not in texts(group)


def test_a_withheld_map_is_reported_without_its_place(case, tmp_path):
    result = judged(case.result, LIMITED, WITHHELD)
    outputs = export_all(result, tmp_path / "run", ExportOptions())
    (path,) = (tmp_path / "run" / output.path for output in outputs if output.role == structured_report.ROLE)
    assert dicom_errors(path) == []
    kept, hidden = maps(path).values()
    assert kept.roi is not None
    (verdict,) = hidden.get_qualitative_evaluations(name=private("verdict"))
    assert verdict.value == private("withheld")
    assert texts(hidden)["reason"] == list(WITHHELD.reasons)
    assert "withholds this Layer-CAM map" in texts(hidden)["not_sent"][0]
    assert numbers(hidden)["deletion"] == -0.25
    assert codes.DCM.GradientWeightedClassActivation.value not in numbers(hidden)
    assert not any(item.ValueType in ("SCOORD", "SCOORD3D") for item in hidden[0].ContentSequence)
    assert len(hidden.source_images) == len(case.sources)
    again = maps(written(result, tmp_path, send_withheld=True))
    assert again["layercam-2"].roi is not None
    assert "not_sent" not in texts(again["layercam-2"])


def test_an_empty_map_has_no_place_and_a_remark(tmp_path):
    case = build.ct_case()
    volume = case.result.study.volume
    nothing = build.explain(volume, np.zeros(volume.shape, np.float32))
    path = written(replace(case.result, explanations=(nothing,)), tmp_path)
    assert dicom_errors(path) == []
    (group,) = maps(path).values()
    assert texts(group)["remark"] == ["all gradients are zero"]


def test_only_the_primary_explanation_on_request(tmp_path):
    assert list(maps(written(build.ct_case().result, tmp_path, explanations="primary"))) == ["gradcam-1"]


def test_two_runs_give_the_same_bytes(case, tmp_path):
    result = judged(case.result, LIMITED, WITHHELD)
    mixed = {name: LIMITED.figures[name] for name in reversed(LIMITED.figures)}
    again = judged(copy.deepcopy(case.result), replace(LIMITED, figures=mixed), WITHHELD)
    first = written(result, tmp_path).read_bytes()
    assert written(again, tmp_path).read_bytes() == first


def test_the_frame_of_the_document(case, tmp_path):
    result = judged(case.result, LIMITED, WITHHELD)
    ds, source = read(written(result, tmp_path)), case.sources[0]
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert (ds.StudyInstanceUID, ds.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    for keyword in ("ContentDate", "InstanceCreationDate"):
        assert ds[keyword].value == "20240305"
    for keyword in ("ContentTime", "InstanceCreationTime"):
        assert ds[keyword].value == "101112"
    (evidence,) = ds.CurrentRequestedProcedureEvidenceSequence
    referenced = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert [item.ReferencedSOPInstanceUID for item in referenced] == [s.SOPInstanceUID for s in case.sources]
    assert SCHEME in [item.CodingSchemeDesignator for item in ds.CodingSchemeIdentificationSequence]
    observer = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in ds.ContentSequence}
    model = derive_uid("model", result.prediction.model_sha256)
    assert model == observer["Device Observer UID"].UID
    assert model in [item.get("DeviceUID") for item in ds.ContributingEquipmentSequence]
    expected = {"CT": "25045-6", "MR": "25056-3", "US": "363679005"}[source.Modality]
    assert observer["Procedure reported"].ConceptCodeSequence[0].CodeValue == expected


def test_tracking_depends_on_what_was_explained_and_from_what(tmp_path):
    result = build.ct_case().result
    other = replace(result, study=replace(result.study, input_sha256="d" * 64))
    uids = [group.tracking_uid for r in (result, other) for group in maps(written(r, tmp_path)).values()]
    assert len(set(uids)) == 4


@pytest.mark.parametrize("label", ["Läsion", "病变", "a\\b = c, d", "x" * 3000, "  ", "tumour\nnode"])
def test_unusual_class_names(label, tmp_path):
    result = build.ct_case().result
    labels = (result.prediction.labels[0], label, *result.prediction.labels[2:])
    first = replace(result.explanations[0], class_label=label, layer="blocks.3 = x")
    result = replace(
        result,
        prediction=replace(result.prediction, labels=labels),
        explanations=(first, result.explanations[1]),
    )
    path = written(result, tmp_path)
    assert dicom_errors(path) == []
    assert re.fullmatch(r"structured_report_gradcam_1-[a-z0-9-]+\.dcm", path.name)
    (text,) = texts(maps(path)["gradcam-1"])["class"]
    assert text.isascii()
    assert 0 < len(text) <= 1024
    assert "\\" not in text
    assert text == {"病变": "class 1", "  ": "class 1", "Läsion": "Lasion"}.get(label, text)


@pytest.mark.parametrize("charset", [None, "ISO_IR 192", ["", "ISO 2022 IR 87"]])
def test_names_of_patients_keep_their_characters(charset, tmp_path):
    case = build.ct_case()
    for header in case.result.study.volume.source:
        header.SpecificCharacterSet = charset
        header.PatientName = "Doe^Jane" if charset is None else "Yamada^Tarou=山田^太郎"
    path = written(case.result, tmp_path)
    assert dicom_errors(path) == []
    assert read(path).PatientName == case.result.study.volume.source[0].PatientName


def test_the_patient_is_named_in_the_patient_module_alone(case, tmp_path):
    path = written(judged(case.result, LIMITED, WITHHELD), tmp_path)
    ds = read(path)
    assert ds.PatientName == "Secret^Patient^Name"
    for keyword in PATIENT_STUDY:
        if keyword in ds:
            del ds[keyword]
    assert not re.search("secret|4711|referrer|19500101", str(ds), re.IGNORECASE)
    assert "secret" not in path.name.lower()


def test_meanings_fit_and_cover_every_figure():
    assert set(NAMES) <= set(MEANINGS)
    assert all(len(value) <= 16 and len(meaning) <= 64 for value, meaning in MEANINGS.items())
    assert len(set(MEANINGS.values())) == len(MEANINGS)


@pytest.mark.parametrize("kind", ["nifti", "picture"])
def test_other_sources_have_no_study_to_attach_to(kind):
    result = build.ct_case().result
    reason = structured_report.applies(replace(result, study=replace(result.study, kind=kind)))
    assert reason is not None
    assert kind in reason


@pytest.mark.pacs
def test_it_is_delivered(storescp_server, tmp_path):
    from medxai.transport.send import send

    path = written(judged(build.ct_case().result, LIMITED, WITHHELD), tmp_path)
    sink = Destination(name="sink", kind="dimse", host="127.0.0.1", port=storescp_server.port, aet="SINK")
    (uid,) = send([path], sink)
    assert uid == read(path).SOPInstanceUID


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "verdicts"),
    [
        ("oblique", (LIMITED, LIMITED)),
        ("oblique", (WITHHELD, WITHHELD)),
        ("enhanced", (LIMITED, WITHHELD)),
        ("ultrasound", (LIMITED, LIMITED)),
        ("cine", (LIMITED, WITHHELD)),
    ],
)
def test_templates_are_kept(name, verdicts, tmp_path):
    errors = report_errors(written(judged(CASES[name]().result, *verdicts), tmp_path))
    if verdicts == (LIMITED, WITHHELD):
        # The validator holds every group of a report against TID 1410 as soon as one follows it.
        errors = [line for line in errors if not re.search(r"Template 1410 .*Missing conditional content item", line)]
    assert errors == []
