from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from highdicom.ko import KeyObjectSelectionDocument

from medxai.export import ExportOptions, export_all, key_objects, skipped
from medxai.settings import ROLES
from medxai.study import TrustReport
from tests.export import build
from tests.export.read import read
from tests.tools import dicom_errors, report_errors

CASES = {
    "oblique": lambda: build.ct_case(),
    "mr": lambda: build.mr_case(),
    "enhanced": lambda: build.enhanced_case(),
    "ultrasound": lambda: build.us_case(cine=False),
    "cine": lambda: build.us_case(cine=True),
}
WITHHELD = TrustReport("withheld", ("the region matters no more than a random one",))


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def written(result, folder, **options):
    outputs = export_all(result, folder, ExportOptions(**({"formats": ROLES} | options)))
    (path,) = (folder / output.path for output in outputs if output.role == key_objects.ROLE)
    return path, outputs


def references(ds):
    return {
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID): item.ReferencedSOPSequence[0]
        for item in ds.ContentSequence
        if item.ValueType in ("IMAGE", "COMPOSITE")
    }


def test_it_points_at_the_peak_slices_with_their_outlines(case, tmp_path):
    path, _ = written(case.result, tmp_path / "run")
    ds = read(path)
    assert dicom_errors(path) == []
    assert len(KeyObjectSelectionDocument.from_dataset(ds).content.get_references()) == len(references(ds))
    assert ds.ConceptNameCodeSequence[0].CodeValue == "113000"
    found, volume = references(ds), case.result.study.volume
    for explanation in case.result.explanations:
        plane = int(np.unravel_index(explanation.map.argmax(), explanation.map.shape)[0]) if volume.axes != "HW" else 0
        source = volume.source[plane if len(volume.source) > 1 else 0]
        item = found[source.SOPInstanceUID]
        if volume.frame_numbers:
            numbers = item.ReferencedFrameNumber
            numbers = [numbers] if isinstance(numbers, int) else list(numbers)
            assert volume.frame_numbers[plane] in numbers
        state = read(tmp_path / "run" / "presentation_state_gradcam_1-bleeding.dcm")
        assert item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == state.SOPInstanceUID


def test_it_lists_the_objects_of_the_run_and_one_capture_per_peak(tmp_path):
    case = build.ct_case()
    path, outputs = written(case.result, tmp_path / "run")
    found = references(read(path))
    headers = {o.path: read(tmp_path / "run" / o.path) for o in outputs if o.path.endswith(".dcm")}
    peaks = {case.sources[int(e.map.max(axis=(1, 2)).argmax())].SOPInstanceUID for e in case.result.explanations}
    for name, header in headers.items():
        if header.Modality in ("PR", "KO"):
            continue
        if name.startswith("secondary_capture"):
            wanted = header.SourceImageSequence[0].ReferencedSOPInstanceUID in peaks
        else:
            wanted = True
        assert (header.SOPInstanceUID in found) == wanted, name
    evidence = {
        str(item.ReferencedSOPInstanceUID)
        for study in read(path).CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert found.keys() <= evidence


def test_withheld_maps_flag_no_slice(tmp_path):
    result = replace(build.ct_case().result, trust=(WITHHELD, TrustReport("supported")))
    path, _ = written(result, tmp_path / "run")
    named = [item for item in read(path).ContentSequence if "ConceptNameCodeSequence" in item]
    described = (item for item in named if item.ConceptNameCodeSequence[0].CodeValue == "113012")
    (text,) = (item.TextValue for item in described)
    assert "Layer-CAM" in text
    assert "Grad-CAM" not in text
    nothing = replace(result, trust=(WITHHELD, WITHHELD))
    assert "withholds" in skipped(nothing, ExportOptions(formats=ROLES))[key_objects.ROLE]


@pytest.mark.slow
def test_the_template_is_kept(tmp_path):
    path, _ = written(build.ct_case().result, tmp_path / "run")
    assert report_errors(path) == []
