from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medxai.export import ExportOptions, segmentation
from tests.export import build
from tests.export.read import read, segment_planes
from tests.tools import dicom_errors

CASES = {
    "oblique": lambda: build.ct_case(),
    "flipped": lambda: build.ct_case(flipped=True),
    "mr": lambda: build.mr_case(),
    "enhanced": lambda: build.enhanced_case(),
    "ultrasound": lambda: build.us_case(cine=False),
    "cine": lambda: build.us_case(cine=True),
}
BANDS = (0.25, 0.5, 0.75)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


@pytest.mark.parametrize("omit", [True, False])
@pytest.mark.parametrize("labelmap", [False, True])
def test_bands_are_exact_at_their_places(case, labelmap, omit, tmp_path):
    options = ExportOptions(labelmap=labelmap, omit_empty_frames=omit)
    paths = segmentation.write(case.result, tmp_path, options)
    assert len(paths) == 2
    for path, explanation in zip(paths, case.result.explanations, strict=True):
        ds = read(path)
        masks = segment_planes(ds, case.result.study.volume, 3)
        values = explanation.normalised().reshape(masks.shape[1:])
        for band, low in enumerate(BANDS):
            high = (*BANDS, 2.0)[band + 1] if labelmap else 2.0  # exclusive or nested
            np.testing.assert_array_equal(masks[band], (values >= np.float32(low)) & (values < high))
        assert masks[-1].any()
        assert dicom_errors(path) == []


def test_frames_without_a_band_are_left_out_only_on_request(tmp_path):
    case = build.ct_case()
    few = read(segmentation.write(case.result, tmp_path, ExportOptions())[0])
    all_frames = read(segmentation.write(case.result, tmp_path, ExportOptions(omit_empty_frames=False))[0])
    assert few.NumberOfFrames < all_frames.NumberOfFrames == 3 * build.SHAPE[0]
    assert few.SOPInstanceUID != all_frames.SOPInstanceUID


def test_segments_say_explanation_and_never_disease(case, tmp_path):
    ds = read(segmentation.write(case.result, tmp_path, ExportOptions())[0])
    assert [s.SegmentLabel for s in ds.SegmentSequence] == [f"CAM >= {t:g} (explanation)" for t in BANDS]
    for item in ds.SegmentSequence:
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        assert item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
        assert item.SegmentedPropertyTypeCodeSequence[0].CodeValue == "130403"
        assert item.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "309825002"
        assert item.TrackingUID
        assert item.TrackingID
    assert len({item.TrackingUID for item in ds.SegmentSequence}) == 3


def test_labels_of_exclusive_bands_state_their_range():
    assert segmentation.band_labels(BANDS, True) == (
        "CAM 0.25 to 0.5 (explanation)",
        "CAM 0.5 to 0.75 (explanation)",
        "CAM >= 0.75 (explanation)",
    )


def test_cine_frames_refer_to_their_source_frame_and_order_of_time(tmp_path):
    case = build.us_case(cine=True)
    ds = read(segmentation.write(case.result, tmp_path, ExportOptions())[0])
    assert "FrameOfReferenceUID" not in ds
    source = case.sources[0]
    for item in ds.PerFrameFunctionalGroupsSequence:
        reference = item.DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert item.FrameContentSequence[0].TemporalPositionIndex == reference.ReferencedFrameNumber
        assert list(item.FrameContentSequence[0].DimensionIndexValues)[-1] == reference.ReferencedFrameNumber
    series = ds.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPClassUID == source.SOPClassUID


def test_an_empty_map_gives_no_object_and_a_reason(tmp_path):
    case = build.ct_case()
    volume = case.result.study.volume
    nothing = build.explain(volume, np.zeros(volume.shape, np.float32))
    result = replace(case.result, explanations=(nothing, case.result.explanations[1]))
    assert segmentation.applies(result) is None
    assert len(segmentation.write(result, tmp_path, ExportOptions())) == 1
    assert "no map has positive evidence" in (segmentation.applies(replace(result, explanations=(nothing,))) or "")


@pytest.mark.parametrize("bands", [(0.5, 0.25), (0.5, 0.5), (0.0, 0.5), ()])
def test_senseless_bands_are_refused(bands):
    with pytest.raises(ValueError, match="bands"):
        ExportOptions(bands=bands)
