"""DICOM straight from scanners through the command's own way: features where they can be, the reason where not."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medxai.errors import IngestError
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.prepare.brain.cohort import run_dataset
from medxai.prepare.brain.derivatives import read_subject
from medxai.prepare.brain.dwi import dwi_of_studies
from medxai.prepare.brain.image import Image, as_nifti
from medxai.prepare.brain.scanner import scans_in
from medxai.prepare.brain.settings import AtlasOptions, FeatureSettings
from medxai.prepare.brain.tensor import fit_tensor
from tests.tools import require_data


def settings(folder: Path, out: Path, atlas: Path) -> FeatureSettings:
    options = AtlasOptions(image=atlas)
    return FeatureSettings(input=folder, output=out, atlas=options, diffusion_atlas=options)


@pytest.mark.data
def test_diffusion_of_a_scanner_to_a_matrix(tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    shutil.copytree(require_data("dti_dicom"), folder)
    dwi = dwi_of_studies([read_study(s) for s in discover([folder], tmp_path / "w").sources])
    mask = fit_tensor(dwi).mask
    d, h, w = (np.arange(n) for n in mask.shape)
    cells = (d[:, None, None] >= 10) * 8 + (h[:, None] // 22).clip(0, 2) * 2 + (w >= 32)
    labels = np.where(mask, 1 + cells, 0).astype(np.int32)
    as_nifti(Image(labels, dwi.affine)).to_filename(tmp_path / "atlas.nii.gz")
    chosen = settings(folder, tmp_path / "out", tmp_path / "atlas.nii.gz")
    outcome = run_dataset(chosen)[0]
    assert outcome.state == "done", outcome.reason
    found = read_subject(chosen.output, outcome.subject)
    assert found.present == ("fa",)
    assert found.fa is not None
    assert 0.2 < found.fa[found.fa > 0].mean() < 0.7
    # Neighbours are joined more often than regions that lie apart.
    counts = np.loadtxt(next((chosen.output / outcome.subject / "dwi").glob("*desc-count_relmat.tsv")))
    assert counts.sum() > 1000
    fa = nibabel.load(next((chosen.output / outcome.subject / "dwi").glob("*param-fa_dwimap.nii.gz")))
    assert fa.shape == (64, 64, 20)
    assert run_dataset(chosen)[0].state == "done before"


@pytest.mark.data
def test_four_functional_volumes_are_too_few(tmp_path: Path) -> None:
    folder = require_data("fmri_dicom")
    scans = scans_in(folder)
    assert len(scans) == 1
    assert [len(s.bold_volumes) for s in scans.values()] == [4]
    labels = np.arange(35 * 80 * 80).reshape(35, 80, 80).astype(np.int32) % 3
    atlas = tmp_path / "atlas.nii.gz"
    as_nifti(Image(labels, np.eye(4))).to_filename(atlas)
    outcome = run_dataset(settings(folder, tmp_path / "out", atlas))[0]
    assert outcome.state == "failed"
    assert "4 volumes" in outcome.reason


@pytest.mark.data
def test_several_series_are_not_chosen_from_and_stop_nobody_else(tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    shutil.copytree(require_data("fmri_mosaic_dicom"), folder / "a")
    shutil.copytree(require_data("fmri_dicom"), folder / "b")
    atlas = tmp_path / "atlas.nii.gz"
    as_nifti(Image(np.arange(60).reshape(3, 4, 5).astype(np.int32) % 3, np.eye(4))).to_filename(atlas)
    chosen = settings(folder, tmp_path / "out", atlas)
    reasons = sorted(outcome.reason for outcome in run_dataset(chosen))
    assert len(reasons) == 2
    assert "4 volumes" in reasons[0]
    assert "several functional series: series 3 'EPI PE=AP' with 2 volumes, series 4 'EPI PE=PA'" in reasons[1]
    reasons = sorted(outcome.reason for outcome in run_dataset(chosen.model_copy(update={"task": "EPI PE=PA"})))
    assert "2 volumes" in reasons[0]  # the one that was asked for, which is too short
    assert "no functional series 'EPI PE=PA', but series" in reasons[1]  # the other person's is called otherwise


@pytest.mark.data
def test_no_patient_name_in_a_subject() -> None:
    for name in scans_in(require_data("fmri_dicom")):
        assert name.startswith("sub-")
        assert len(name) == 16


@pytest.mark.data
def test_series_of_one_volume_are_none() -> None:
    with pytest.raises(IngestError, match="no DICOM series of several MR volumes"):
        scans_in(require_data("ct_head_dicom"))
