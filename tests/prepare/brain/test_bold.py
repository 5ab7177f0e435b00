"""Functional series from ingested volumes and from files, with real scanner data where it is there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import Dataset

from medxai.errors import GeometryError, IngestError
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.prepare.brain.bold import bold_of_studies, drop_dummies, read_bold
from medxai.prepare.brain.image import Image, as_nifti, nearest, read_image, write_image
from medxai.study import Study, Volume
from tests.tools import require_data

OBLIQUE = np.array([[0.2, 0.3, 2.9, -90], [0.1, 3.1, -0.3, -110], [3.4, -0.2, 0.1, -40], [0, 0, 0, 1.0]])


def study(number: int, value: float, **header: object) -> Study:
    made = []
    for _ in range(3):
        item = Dataset()
        for name, element in header.items():
            setattr(item, name, element)
        made.append(item)
    volume = Volume(np.full((1, 3, 4, 5), value, np.float32), "DHW", OBLIQUE, "MR", source=tuple(made))
    return Study(f"{number:012d}", "dicom", "", volume)


def series(count: int = 4, seconds: float = 2.0, **more: object) -> list[Study]:
    return [
        study(n, 10 * n, RepetitionTime=seconds * 1000, TemporalPositionIdentifier=n + 1, InstanceNumber=1, **more)
        for n in range(count)
    ]


def test_volumes_are_ordered_by_their_time_point() -> None:
    found = bold_of_studies(series()[::-1])
    assert found.data.shape == (3, 4, 5, 4)
    assert found.data[0, 0, 0].tolist() == [0, 10, 20, 30]
    assert found.repetition_seconds == 2
    assert np.array_equal(found.affine, OBLIQUE)


def test_acquisition_times_order_mosaics() -> None:
    studies = [study(n, n, RepetitionTime=1500, AcquisitionTime=f"0959{58.5 + 1.5 * n - 60 * (n > 0):09.6f}"
                     if n == 0 else f"1000{1.5 * n - 1.5:09.6f}") for n in range(3)]  # fmt: skip
    found = bold_of_studies([studies[2], studies[0], studies[1]])
    assert found.data[0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("studies", "words"),
    [
        ([], "no functional volume"),
        ([series()[0], series()[1], series()[3]], r"time points \[3\] are missing"),
        ([study(n, n, RepetitionTime=2000) for n in range(3)], "nothing in the headers orders"),
        ([study(n, n, AcquisitionNumber=n) for n in range(3)], "repetition time is unknown"),
        ([study(n, n, AcquisitionNumber=n, RepetitionTime=30_000) for n in range(3)], "not one of functional MRI"),
        ([study(n, n, AcquisitionNumber=n, RepetitionTime=2000 + n) for n in range(3)], "different RepetitionTime"),
        (
            [
                study(n, n, AcquisitionNumber=n, RepetitionTime=50, AcquisitionTime=f"1000{2 * n:02d}.0")
                for n in range(4)
            ],
            "not one of functional MRI",
        ),
        (
            [
                study(n, n, AcquisitionNumber=n, RepetitionTime=500, AcquisitionTime=f"1000{2 * n:02d}.0")
                for n in range(4)
            ],
            "taken 2.000 s apart",
        ),
    ],
)
def test_refused_volumes(studies: list[Study], words: str) -> None:
    with pytest.raises(IngestError, match=words):
        bold_of_studies(studies)


def test_another_grid_is_refused() -> None:
    moved = series()
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 1
    moved[2] = replace(moved[2], volume=replace(moved[2].volume, affine=shifted))
    with pytest.raises(GeometryError, match="different grids"):
        bold_of_studies(moved)


def four_axes(path: Path, seconds: float, unit: str | None = "sec", volumes: int = 6) -> np.ndarray:
    data = np.random.default_rng(0).normal(size=(5, 4, 3, volumes)).astype(np.float32)
    image = nibabel.Nifti1Image(data, np.array([[2, 0.1, 0, 3], [-0.1, 2, 0, 4], [0, 0, 3, 5], [0, 0, 0, 1.0]]))
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = seconds
    image.to_filename(path)
    return data


def test_a_file_of_four_axes(tmp_path: Path) -> None:
    path = tmp_path / "sub-1_task-rest_space-MNI152NLin2009cAsym_bold.nii.gz"
    data = four_axes(path, 2500, "msec")
    found = read_bold(path)
    assert found.repetition_seconds == pytest.approx(2.5)
    assert np.array_equal(found.data, data.transpose(2, 1, 0, 3))
    assert found.space == "MNI152NLin2009cAsym"
    assert drop_dummies(found, 2).volumes == 4
    with pytest.raises(IngestError, match="5 dummy volumes cannot be dropped of 6"):
        drop_dummies(found, 5)


def test_repetition_time_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a_bold.nii.gz"
    four_axes(path, 1.0, None)
    with pytest.raises(IngestError, match="repetition time is unknown"):
        read_bold(path)
    assert read_bold(path, 1.5).repetition_seconds == 1.5
    (tmp_path / "a_bold.json").write_text(json.dumps({"RepetitionTime": 0.8}))
    assert read_bold(path).repetition_seconds == 0.8
    four_axes(path, 2.0)
    with pytest.raises(IngestError, match=r"sidecar says a repetition time of 0.8 s and the header 2 s"):
        read_bold(path)
    (tmp_path / "a_bold.json").write_text("{")
    with pytest.raises(IngestError, match="cannot be read as JSON"):
        read_bold(path)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    with pytest.raises(IngestError, match="no such file"):
        read_bold(path)
    path.write_bytes(b"nothing")
    with pytest.raises(IngestError, match="cannot be read as NIfTI"):
        read_bold(path)
    four_axes(path, 2.0, volumes=1)
    with pytest.raises(IngestError, match="one volume"):
        read_bold(path)
    image = nibabel.Nifti1Image(np.full((2, 3, 4, 5), np.nan, np.float32), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    with pytest.raises(IngestError, match="120 NaN"):
        read_bold(path)


def test_images_come_back_with_the_same_bytes(tmp_path: Path) -> None:
    data = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    one = write_image(tmp_path / "a.nii.gz", Image(data, OBLIQUE), "x").read_bytes()
    assert one == write_image(tmp_path / "a.nii.gz", Image(data, OBLIQUE), "x").read_bytes()


def test_an_oblique_image_comes_back(tmp_path: Path) -> None:
    rotation = np.linalg.qr(OBLIQUE[:3, :3])[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([3.4, 3.1, 2.9])
    affine[:3, 3] = [-20, 10, 5]
    data = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    write_image(tmp_path / "a.nii.gz", Image(data, affine), "x")
    back = read_image(tmp_path / "a.nii.gz", 3)
    assert np.array_equal(back.data, data)
    assert np.allclose(back.affine, affine, atol=1e-5)
    x = nibabel.load(tmp_path / "a.nii.gz")
    place = x.affine @ [4, 2, 1, 1]  # RAS of voxel (d, h, w) = (1, 2, 4)
    assert np.allclose(place[:3] * [-1, -1, 1], (affine @ [1, 2, 4, 1])[:3], atol=1e-4)


def test_nearest_agrees_with_nilearn() -> None:
    from nilearn.image import resample_img

    generator = np.random.default_rng(2)
    inner = generator.integers(0, 9, (5, 6, 7)).astype(np.int32)
    labels = Image(np.pad(inner, 1), np.diag([2.0, 2.5, 3.0, 1]))  # scipy leaves the outer half voxel out
    target = np.eye(4)
    target[:3, :3] = np.diag([1.3, 1.7, 2.1]) @ np.linalg.qr(np.eye(3) + 0.1 * generator.normal(size=(3, 3)))[0]
    target[:3, 3] = [1.11, 2.22, 0.37]
    ours = nearest(labels, (6, 7, 8), target)
    grid = as_nifti(Image(np.zeros((6, 7, 8), np.float32), target))
    theirs = resample_img(
        as_nifti(labels), grid.affine, (8, 7, 6), interpolation="nearest", copy_header=True, force_resample=True
    )
    assert np.array_equal(ours, np.asarray(theirs.dataobj).transpose(2, 1, 0))
    assert np.array_equal(nearest(labels, (7, 8, 9), labels.affine), labels.data)


@pytest.mark.data
def test_time_points_of_a_scanner(tmp_path: Path) -> None:
    sources = discover([require_data("fmri_dicom")], tmp_path).sources
    found = bold_of_studies([read_study(source) for source in sources])
    assert found.data.shape == (35, 80, 80, 4)
    assert found.repetition_seconds == pytest.approx(2.0, abs=1e-4)
    assert any("4 of 156 time points" in note for note in found.notes)
    for n, name in enumerate(("vol01", "vol02", "vol03", "vol04")):
        one = [s for s in sources if s.files[0].name.startswith(name)]
        assert np.array_equal(read_study(one[0]).volume.pixels[0], found.data[..., n])


@pytest.mark.data
def test_mosaics_of_a_scanner(tmp_path: Path) -> None:
    folder = require_data("fmri_mosaic_dicom")
    studies = [read_study(s) for s in discover(sorted(folder.glob("mr_0003*")), tmp_path).sources]
    found = bold_of_studies(studies)
    assert found.data.shape == (5, 72, 72, 2)
    assert found.repetition_seconds == pytest.approx(2.43537)


@pytest.mark.data
def test_files_of_scanners() -> None:
    found = read_bold(require_data("fmri_nifti", "functional.nii"))
    assert (found.data.shape, found.repetition_seconds) == ((3, 21, 17, 20), 2.0)
    found = read_bold(require_data("asl_nifti", "pcasl.nii.gz"))
    assert found.data.shape == (20, 68, 52, 10)
    assert found.repetition_seconds == pytest.approx(2.54)
