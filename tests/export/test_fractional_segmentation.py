from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from medxai.errors import ExportError
from medxai.export import ExportOptions, export_all, fractional_segmentation
from medxai.export.fractional_segmentation import Fractions
from medxai.export.placement import placed_sources
from medxai.study import TrustReport
from tests.export import build
from tests.export.read import read, slice_of
from tests.tools import dicom_errors

CASES = {
    "oblique": lambda: build.ct_case(),
    "flipped": lambda: build.ct_case(flipped=True),
    "mr": lambda: build.mr_case(),
    "enhanced": lambda: build.enhanced_case(),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


@pytest.mark.parametrize("omit", [True, False])
def test_values_are_the_map_in_255_steps_at_their_places(case, omit, tmp_path):
    volume = case.result.study.volume
    paths = fractional_segmentation.write(case.result, tmp_path, ExportOptions(omit_empty_frames=omit))
    for path, explanation in zip(paths, case.result.explanations, strict=True):
        ds = read(path)
        assert (ds.SegmentationType, ds.MaximumFractionalValue) == ("FRACTIONAL", 255)
        found = np.zeros(volume.shape, np.uint8)
        for item, frame in zip(ds.PerFrameFunctionalGroupsSequence, ds.pixel_array, strict=True):
            found[slice_of(item, volume)] = frame
        np.testing.assert_array_equal(found, np.rint(255 * explanation.normalised()).astype(np.uint8))
        assert (ds.NumberOfFrames < volume.shape[0]) == omit
        (segment,) = ds.SegmentSequence
        assert "explanation" in segment.SegmentLabel
        assert "neither a probability" in segment.SegmentDescription
        assert dicom_errors(path) == []


def test_the_short_cut_changes_no_byte(case, monkeypatch):
    """The same object from the array that answers for itself and from a plain one, which highdicom sorts."""
    sources = placed_sources(case.result)
    explanation, options = case.result.explanations[0], ExportOptions()
    ours = fractional_segmentation.build(case.result, explanation, sources, options, 1)
    asked = []
    monkeypatch.setattr(Fractions, "__array_function__", lambda self, f, t, a, k: stock(f, a, k, asked))
    stocks = fractional_segmentation.build(case.result, explanation, sources, options, 1)
    assert np.unique in asked  # otherwise the short cut has lost its reason
    assert hashlib.sha256(ours.PixelData).digest() == hashlib.sha256(stocks.PixelData).digest()
    assert ours == stocks


def stock(function, arguments, keywords, asked):
    asked.append(function)
    plain = tuple(a.view(np.ndarray) if isinstance(a, Fractions) else a for a in arguments)
    return function(*plain, **keywords)


@pytest.mark.parametrize("bad", [-0.25, 1.25])
def test_values_out_of_range_are_still_refused_by_the_library(bad):
    from highdicom.seg import Segmentation

    case = build.ct_case()
    sources = placed_sources(case.result)
    good = fractional_segmentation.build(case.result, case.result.explanations[0], sources, ExportOptions(), 1)
    values = case.result.explanations[0].normalised().copy()
    values[3, 4, 5] = bad
    from highdicom.seg import SegmentDescription

    with pytest.raises(ValueError, match=r"range \[0, 1\]"):
        Segmentation(
            source_images=sources,
            pixel_array=values.view(Fractions),
            segmentation_type="FRACTIONAL",
            segment_descriptions=[SegmentDescription.from_dataset(good.SegmentSequence[0])],
            series_instance_uid="1.2.3",
            series_number=1,
            sop_instance_uid="1.2.4",
            instance_number=1,
            manufacturer="a",
            manufacturer_model_name="b",
            software_versions="1",
            device_serial_number="1",
        )


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0], [1.0, 1.0], [0.25, 0.75], [-1.0, 0.5], [0.0, 2.0]]
)
def test_the_summary_answers_what_the_sort_would(values):
    plain = np.array(values * 8, np.float32).reshape(2, 4, len(values))
    short, full = np.unique(plain.view(Fractions)), np.unique(plain)
    assert isinstance(short, np.ndarray)
    assert (short.min(), short.max()) == (full.min(), full.max())
    assert bool(((short > 0) & (short < 1)).any()) == bool(((full > 0) & (full < 1)).any())
    assert set(short) <= set(full)


def test_other_functions_are_numpys_own():
    values = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    assert np.array_equal(np.around(values.view(Fractions) * 255), np.around(values * 255))
    found, counts = np.unique(values.view(Fractions), return_counts=True)
    assert len(found) == values.size
    assert (counts == 1).all()


def test_a_map_that_holds_no_number_is_refused():
    case = build.ct_case()
    broken = replace(case.result.explanations[0], map=np.full(build.SHAPE, -1, np.float32))
    broken.map[0, 0, 0] = 1
    with pytest.raises(ExportError, match=r"outside 0\.\.1"):
        fractional_segmentation.build(case.result, broken, placed_sources(case.result), ExportOptions(), 1)


def test_it_comes_on_request_only_and_not_when_withheld(tmp_path):
    result = build.ct_case().result
    assert fractional_segmentation.ROLE not in {o.role for o in export_all(result, tmp_path / "a", ExportOptions())}
    withheld = TrustReport("withheld", ("the region matters no more than a random one",))
    options = ExportOptions(formats=(fractional_segmentation.ROLE,))
    outputs = export_all(replace(result, trust=(withheld, TrustReport("supported"))), tmp_path / "b", options)
    assert [output.path for output in outputs] == ["fractional_segmentation_layercam_2-fracture.dcm"]
