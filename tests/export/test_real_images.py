"""Real scanner headers, which hold what no synthetic one does; skipped without MEDXAI_DATA."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from medxai.export import ExportOptions, export_all
from medxai.settings import ROLES
from medxai.study import Volume
from tests.export import build
from tests.export.read import float_planes, read, segment_planes
from tests.tools import dicom_errors, require_data

pytestmark = pytest.mark.data


def head_ct():
    datasets = [pydicom.dcmread(path) for path in sorted(require_data("ct_head_dicom").iterdir())]
    datasets.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    positions = np.array([[float(v) for v in ds.ImagePositionPatient] for ds in datasets])
    cosines = np.array(datasets[0].ImageOrientationPatient, float)
    spacing = [float(v) for v in datasets[0].PixelSpacing]
    affine = np.eye(4)
    affine[:3, 0] = (positions[-1] - positions[0]) / (len(datasets) - 1)
    affine[:3, 1], affine[:3, 2], affine[:3, 3] = cosines[3:] * spacing[0], cosines[:3] * spacing[1], positions[0]
    pixels = np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in datasets])
    volume = Volume(
        pixels[np.newaxis].astype(np.float32), "DHW", affine, "CT", positions, str(datasets[0].FrameOfReferenceUID),
        str(datasets[0].get("BodyPartExamined", "")).upper(), True, build.headers(datasets),
    )  # fmt: skip
    return build.result_of(volume, build.blob(volume.shape, (14, 230, 205), (2.5, 40, 40)), seed="head")


def ultrasound(name, centre, width):
    ds = pydicom.dcmread(require_data("us_dicom", name))
    cine = int(ds.get("NumberOfFrames", 1)) > 1
    stored = ds.pixel_array
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        stored = pydicom.pixels.apply_color_lut(stored, ds) >> 8
    pixels = np.moveaxis(stored.astype(np.float32), -1, 0)
    numbers = tuple(range(1, len(stored) + 1)) if cine else ()
    volume = Volume(
        pixels, "THW" if cine else "HW", np.diag([0.0, 0.4, 0.4, 1.0]), "US", None, None, "", True,
        build.headers([ds]), numbers, 0.033 if cine else None,
    )  # fmt: skip
    return build.result_of(volume, build.blob(volume.shape, centre, width), seed=name)


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        head_ct,
        lambda: ultrasound("gdcm-US-ALOKA-16.dcm", (180, 200), (50, 40)),
        lambda: ultrasound("examples_ybr_color.dcm", (10, 120, 150), (4, 25, 30)),
    ],
    ids=["head_ct", "still", "cine"],
)
def test_real_headers_give_valid_objects_with_the_map_in_them(make, labelmap, tmp_path):
    result = make()
    result = replace(result, explanations=result.explanations[:1])
    explanation, volume = result.explanations[0], result.study.volume
    formats = tuple(role for role in ROLES if not labelmap or role != "volumetric_report")
    for output in export_all(result, tmp_path / "run", ExportOptions(formats=formats, labelmap=labelmap)):
        path = tmp_path / "run" / output.path
        if path.suffix == ".dcm":
            assert dicom_errors(path) == [], output.path
        if output.role == "parametric_map":
            np.testing.assert_array_equal(float_planes(read(path), volume), explanation.normalised())
        if output.role == "segmentation":
            masks = segment_planes(read(path), volume, 3)
            values = explanation.normalised().reshape(masks.shape[1:])
            np.testing.assert_array_equal(masks[2], values >= 0.75)
