"""The proof of place: one voxel planted in the network's input comes back at its place in the patient.

Random oblique cosines, anisotropic spacing, either slice order, D != H != W; the outputs are read by
highdicom, SimpleITK and nibabel, none of which the exporters' arithmetic depends on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from scipy.spatial.transform import Rotation
from torch import nn

from medxai.explain.study_map import ExplainOptions, explain_study
from medxai.export.registry import export_all
from medxai.ingest.dicom_series import read_series
from medxai.predict.bundle_spec import MedxaiBlock
from medxai.prepare.prepare import Prepared, prepare
from medxai.prepare.spec import AffineIntensity, PreparationSpec
from medxai.settings import ExportOptions
from medxai.study import Result, Study
from tests.export.build import ct_series, save_sources

#: Feature cells of this many input voxels along d, h, w.
STRIDE = (2, 4, 4)
INPUT_MM = (3.0, 2.0, 2.0)


class Spotter(nn.Module):
    """Speaks for class 1 wherever a cell holds a bright voxel; its feature grid has a stride of `STRIDE`."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.AvgPool3d(STRIDE)
        self.act = nn.ReLU()
        self.fc = nn.Linear(1, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.fc.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, 2]``."""
        return self.fc(self.act(self.cells(x)).flatten(2).mean(-1))


@dataclass(frozen=True)
class PlainBundle:
    """The part of a bundle that inference and explanation use, without files."""

    spec: MedxaiBlock
    name: str = "spotter"
    version: str = "1"
    sha256: str = "f" * 64


def bundle(window: tuple[int, int, int]) -> PlainBundle:
    """A bundle of the given window size."""
    preparation = PreparationSpec(
        axes="DHW", window=window, spacing_mm=INPUT_MM, overlap=0.5, intensity=AffineIntensity(mean=(0.0,), std=(1.0,))
    )
    return PlainBundle(
        MedxaiBlock(
            labels=("dark", "bright"),
            modalities=("CT",),
            body_parts=("HEAD",),
            preparation=preparation,
            target_layer="act",
            activation="softmax",
            licence="CC0-1.0",
        )
    )


def oblique(rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...], flipped: bool) -> np.ndarray:
    """A random rotation, of any size, of a grid whose slices ascend or descend along the normal."""
    turn = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
    row, column = turn[:, 0], turn[:, 1]
    normal = np.cross(row, column) * (-1 if flipped else 1)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([normal * spacing[0], column * spacing[1], row * spacing[2]], axis=1)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


def centroid(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """LPS mm of the centre of mass; `affine` maps the index of `values` in its own axis order."""
    index = np.stack(np.nonzero(values), axis=1)
    weight = values[tuple(index.T)].astype(np.float64)
    return (affine @ np.append((index * weight[:, None]).sum(0) / weight.sum(), 1.0))[:3]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**31),
    spacing=st.tuples(st.floats(2.0, 3.5), st.floats(0.9, 1.6), st.floats(0.9, 1.6)),
    flipped=st.booleans(),
    windows=st.booleans(),
)
def test_planted_voxel_comes_back(
    tmp_path: Path, seed: int, spacing: tuple[float, float, float], flipped: bool, windows: bool
) -> None:
    """Parametric Map, segmentation and NIfTI agree with the planted place to half a feature cell."""
    rng = np.random.default_rng(seed)
    shape = (22, 44, 50)
    affine = oblique(rng, shape, spacing, flipped)
    shutil.rmtree(tmp_path, ignore_errors=True)
    files = save_sources(ct_series(affine, np.full(shape, -1000, np.float32), f"proof{seed}"), tmp_path / "in")
    rng.shuffle(files)
    volume, _ = read_series(files, "proof")
    study = Study("proof0000000", "dicom", f"{seed:064d}", volume)

    whole = prepare(replace(volume, pixels=np.zeros_like(volume.pixels)), bundle((2, 4, 4)).spec.preparation)
    # One window over everything, or several smaller ones whose maps are fused.
    full = tuple(-(-n // s) * s for n, s in zip(whole.grid.shape, STRIDE, strict=True))
    model = bundle((8, 16, 16) if windows and min(full) >= 16 else full)
    prepared = prepare(replace(volume, pixels=np.zeros_like(volume.pixels)), model.spec.preparation)
    source = np.linalg.inv(volume.affine) @ prepared.grid.affine
    # Candidates lie at least one cell inside the source volume, so that their tent is not cut.
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in prepared.grid.shape], indexing="ij"), -1).reshape(-1, 3)
    index = grid @ source[:3, :3].T + source[:3, 3]
    reach = np.abs(source[:3, :3]) @ (1.5 * np.array(STRIDE))
    inside = grid[((index >= reach) & (index <= np.array(shape) - 1 - reach)).all(1)]
    assume(len(inside) > 0)
    voxel = inside[rng.integers(len(inside))]
    pixels = np.zeros_like(prepared.pixels)
    pixels[(0, *voxel)] = 100.0
    truth = (prepared.grid.affine @ np.append(voxel, 1.0))[:3]

    options = ExplainOptions(methods=("gradcam", "hirescam"), class_label="bright", stability=False)
    prediction, explanations = explain_study(model, Spotter().eval(), study, Prepared(pixels, prepared.grid), options)
    assert prediction.label == "bright"
    result = Result(study, prediction, explanations[:1], "c" * 64, "2024-01-01T00:00:00")
    formats = ("parametric_map", "segmentation", "nifti")
    outputs = export_all(result, tmp_path / "out", ExportOptions(formats=formats, bands=(0.5,)))
    paths = {role: [tmp_path / "out" / o.path for o in outputs if o.role == role] for role in formats}

    axes = prepared.grid.affine[:3, :3] / np.linalg.norm(prepared.grid.affine[:3, :3], axis=0)
    half = np.array(STRIDE) * np.array(INPUT_MM) / 2
    assert np.allclose(explanations[0].cell_mm, 2 * half)

    def check(place: np.ndarray, slack: np.ndarray | float = 0.05) -> None:
        assert (np.abs(axes.T @ (place - truth)) <= half + slack).all(), (axes.T @ (place - truth), half)

    (pm,) = paths["parametric_map"]
    grid = highdicom.imread(pm).get_volume()
    check(centroid(np.squeeze(grid.array), grid.affine))

    (nifti,) = [p for p in paths["nifti"] if "input" not in p.name and "raw" not in p.name]
    image = nibabel.load(nifti)
    check(np.diag([-1, -1, 1]) @ centroid(np.asarray(image.dataobj), image.affine))
    image = SimpleITK.ReadImage(str(nifti))
    array = SimpleITK.GetArrayFromImage(image)
    index = centroid(array, np.eye(4))[::-1]
    check(np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist())))

    # A band is a set of source voxels, so its centre may be off by half of one more.
    (seg,) = paths["segmentation"]
    grid = highdicom.seg.segread(seg).get_volume()
    check(centroid(np.squeeze(grid.array) > 0, grid.affine), np.abs(axes.T @ volume.affine[:3, :3]).sum(1) / 2)
    assert dcmread(seg).SegmentSequence[0].SegmentLabel == "CAM >= 0.5 (explanation)"


def test_source_and_outputs_share_the_grid(tmp_path: Path) -> None:
    """Every frame of the Parametric Map lies on a source slice: same position, orientation and spacing."""
    shape = (6, 30, 34)
    affine = oblique(np.random.default_rng(5), shape, (4.0, 1.1, 1.3), flipped=True)
    files = save_sources(ct_series(affine, np.full(shape, -1000, np.float32), "grid"), tmp_path / "in")
    volume, _ = read_series(files, "grid")
    study = Study("proof0000001", "dicom", "0" * 64, volume)
    model = bundle((8, 16, 16))
    prepared = prepare(volume, model.spec.preparation)
    pixels = np.random.default_rng(0).random(prepared.pixels.shape).astype(np.float32)
    prediction, explanations = explain_study(
        model, Spotter().eval(), study, Prepared(pixels, prepared.grid), ExplainOptions(class_label="bright")
    )
    result = Result(study, prediction, explanations, "c" * 64, "2024-01-01T00:00:00")
    (output,) = export_all(result, tmp_path / "out", ExportOptions(formats=("parametric_map",)))
    grid = highdicom.imread(tmp_path / "out" / output.path).get_volume()
    back = np.linalg.inv(grid.affine) @ volume.affine
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    there = np.rint(index @ back[:3, :3].T + back[:3, 3]).astype(int)
    values = np.squeeze(grid.array)[tuple(there.T)]
    assert values == pytest.approx(explanations[0].normalised().reshape(-1), abs=1e-6)
