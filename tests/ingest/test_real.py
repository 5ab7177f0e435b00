"""The real series: what must load, what must be refused, and what repair makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from medxai.errors import GeometryError, IdentifierError
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.ingest.repair import repair
from tests.tools import dicom_errors, require_data

pytestmark = pytest.mark.data


def test_clean_head(tmp_path: Path) -> None:
    """28 slices of 5 mm, one grid."""
    (source,) = discover([require_data("ct_head_dicom")], tmp_path).sources
    study = read_study(source)
    assert study.volume.pixels.shape == (1, 28, 512, 512)
    assert study.volume.spacing == pytest.approx((5.0, 0.451, 0.451), abs=1e-3)
    assert study.volume.body_part == "BRAIN"


def test_tilt_and_gaps_are_named(tmp_path: Path) -> None:
    """Refused with angle and gaps."""
    (source,) = discover([require_data("ct_tilt_gap_dicom")], tmp_path).sources
    with pytest.raises(GeometryError, match=r"gantry tilt 18.5 degrees; slice gaps of 1.08, 4.00, 7.00 mm"):
        read_study(source)


def test_badly_deidentified_chest_is_repaired(tmp_path: Path) -> None:
    """One error lists the faults; the repaired copy loads, is valid, keeps pixels and maps every change."""
    folder = require_data("ct_chest_dicom")
    for source in discover([folder], tmp_path).sources:
        with pytest.raises(IdentifierError) as caught:
            read_study(source)
        for fault in ("SOPInstanceUID is empty", "StudyInstanceUID is not a valid UID", "PatientName is absent"):
            assert fault in str(caught.value)
        assert "FrameOfReferenceUID is empty" in str(caught.value)
    report = repair(folder, tmp_path / "fixed")
    assert (report.files, report.changed) == (68, 68)
    again = repair(folder, tmp_path / "again")
    assert report.mapping.read_bytes() == again.mapping.read_bytes()
    found = discover([tmp_path / "fixed"], tmp_path)
    assert sorted(len(source.files) for source in found.sources) == [12, 12, 44]
    shapes = {read_study(source).volume.shape for source in found.sources}
    assert shapes == {(12, 512, 512), (44, 512, 512)}
    changes = json.loads(report.mapping.read_text())["changes"]
    assert changes["P002/IM0107.dcm"]["SOPInstanceUID"]["old"] == ""
    old, new = dcmread(folder / "P002/IM0107.dcm"), dcmread(tmp_path / "fixed/P002/IM0107.dcm")
    assert old.PixelData == new.PixelData
    assert changes["P002/IM0107.dcm"]["SOPInstanceUID"]["new"] == new.SOPInstanceUID
    assert dicom_errors(tmp_path / "fixed/P002/IM0107.dcm") == []


def test_ultrasound(tmp_path: Path) -> None:
    """A palette still and a YBR cine, both calibrated by their regions."""
    studies = [read_study(source) for source in discover([require_data("us_dicom")], tmp_path).sources]
    by_axes = {study.volume.axes: study.volume for study in studies}
    assert by_axes["THW"].pixels.shape == (3, 30, 240, 320)
    assert by_axes["HW"].pixels.shape == (3, 480, 640)
    assert all(volume.calibrated for volume in by_axes.values())
    assert by_axes["THW"].frame_seconds == pytest.approx(0.0333, abs=1e-4)


def test_enhanced_mr_and_nifti(tmp_path: Path) -> None:
    """Each multi-frame instance is one volume; NIfTI heads load."""
    studies = [read_study(s) for s in discover([require_data("mr_enhanced_dicom")], tmp_path).sources]
    assert [study.volume.shape for study in studies] == [(6, 64, 64)] * 4
    assert all(len(study.volume.source) == 1 and len(study.volume.frame_numbers) == 6 for study in studies)
    heads = [read_study(s) for s in discover([require_data("ct_nifti")], tmp_path).sources]
    assert {study.volume.shape for study in heads} == {(154, 242, 256), (58, 248, 175)}
    assert all(np.linalg.det(study.volume.affine[:3, :3]) != 0 for study in heads)
