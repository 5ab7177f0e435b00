from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import replace

import pytest

from medxai.errors import ExportError
from medxai.export import ExportOptions, export_all, skipped
from medxai.export.registry import EXPORTERS
from medxai.settings import ROLES, USUAL_ROLES
from tests.export import build
from tests.export.read import read
from tests.tools import dicom_errors

#: Roles of slides that were decided tile by tile.
OF_SLIDES = {"annotations", "slide_tiles", "slide_overlay"}
CASES = {
    "ct": lambda: build.ct_case(),
    "mr": lambda: build.mr_case(),
    "enhanced": lambda: build.enhanced_case(),
    "ultrasound": lambda: build.us_case(cine=False),
    "cine": lambda: build.us_case(cine=True),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def test_the_registry_holds_every_role():
    assert tuple(exporter.ROLE for exporter in EXPORTERS) == ROLES


@pytest.mark.parametrize("labelmap", [False, True])
def test_a_second_run_gives_the_same_bytes(case, labelmap, tmp_path):
    formats = tuple(role for role in ROLES if not labelmap or role != "volumetric_report")
    options = ExportOptions(formats=formats, labelmap=labelmap)
    first = export_all(case.result, tmp_path / "a", options)
    # An independent copy, so that nothing is equal by sharing.
    again = export_all(copy.deepcopy(case.result), tmp_path / "b", options)
    assert first == again
    assert export_all(case.result, tmp_path / "a", options) == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_outputs_are_described_as_they_are_on_disk(case, tmp_path):
    outputs = export_all(case.result, tmp_path / "run", ExportOptions(formats=ROLES))
    assert {output.path for output in outputs} == {p.name for p in (tmp_path / "run").iterdir()}
    for output in outputs:
        data = (tmp_path / "run" / output.path).read_bytes()
        assert (output.size, output.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_file_names_hold_role_method_and_class_only(case, tmp_path):
    for output in export_all(case.result, tmp_path / "run", ExportOptions(formats=ROLES)):
        if output.path == "case.html":
            continue
        pattern = rf"{output.role}_(gradcam|layercam)_[12]-(bleeding|fracture)[_a-z0-9]*(\.[a-z0-9]+)+"
        assert re.fullmatch(pattern, output.path)


def test_every_dicom_object_is_valid(case, tmp_path):
    for output in export_all(case.result, tmp_path / "run", ExportOptions(formats=ROLES)):
        if output.path.endswith(".dcm"):
            assert dicom_errors(tmp_path / "run" / output.path) == [], output.path


def test_uids_depend_on_input_model_and_configuration(tmp_path):
    result = build.ct_case().result
    options = ExportOptions(formats=("parametric_map",), explanations="primary")
    uids = set()
    for number, other in enumerate(
        (
            result,
            replace(result, config_sha256="d" * 64),
            replace(result, prediction=replace(result.prediction, model_sha256="d" * 64)),
            replace(result, study=replace(result.study, input_sha256="d" * 64)),
        )
    ):
        output = export_all(other, tmp_path / str(number), options)[0]
        uids.add(str(read(tmp_path / str(number) / output.path).SOPInstanceUID))
    assert len(uids) == 4


def test_only_wanted_formats_are_written(tmp_path):
    options = ExportOptions(formats=("nifti",), explanations="primary")
    outputs = export_all(build.ct_case().result, tmp_path / "run", options)
    assert {output.role for output in outputs} == {"nifti"}
    assert len(outputs) == 3


def test_what_does_not_apply_is_left_out_with_a_reason(tmp_path):
    result = build.us_case(cine=True).result
    options = ExportOptions(formats=ROLES)
    reasons = skipped(result, options)
    assert set(reasons) == {"parametric_map", "fractional_segmentation", "volumetric_report", *OF_SLIDES}
    outputs = export_all(result, tmp_path / "run", options)
    assert {output.role for output in outputs} == set(ROLES) - set(reasons)


def test_what_few_viewers_show_is_written_on_request_only(tmp_path):
    outputs = export_all(build.ct_case().result, tmp_path / "run", ExportOptions())
    assert {output.role for output in outputs} == set(USUAL_ROLES) - {"movie", *OF_SLIDES}  # the movie is of cines


def test_a_failure_leaves_the_former_outputs_alone(tmp_path):
    result = build.ct_case().result
    before = export_all(result, tmp_path / "run", ExportOptions(formats=("nifti",)))
    broken = replace(result, created="yesterday")
    with pytest.raises(ExportError, match="0123456789ab: created is not an ISO 8601 date"):
        export_all(broken, tmp_path / "run", ExportOptions())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {output.path for output in before}


def test_headers_that_a_library_refuses_become_one_line_without_patient_data(tmp_path):
    case = build.ct_case()
    del case.result.study.volume.source[0].SOPInstanceUID
    with pytest.raises(ExportError) as caught:
        export_all(case.result, tmp_path / "run", ExportOptions())
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_an_explanation_there_is_nothing_to_export(tmp_path):
    with pytest.raises(ExportError, match="no explanation"):
        export_all(replace(build.ct_case().result, explanations=()), tmp_path / "run", ExportOptions())
