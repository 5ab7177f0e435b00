"""A tilted series with a gap through the whole chain: refused by default, and on request back on its own slices."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from tests.studies import command, dicom_study, edit, hashes, jobs, record
from tests.tools import dicom_errors, require_data

TILT = np.tan(np.radians(15.0))


def tilted(folder: Path) -> list[Path]:
    """A phantom whose slices move towards the back from one to the next, with one of them missing."""
    dicom_study(folder, 5)
    files = edit(folder, lambda _dataset: None)
    lowest = float(dcmread(files[0]).ImagePositionPatient[2])

    def lean(dataset: object) -> None:
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)  # type: ignore[attr-defined]
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in (x, y + TILT * (z - lowest), z)]  # type: ignore[attr-defined]

    files = edit(folder, lean)
    files.pop(4).unlink()
    return files


def test_maps_come_back_to_the_slices(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = tilted(tmp_path / "in")
    given = ["run", tmp_path / "in", "--bundle", "phantom_ct", "--send-withheld", "--out"]
    refused = command(capfd, *given, tmp_path / "refused")
    assert refused.code == 2
    (job,) = jobs(tmp_path / "refused")
    reason = record(tmp_path / "refused", job.study_key)["reason"]
    assert "gantry tilt 15.0 degrees; 1 missing slice" in reason
    assert "geometry: straighten" in reason

    done = command(capfd, *given, tmp_path / "out", "--straighten", 14)
    assert done.code == 0, done.err
    (job,) = jobs(tmp_path / "out")
    folder = tmp_path / "out" / job.study_key
    manifest = json.loads((folder / "manifest.json").read_text())
    assert any("straightened for the model: gantry tilt 15.0 degrees" in note for note in manifest["notes"])
    assert "straightened for the model" in (folder / "case.html").read_text()

    for path in folder.glob("*.dcm"):
        assert dicom_errors(path) == [], path.name
    sources = {str(dcmread(path).SOPInstanceUID): dcmread(path, stop_before_pixels=True) for path in files}
    pm = dcmread(next(folder.glob("parametric_map_*.dcm")))
    assert int(pm.NumberOfFrames) == len(files)
    values = np.frombuffer(pm.FloatPixelData, "<f4").reshape(len(files), pm.Rows, pm.Columns)
    seen = set()
    for frame in pm.PerFrameFunctionalGroupsSequence:
        uid = str(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        place = [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient]
        assert np.allclose(place, [float(v) for v in sources[uid].ImagePositionPatient], atol=1e-3)
        seen.add(uid)
    assert seen == set(sources)

    # The same values as the map on the straight grid at the places of the slices.
    image = nibabel.load(next(folder.glob("nifti_gradcam_*_original.nii.gz")))
    back = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)
    peak = np.unravel_index(int(values.argmax()), values.shape)
    frame = pm.PerFrameFunctionalGroupsSequence[int(peak[0])]
    x, y, z = (float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient)
    spacing = [float(v) for v in pm.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing]
    world = [x + int(peak[2]) * spacing[1], y + int(peak[1]) * spacing[0], z, 1.0]
    i, j, k = (round(float(v)) for v in (back @ world)[:3])
    grid = np.asarray(image.dataobj, np.float32)
    near = grid[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2, max(k - 1, 0) : k + 2].max()
    assert near == pytest.approx(grid.max(), rel=0.15)

    before = hashes(folder)
    (tmp_path / "out" / ".medxai" / "worklist.sqlite").unlink()
    again = command(capfd, *given, tmp_path / "out", "--straighten", 14)
    assert again.code == 0
    assert {k: v for k, v in hashes(folder).items() if k != "manifest.json"} == {
        k: v for k, v in before.items() if k != "manifest.json"
    }


def test_a_gap_nobody_saw_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tilted(tmp_path / "in")
    done = command(
        capfd, "run", tmp_path / "in", "--bundle", "phantom_ct", "--out", tmp_path / "out", "--straighten", 10
    )
    assert done.code == 2
    (job,) = jobs(tmp_path / "out")
    assert "13.00 mm between slices are more than `largest_gap_mm` (10)" in job.reason


@pytest.mark.slow
def test_real_tilted_head(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Twenty-eight slices of a real scanner, 18.5 degrees and three distances: every object is valid."""
    data = require_data("ct_tilt_gap_dicom")
    given = ["run", data, "--bundle", "phantom_ct", "--send-withheld", "--force", "--straighten", 10]
    done = command(capfd, *given, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    (job,) = jobs(tmp_path / "out")
    folder = tmp_path / "out" / job.study_key
    objects = list(folder.glob("*.dcm"))
    assert len(objects) > 28
    for path in [path for path in objects if "secondary" not in path.name]:
        assert dicom_errors(path) == [], path.name
