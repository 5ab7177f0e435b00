from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medxai.export import ExportOptions, secondary_capture
from medxai.export.colours import heat
from medxai.export.lettering import font, wrap
from medxai.export.naming import NOTICE
from tests.export import build
from tests.export.read import read
from tests.tools import dicom_errors


@pytest.mark.parametrize("make", [build.ct_case, build.enhanced_case, lambda: build.ct_case(flipped=True)])
def test_every_slice_is_there_and_in_its_place(make, tmp_path):
    case = make()
    volume = case.result.study.volume
    paths = secondary_capture.write(case.result, tmp_path, ExportOptions())
    assert len(paths) == volume.shape[0]
    for index, path in enumerate(paths):
        ds = read(path)
        assert ds.InstanceNumber == index + 1
        assert volume.positions is not None
        assert [float(v) for v in ds.ImagePositionPatient] == pytest.approx(volume.positions[index], abs=1e-6)
        assert [float(v) for v in ds.PixelSpacing] == pytest.approx(volume.spacing[1:], abs=1e-6)
        cosines = np.array(ds.ImageOrientationPatient, float)
        np.testing.assert_allclose(cosines[:3], volume.affine[:3, 2] / volume.spacing[2], atol=1e-6)
        assert ds.FrameOfReferenceUID == volume.frame_of_reference
        assert ds.BurnedInAnnotation == "YES"
        assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert dicom_errors(paths[0]) == []
    assert dicom_errors(paths[-1]) == []


def test_the_image_keeps_its_pixels_and_the_text_stays_outside(tmp_path):
    case = build.ct_case()
    volume = case.result.study.volume
    path = secondary_capture.write(case.result, tmp_path, ExportOptions())[2]
    picture = read(path).pixel_array
    height, width = volume.shape[1:]
    assert picture.shape[0] > height
    assert picture.shape[1] > width
    values = case.result.explanations[0].normalised()[2]
    clear = values == 0
    clear[:14], clear[-14:], clear[:, :14], clear[:, -14:] = False, False, False, False  # orientation letters
    grey = np.clip((volume.pixels[0, 2] + 20.0) * 255.0 / 120.0, 0, 255)
    inside = picture[:height, :width]
    assert np.abs(inside[clear].astype(float) - grey[clear][:, None]).max() <= 0.51
    row, column = np.unravel_index(values.argmax(), values.shape)
    expected = 0.2 * grey[row, column] + 0.8 * heat(np.float32(1.0)).astype(float)
    np.testing.assert_allclose(inside[row, column], expected, atol=1.0)


def test_a_cine_is_one_multi_frame_object_with_its_clock(tmp_path):
    case = build.us_case(cine=True)
    paths = secondary_capture.write(case.result, tmp_path, ExportOptions())
    assert len(paths) == 1
    ds = read(paths[0])
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7.4"
    assert (ds.NumberOfFrames, float(ds.FrameTime)) == (5, 40.0)
    assert ds.pixel_array.shape[0] == 5
    assert dicom_errors(paths[0]) == []


def test_a_cine_without_a_known_rate_numbers_its_frames(tmp_path):
    case = build.us_case(cine=True)
    volume = replace(case.result.study.volume, frame_seconds=None)
    result = replace(case.result, study=replace(case.result.study, volume=volume))
    path = secondary_capture.write(result, tmp_path, ExportOptions())[0]
    assert "FrameTime" not in read(path)
    assert dicom_errors(path) == []


def test_a_still_is_one_object(tmp_path):
    paths = secondary_capture.write(build.us_case(cine=False).result, tmp_path, ExportOptions())
    assert len(paths) == 1
    assert "ImagePositionPatient" not in read(paths[0])
    assert dicom_errors(paths[0]) == []


def test_it_does_not_apply_to_other_formats():
    result = build.ct_case().result
    other = replace(result, study=replace(result.study, kind="nifti", volume=replace(result.study.volume, source=())))
    assert "not DICOM" in (secondary_capture.applies(other) or "")


@pytest.mark.parametrize("width", [24, 60, 120, 512])
def test_the_notice_is_never_cut(width):
    """Words break into lines; put together again they are the whole sentence, and each line fits."""
    for text in (NOTICE, "Grad-CAM at features.denseblock4.denselayer16, chest_ct 1.0.0"):
        lines = wrap(text, 9, width)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(font(9).getlength(line) <= width for line in lines)
