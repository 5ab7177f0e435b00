from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from sample_cases.make import main, make_set
from tests.tools import dicom_errors


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("phantoms")
    return out, make_set(out, with_broken=True)


def series(folder: Path) -> list[pydicom.Dataset]:
    """Slices in the order of position along the normal, whatever their names and numbers."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    row, column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    return sorted(slices, key=lambda s: float(normal @ np.array(s.ImagePositionPatient, float)))


def test_a_second_run_writes_the_same_bytes(written: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = written
    make_set(tmp_path, with_broken=True)
    first = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    second = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert first == second


def test_dicom_and_nifti_hold_the_same_values_in_the_same_place(written: tuple[Path, dict[str, Any]]) -> None:
    out, truth = written
    for study in truth["studies"]:
        slices = series(out / study["dicom"])
        volume = np.stack([s.pixel_array.astype(float) * s.RescaleSlope + s.RescaleIntercept for s in slices])
        image = nibabel.load(out / study["nifti"])
        assert np.array_equal(volume, np.asarray(image.dataobj).transpose(2, 1, 0))
        for k in (0, len(slices) - 1):
            lps = np.array(slices[k].ImagePositionPatient, float)
            ras = image.affine @ [0, 0, k, 1]
            assert ras[:3] * [-1, -1, 1] == pytest.approx(lps, abs=1e-3)
        spacing = [float(v) for v in slices[0].PixelSpacing]
        assert image.header.get_zooms() == pytest.approx((spacing[1], spacing[0], study["spacing_mm"][0]), abs=1e-5)


def test_file_names_and_instance_numbers_do_not_give_the_order_away(written: tuple[Path, dict[str, Any]]) -> None:
    out, _ = written
    ascending = series(out / "dicom/phantom-001")
    assert [s.InstanceNumber for s in ascending] == list(range(1, len(ascending) + 1))
    names = sorted((out / "dicom/phantom-001").iterdir())
    numbers = [pydicom.dcmread(p, stop_before_pixels=True).InstanceNumber for p in names]
    assert numbers != sorted(numbers)
    descending = [s.InstanceNumber for s in series(out / "dicom/phantom-002")]
    assert descending == sorted(descending, reverse=True)


def test_files_are_valid_ct_images(written: tuple[Path, dict[str, Any]]) -> None:
    out, _ = written
    for folder in sorted((out / "dicom").iterdir()):
        assert dicom_errors(sorted(folder.iterdir())[0]) == []


def test_identifiers_are_unique_and_derived(written: tuple[Path, dict[str, Any]]) -> None:
    out, _ = written
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in sorted((out / "dicom").rglob("*.dcm"))]
    assert len({h.SOPInstanceUID for h in headers}) == len(headers)
    assert all(h.SOPInstanceUID.startswith("2.25.") and h.SOPInstanceUID.is_valid for h in headers)
    assert len({h.FrameOfReferenceUID for h in headers}) == 4
    assert {str(h.PatientName).split("^")[0] for h in headers} == {"PHANTOM"}


def test_the_set_has_what_readers_must_cope_with(written: tuple[Path, dict[str, Any]]) -> None:
    out, truth = written
    assert [study["label"] for study in truth["studies"]] == ["lesion", "clean", "lesion"]
    first = {key: series(out / "dicom" / key)[0] for key in ("phantom-001", "phantom-002", "phantom-003")}
    assert {first[key].PixelRepresentation for key in first} == {0, 1}
    oblique = np.array(first["phantom-003"].ImageOrientationPatient, float)
    assert np.abs(oblique).max() < 0.9999
    shape = truth["studies"][0]["shape"]
    assert len(set(shape)) == 3


def test_the_broken_series_misses_its_middle_slice_and_says_so(written: tuple[Path, dict[str, Any]]) -> None:
    out, truth = written
    steps = np.diff([float(s.ImagePositionPatient[2]) for s in series(out / "dicom/phantom-broken")])
    assert sorted(set(np.round(steps, 3))) == [3.0, 6.0]
    assert "missing" in truth["broken"][0]["defect"]


def test_the_command_prints_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path), "--n", "1", "--seed", "4"])
    assert "dicom/phantom-001: lesion" in capsys.readouterr().out
    assert json.loads((tmp_path / "truth.json").read_text())["seed"] == 4
    assert not (tmp_path / "dicom" / "phantom-broken").exists()
