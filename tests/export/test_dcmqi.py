"""Segmentations and Parametric Maps as dcmqi reads them: the same values at the same places in the patient.

dcmqi (what 3D Slicer reads DICOM segmentations with) knows nothing of us: it writes volumes with an affine of their
own, which is compared with the map through patient coordinates.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medxai.export import ExportOptions, fractional_segmentation, parametric_map, segmentation
from tests.export import build
from tests.tools import require_tool

CASES = {
    "oblique": lambda: build.ct_case(),
    "flipped": lambda: build.ct_case(flipped=True),
    "mr": lambda: build.mr_case(),
    "enhanced": lambda: build.enhanced_case(),
}
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def itk(program: str, path: Path, folder: Path) -> dict[str, nibabel.Nifti1Image]:
    """Volumes that a program of dcmqi makes of an object, by file name."""
    folder.mkdir()
    command = [
        require_tool(program),
        "--inputDICOM",
        str(path),
        "--outputDirectory",
        str(folder),
        "--outputType",
        "nii",
    ]
    done = subprocess.run([*command, "--prefix", "v"], capture_output=True, text=True, timeout=120, check=False)
    found = sorted(folder.glob("*.nii*"))
    assert found, done.stdout + done.stderr
    return {item.name: nibabel.load(item) for item in found}


def on_our_grid(image: nibabel.Nifti1Image, volume) -> np.ndarray:
    """Values of a volume at the voxels ``[D, H, W]`` of ours; 0 where it has none. Each must fall on a voxel of it."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    places = np.c_[index, np.ones(len(index))] @ volume.affine.T  # LPS mm
    voxels = places @ RAS.T @ np.linalg.inv(image.affine).T
    nearest = np.rint(voxels[:, :3]).astype(int)
    assert np.abs(voxels[:, :3] - nearest).max() < 0.01
    data = np.asarray(image.dataobj)
    inside = ((nearest >= 0) & (nearest < data.shape[:3])).all(axis=1)
    out = np.zeros(len(index), data.dtype)
    out[inside] = data[tuple(nearest[inside].T)]
    return out.reshape(volume.shape)


@pytest.mark.parametrize("omit", [True, False])
def test_segments(case, omit, tmp_path):
    volume, values = case.result.study.volume, case.result.explanations[0].normalised()
    options = ExportOptions(omit_empty_frames=omit, explanations="primary")
    (path,) = segmentation.write(case.result, tmp_path, options)
    found = itk("segimage2itkimage", path, tmp_path / "itk")
    total = np.zeros(volume.shape, int)
    for image in found.values():
        total += (on_our_grid(image, volume) > 0).astype(int)
    # Nested bands: each voxel lies in as many segments as it has bands.
    np.testing.assert_array_equal(total, sum((values >= np.float32(t)).astype(int) for t in (0.25, 0.5, 0.75)))


def test_parametric_maps(case, tmp_path):
    volume, values = case.result.study.volume, case.result.explanations[0].normalised()
    path = parametric_map.write(case.result, tmp_path, ExportOptions(explanations="primary"))[0]
    (image,) = itk("paramap2itkimage", path, tmp_path / "itk").values()
    np.testing.assert_array_equal(on_our_grid(image, volume), values)


def test_fractional_segments(case, tmp_path):
    volume, values = case.result.study.volume, case.result.explanations[0].normalised()
    path = fractional_segmentation.write(case.result, tmp_path, ExportOptions(explanations="primary"))[0]
    (image,) = itk("segimage2itkimage", path, tmp_path / "itk").values()
    np.testing.assert_array_equal(on_our_grid(image, volume), np.rint(255 * values))
