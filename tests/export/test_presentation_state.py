from __future__ import annotations

import copy
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from medxai.export import ExportOptions, export_all, presentation_state
from medxai.export.outlines import outlines
from medxai.study import TrustReport
from tests.export import build
from tests.export.read import read
from tests.tools import dicom_errors, require_tool

CASES = {
    "oblique": lambda: build.ct_case(),
    "flipped": lambda: build.ct_case(flipped=True),
    "enhanced": lambda: build.enhanced_case(),
    "ultrasound": lambda: build.us_case(cine=False),
    "cine": lambda: build.us_case(cine=True),
}
BANDS = (0.25, 0.5, 0.75)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def drawn(ds, volume):
    """Outlines by (plane, band layer), as a viewer would place them."""
    found = {}
    for annotation in ds.GraphicAnnotationSequence:
        (image,) = annotation.ReferencedImageSequence
        if volume.frame_numbers:
            plane = volume.frame_numbers.index(int(image.ReferencedFrameNumber))
        else:
            plane = [h.SOPInstanceUID for h in volume.source].index(image.ReferencedSOPInstanceUID)
        for item in annotation.GraphicObjectSequence:
            assert (item.GraphicType, item.GraphicAnnotationUnits, item.GraphicFilled) == ("POLYLINE", "PIXEL", "N")
            points = np.array(item.GraphicData).reshape(-1, 2)
            assert len(points) == item.NumberOfGraphicPoints
            found.setdefault((plane, annotation.GraphicLayer), []).append(points)
    return found


def test_outlines_lie_on_their_slices(case, tmp_path):
    volume = case.result.study.volume
    paths = presentation_state.write(case.result, tmp_path, ExportOptions())
    assert len(paths) == 2
    for path, explanation in zip(paths, case.result.explanations, strict=True):
        ds = read(path)
        values = explanation.normalised()
        planes = values[np.newaxis] if values.ndim == 2 else values
        expected = {
            (index, f"CAM {low:g}".replace(".", "_")): outlines(plane, low)
            for index, plane in enumerate(planes)
            for low in BANDS
            if (plane >= np.float32(low)).any()
        }
        found = drawn(ds, volume)
        assert found.keys() == expected.keys()
        for key, lines in expected.items():
            for mine, line in zip(found[key], lines, strict=True):
                np.testing.assert_allclose(mine, line, atol=1e-4)
        assert dicom_errors(path) == []


def test_another_library_takes_it_as_a_presentation_state(case, tmp_path):
    checker = require_tool("dcmpschk", system=True)
    for path in presentation_state.write(case.result, tmp_path, ExportOptions()):
        done = subprocess.run([checker, str(path)], capture_output=True, text=True, timeout=60, check=False)
        assert "Test passed." in done.stdout + done.stderr


def test_only_slices_with_an_outline_belong_to_it(tmp_path):
    case = build.ct_case()
    ds = read(presentation_state.write(case.result, tmp_path, ExportOptions())[0])
    (series,) = ds.ReferencedSeriesSequence
    listed = {item.ReferencedSOPInstanceUID for item in series.ReferencedImageSequence}
    values = case.result.explanations[0].normalised()
    assert listed == {case.sources[i].SOPInstanceUID for i in range(len(values)) if values[i].max() >= 0.25}
    assert len(listed) < len(values)


def test_window_and_rescale_stay_those_of_the_source(tmp_path):
    case = build.ct_case()
    ds = read(presentation_state.write(case.result, tmp_path, ExportOptions())[0])
    assert (ds.RescaleSlope, ds.RescaleIntercept) == (1, -1024)
    (window,) = ds.SoftcopyVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth) == (40, 120)
    assert ds.BodyPartExamined == "HEAD"
    assert (ds.PresentationCreationDate, ds.PresentationCreationTime) == ("20240305", "101112")
    texts = [t.UnformattedTextValue for a in ds.GraphicAnnotationSequence for t in a.get("TextObjectSequence", [])]
    assert set(texts) == {"Grad-CAM of bleeding: AI explanation, not for diagnosis"}


def test_a_rescale_per_slice_is_a_reason_not_to_write_one():
    case = build.ct_case()
    case.result.study.volume.source[2].RescaleIntercept = "-1000"
    assert "rescale differs" in (presentation_state.applies(case.result) or "")


def test_a_rescale_per_frame_is_moved_to_where_it_is_looked_for(tmp_path):
    from pydicom import Dataset

    case = build.enhanced_case()
    header = case.result.study.volume.source[0]
    for group in header.PerFrameFunctionalGroupsSequence:
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = "1", "-1024", "HU"
        group.PixelValueTransformationSequence = [item]
    ds = read(presentation_state.write(case.result, tmp_path, ExportOptions())[0])
    assert ds.RescaleIntercept == -1024
    assert "PixelValueTransformationSequence" in header.PerFrameFunctionalGroupsSequence[0]
    header.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence[0].RescaleSlope = "2"
    assert "rescale differs" in (presentation_state.applies(case.result) or "")


def test_half_a_window_is_left_out(tmp_path):
    case = build.ct_case()
    for header in case.result.study.volume.source:
        del header.WindowWidth
    path = presentation_state.write(case.result, tmp_path, ExportOptions())[0]
    assert "SoftcopyVOILUTSequence" not in read(path)
    assert dicom_errors(path) == []


def test_colour_images_get_the_colour_kind(tmp_path):
    case = build.us_case(cine=False)
    header = case.result.study.volume.source[0]
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
    path = presentation_state.write(case.result, tmp_path, ExportOptions())[0]
    ds = read(path)
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.11.2"
    assert len(ds.ICCProfile) > 0
    assert dicom_errors(path) == []


def test_palette_images_have_none():
    case = build.us_case(cine=False)
    case.result.study.volume.source[0].PhotometricInterpretation = "PALETTE COLOR"
    assert "palette" in (presentation_state.applies(case.result) or "")


def test_a_withheld_map_is_not_outlined(tmp_path):
    result = build.ct_case().result
    withheld = TrustReport("withheld", ("the region matters no more than a random one",))
    options = ExportOptions(formats=(presentation_state.ROLE,))
    outputs = export_all(replace(result, trust=(withheld, TrustReport("supported"))), tmp_path / "b", options)
    assert [output.path for output in outputs] == ["presentation_state_layercam_2-fracture.dcm"]


def test_two_runs_give_the_same_bytes(case, tmp_path):
    first = [p.read_bytes() for p in presentation_state.write(case.result, tmp_path / "a", ExportOptions())]
    again = copy.deepcopy(case.result)
    assert [p.read_bytes() for p in presentation_state.write(again, tmp_path / "b", ExportOptions())] == first
