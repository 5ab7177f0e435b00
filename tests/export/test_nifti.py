from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medxai.export import ExportOptions, nifti
from tests.export import build


def paths_of(result, folder, kind):
    return [p for p in nifti.write(result, folder, ExportOptions()) if p.name.endswith(f"_{kind}.nii.gz")]


@pytest.mark.parametrize("flipped", [False, True])
def test_both_readers_find_the_map_where_it_is(flipped, tmp_path):
    result = build.ct_case(flipped=flipped).result
    volume = result.study.volume
    path = paths_of(result, tmp_path, "original")[0]
    image = nibabel.load(path)
    values = np.asarray(image.dataobj)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values.transpose(2, 1, 0), result.explanations[0].map)
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    read = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), result.explanations[0].map)
    for index in ((0, 0, 0), (3, 20, 41), (6, 44, 60)):
        lps = (volume.affine @ [*index, 1])[:3]
        ras = (image.affine @ [*index[::-1], 1])[:3]
        np.testing.assert_allclose(ras, lps * [-1, -1, 1], atol=1e-3)
        there = read.TransformIndexToPhysicalPoint(tuple(int(v) for v in index[::-1]))
        np.testing.assert_allclose(there, lps, atol=1e-3)


def test_cells_of_the_raw_map_lie_evenly_in_the_input_grid(tmp_path):
    result = build.ct_case(shape=(8, 40, 60)).result
    explanation = result.explanations[0]
    image = nibabel.load(paths_of(result, tmp_path, "raw")[0])
    values = np.asarray(image.dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(values, explanation.raw[0])
    assert values.min() < 0
    # The first of two cells along d covers input slices 0..3: its centre lies at 1.5.
    first = (explanation.input_affine @ [1.5, 1.5, 1.5, 1])[:3] * [-1, -1, 1]
    last = (explanation.input_affine @ [5.5, 37.5, 57.5, 1])[:3] * [-1, -1, 1]
    np.testing.assert_allclose((image.affine @ [0, 0, 0, 1])[:3], first, atol=1e-3)
    np.testing.assert_allclose((image.affine @ [14, 9, 1, 1])[:3], last, atol=1e-3)


def test_raw_maps_of_several_windows_claim_no_place(tmp_path):
    result = build.ct_case().result
    raw = np.repeat(result.explanations[0].raw, 3, axis=0)
    result = replace(result, explanations=(replace(result.explanations[0], raw=raw),))
    image = nibabel.load(paths_of(result, tmp_path, "raw")[0])
    assert image.shape[3] == 3
    assert (image.header["sform_code"], image.header["qform_code"]) == (0, 0)


def test_a_calibrated_still_becomes_one_slice(tmp_path):
    result = build.us_case(cine=False).result
    image = nibabel.load(paths_of(result, tmp_path, "original")[0])
    assert image.shape == (61, 45, 1)
    np.testing.assert_allclose(image.header.get_zooms()[:2], (0.2, 0.3), atol=1e-6)


def test_a_cine_has_time_as_its_fourth_axis(tmp_path):
    result = build.us_case(cine=True).result
    explanation = result.explanations[0]
    image = nibabel.load(paths_of(result, tmp_path, "original")[0])
    assert image.shape == (61, 45, 1, 5)
    np.testing.assert_allclose(image.header.get_zooms(), (0.2, 0.3, 1, 0.04), atol=1e-6)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 0].transpose(2, 1, 0), explanation.map)
    volume = replace(result.study.volume, calibrated=False)
    unknown = replace(result, study=replace(result.study, volume=volume))
    image = nibabel.load(paths_of(unknown, tmp_path / "u", "original")[0])
    assert (image.header["sform_code"], image.header["qform_code"]) == (0, 0)


def test_it_does_not_apply_to_unknown_sizes():
    result = build.us_case(cine=False).result
    volume = replace(result.study.volume, calibrated=False)
    assert "millimetres" in (nifti.applies(replace(result, study=replace(result.study, volume=volume))) or "")
