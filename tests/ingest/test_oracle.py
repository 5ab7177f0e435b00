"""Geometry and grouping of real scanners' files against dcm2niix, which knows their ways."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.study import Study
from tests.tools import require_data

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
Floats = npt.NDArray[np.float64]


def converted(data: Path, folder: Path) -> dict[str, tuple[Floats, Floats]]:
    """Name -> values ``[i, j, k(, t)]`` and affine to LPS mm of what dcm2niix makes of a folder."""
    tool = Path(sys.executable).parent / "dcm2niix"
    command = [str(tool), "-b", "n", "-z", "n", "-f", "%s", "-o", str(folder), str(data)]
    subprocess.run(command, check=True, capture_output=True)
    found = {}
    for path in folder.glob("*.nii"):
        image = nibabel.load(path)
        found[path.stem] = (np.asarray(image.dataobj, np.float64), _RAS_TO_LPS @ image.affine)
    return found


def studies(data: Path, work: Path, gap: float | None = None) -> list[Study]:
    """All volumes of a folder."""
    return [read_study(source, None, gap) for source in discover([data], work).sources]


def sampled(values: Floats, affine: Floats, other: Floats, shape: tuple[int, ...]) -> Floats:
    """Values ``[d, h, w]`` at the voxels of another grid; NaN outside."""
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    index = np.linalg.inv(affine) @ other @ np.stack([*grids, np.ones(shape)], 0).reshape(4, -1)
    found: Floats = ndimage.map_coordinates(values, np.round(index[:3], 6), order=1, cval=np.nan)
    return found.reshape(shape)


@pytest.mark.parametrize(("folder", "count"), [("fmri_mosaic_dicom", 4), ("dti_dicom", 17)])
def test_mosaics_lie_where_dcm2niix_puts_them(folder: str, count: int, tmp_path: Path) -> None:
    """Every voxel of every mosaic of Siemens and of United Imaging, at its place in the patient."""
    data = require_data(folder)
    theirs = [
        (values[..., t] if values.ndim == 4 else values, affine)
        for values, affine in converted(data, tmp_path).values()
        for t in range(values.shape[3] if values.ndim == 4 else 1)
    ]
    found = studies(data, tmp_path / "work")
    assert len(theirs) == len(found) == count
    assert all(study.volume.positions is None for study in found)
    for values, affine in theirs:
        equal = []
        for study in found:
            at = sampled(study.volume.pixels[0], study.volume.affine, affine, values.shape)
            assert np.isnan(at).mean() < 0.03
            equal.append(bool(np.allclose(at[~np.isnan(at)], values[~np.isnan(at)], rtol=0, atol=0.01)))
        assert sum(equal) == 1


def test_time_points_of_a_functional_series(tmp_path: Path) -> None:
    """Four volumes in one series, whose InstanceNumber does not follow them."""
    data = require_data("fmri_dicom")
    ((values, affine),) = converted(data, tmp_path).values()
    assert values.shape[3] == 4
    found = studies(data, tmp_path / "work")
    order = sorted(found, key=lambda study: int(study.notes[0].rsplit("time point ", 1)[1]))
    assert len(order) == 4
    for t, study in enumerate(order):
        ours = sampled(study.volume.pixels[0], study.volume.affine, affine, values.shape[:3])
        seen = ~np.isnan(ours)
        assert seen.mean() > 0.95
        matches = [float(np.corrcoef(ours[seen], values[..., other][seen])[0, 1]) for other in range(4)]
        assert int(np.argmax(matches)) == t
        assert matches[t] > 1 - 1e-9


def test_tilt_and_gaps_are_straightened_as_dcm2niix_does(tmp_path: Path) -> None:
    """18.5 degrees and gaps of 1.08, 4 and 7 mm: the same patient, within the differences of two interpolations."""
    data = require_data("ct_tilt_gap_dicom")
    theirs = converted(data, tmp_path)
    (name,) = (name for name in theirs if "Tilt_Eq" in name)
    values, affine = theirs[name]
    (study,) = studies(data, tmp_path / "work", 10.0)
    stack = study.volume.stack
    assert stack is not None
    straight = stack.straight(study.volume.pixels[0] + 1024) - 1024
    ours = sampled(straight, stack.affine, affine, values.shape)
    both = ~np.isnan(ours) & (values > -1000) & (ours > -1000)
    assert both.mean() > 0.2
    assert float(np.corrcoef(ours[both], values[both])[0, 1]) > 0.99
    assert float(np.median(np.abs(ours[both] - values[both]))) < 8
    untilted, raw_affine = theirs[name.split("_Tilt")[0]]
    wrong = sampled(straight, stack.affine, raw_affine, untilted.shape)
    apart = ~np.isnan(wrong) & (untilted > -1000)
    assert float(np.corrcoef(wrong[apart], untilted[apart])[0, 1]) < 0.95  # the comparison would notice


def test_maps_of_a_straightened_series_lie_on_its_slices(tmp_path: Path) -> None:
    """A mark on one slice of the real series is found by the network's grid and comes back to that slice alone."""
    from medxai.prepare.grid import plan_grid
    from medxai.prepare.spec import PreparationSpec, WindowIntensity

    (study,) = studies(require_data("ct_tilt_gap_dicom"), tmp_path / "work", 10.0)
    volume = study.volume
    spec = PreparationSpec(
        axes="DHW", window=(64, 96, 96), spacing_mm=(2.0, 2.0, 2.0), intensity=WindowIntensity(low=-100, high=200)
    )
    grid = plan_grid(volume, spec)
    mark = np.zeros_like(volume.pixels)
    mark[0, 11, 200:232, 300:324] = 1
    seen = grid.forward(mark, 0.0)[0]
    assert volume.positions is not None
    centre = volume.positions[11] + volume.affine[:3, 1] * 215.5 + volume.affine[:3, 2] * 311.5
    index = np.array(np.nonzero(seen > 0.5 * seen.max())).mean(1)
    assert np.linalg.norm((grid.affine @ [*index, 1])[:3] - centre) == pytest.approx(0, abs=1.5)
    back = grid.backward(seen)
    assert int(back.max(axis=(1, 2)).argmax()) == 11
    rows, columns = np.nonzero(back[11] > 0.5 * back[11].max())
    assert abs(rows.mean() - 215.5) < 1.5
    assert abs(columns.mean() - 311.5) < 1.5
