"""Tilted and unevenly spaced slices: the straight grid through them, and the way back, against functions of place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from medxai.errors import GeometryError
from medxai.ingest.dicom_series import read_series
from medxai.ingest.geometry import Plane, stack_planes
from medxai.prepare.prepare import prepare
from medxai.prepare.spec import PreparationSpec, WindowIntensity
from medxai.stack import Stack
from tests.export.build import affine_of, anatomy, ct_series, rotation, save_sources

Values = npt.NDArray[np.float64]
SIZE = (21, 34)


def planes(
    distances: list[float], shifts: npt.NDArray[np.float64], spacing: tuple[float, float] = (0.9, 0.7)
) -> list[Plane]:
    """Oblique slices at these distances along their normal (mm), displaced in the plane by these mm along (h, w)."""
    turn = rotation(23.0, -14.0)
    row, column, normal = turn @ [1, 0, 0], turn @ [0, 1, 0], turn @ [0, 0, 1]
    found = []
    for distance, (down, right) in zip(distances, shifts, strict=True):
        x, y, z = np.array([12.0, -40.0, 7.0]) + distance * normal + down * column + right * row
        found.append(Plane((x, y, z), (*row, *column), spacing, SIZE))
    return found


def stacked(distances: list[float], shifts: npt.NDArray[np.float64]) -> tuple[Stack, list[Plane]]:
    """The straight grid through such slices."""
    given_planes = planes(distances, shifts)
    found = stack_planes(given_planes, "s", None, 1e3).stack
    assert found is not None
    return found, given_planes


def places(plane: Plane) -> Values:
    """``[H, W, 3]`` LPS mm of the voxels of a slice."""
    row, column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    h, w = np.meshgrid(*(np.arange(n) for n in plane.size), indexing="ij")
    found: Values = np.array(plane.position) + h[..., None] * column * plane.spacing[0]
    return found + w[..., None] * row * plane.spacing[1]


def grid_places(stack: Stack) -> Values:
    """``[D', H', W', 3]`` LPS mm of the straight grid."""
    index = np.stack([*np.meshgrid(*(np.arange(n) for n in stack.shape), indexing="ij"), np.ones(stack.shape)], -1)
    found: Values = index @ stack.affine.T
    return found[..., :3]


def linear(at: Values) -> npt.NDArray[np.float32]:
    """A function of place that linear interpolation keeps."""
    return (at @ np.array([0.31, -0.22, 0.47]) + 5).astype(np.float32)


@settings(max_examples=40)
@given(
    gaps=st.lists(st.floats(0.8, 6.0), min_size=2, max_size=9),
    tilt=st.floats(-0.4, 0.4),
    jitter=st.floats(0, 2.0),
    seed=st.integers(0, 99),
)
def test_a_function_of_place_stays_in_place(gaps: list[float], tilt: float, jitter: float, seed: int) -> None:
    """Both ways keep what is linear in the patient, wherever the slices reach."""
    distances = np.concatenate([[0.0], np.cumsum(gaps)])
    noise = np.random.default_rng(seed).normal(size=(len(distances), 2)) * jitter
    shifts = np.stack([distances * tilt, -distances * tilt / 3], 1) + noise
    try:
        stack, slices = stacked(distances.tolist(), shifts)
    except AssertionError:  # by chance a regular grid
        return
    values = np.stack([linear(places(plane)) for plane in slices])
    straight = stack.straight(values[None])[0]
    reached = stack.straight(np.ones_like(values))
    inside = reached > 1 - 1e-5
    inside[int(np.floor(distances[-1] / stack.step + 1e-6)) + 1 :] = False  # beyond the last slice
    assert np.allclose(straight[inside], linear(grid_places(stack))[inside], atol=2e-3)
    back = stack.sliced(linear(grid_places(stack))[None])[0]
    shown = stack.sliced(np.ones(stack.shape, np.float32)) > 1 - 1e-5
    assert np.allclose(back[shown], values[shown], atol=2e-3)
    assert shown.all()  # the grid holds every slice


def test_shape_of_the_answers() -> None:
    """Leading axes stay, and the straight grid is as large as the displacements ask."""
    distances, shifts = [0.0, 2.0, 5.0, 6.0], np.array([[0, 0], [1.8, 0], [4.5, 0], [5.4, -1.4]])
    stack, _ = stacked(distances, shifts)
    assert stack.step == pytest.approx(1.0)
    assert stack.shape == (7, SIZE[0] + 6, SIZE[1] + 2)
    values = np.random.default_rng(0).random((2, 4, *SIZE)).astype(np.float32)
    straight = stack.straight(values)
    assert straight.shape == (2, *stack.shape)
    for d, plane in ((0, 0), (1, 2), (2, 5), (3, 6)):  # planes that pass through a slice hold it unchanged
        down, right = (round(float(v)) for v in stack.shifts[d])
        assert np.allclose(straight[:, plane, down : down + SIZE[0], right : right + SIZE[1]], values[:, d], atol=1e-5)
    assert np.allclose(stack.sliced(straight), values, atol=1e-5)
    assert "3 missing slices" in stack.words
    assert "tilt" in stack.words


def test_regular_slices_need_none() -> None:
    assert stack_planes(planes([0, 2, 4, 6], np.zeros((4, 2))), "s", None, 10.0).stack is None


def test_wide_gaps_are_refused() -> None:
    with pytest.raises(GeometryError, match=r"8.00 mm between slices are more than `largest_gap_mm` \(5\)"):
        stack_planes(planes([0, 2, 4, 12], np.zeros((4, 2))), "s", None, 5.0)
    with pytest.raises(GeometryError, match="--straighten MM, or `geometry: straighten`"):
        stack_planes(planes([0, 2, 4, 12], np.zeros((4, 2))), "s")


def tilted(folder: Path, degrees: float, shape: tuple[int, int, int] = (9, 24, 30)) -> list[Path]:
    """A series whose slices move down the column direction from one to the next."""
    affine = affine_of(shape, (3.0, 2.0, 1.5))
    sources = ct_series(affine, anatomy(shape))
    column = affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    for number, dataset in enumerate(sources):
        moved = np.array([float(v) for v in dataset.ImagePositionPatient])
        moved += column * np.tan(np.radians(degrees)) * 3.0 * number
        dataset.ImagePositionPatient = [f"{v:.8f}"[:16] for v in moved]
    return save_sources(sources, folder)


def test_the_network_sees_the_straight_patient(tmp_path: Path) -> None:
    """A spot whose place is known appears there on the prepared grid, and a map there goes back to the same slice."""
    files = tilted(tmp_path, 20.0)
    with pytest.raises(GeometryError, match=r"gantry tilt 20\.0 degrees"):
        read_series(files, "s")
    volume, notes = read_series(files, "s", 10.0)
    assert any("straightened" in note and "tilt 20.0" in note for note in notes)
    assert volume.stack is not None
    assert np.allclose(volume.affine @ [5, 3, 7, 1], [*(volume.positions[5] + (volume.affine[:3, 1:3] @ [3, 7])), 1])  # type: ignore[index]
    spec = PreparationSpec(
        axes="DHW", channels=1, window=(8, 16, 16), spacing_mm=(3.0, 2.0, 2.0), fill=-1000.0,
        intensity=WindowIntensity(low=-1000.0, high=1000.0),
    )  # fmt: skip
    pixels = np.zeros_like(volume.pixels)
    pixels[0, 6, 10:13, 12:15] = 1.0
    grid = prepare(volume, spec).grid
    seen = grid.forward(pixels, 0.0)[0]
    peak = np.unravel_index(int(seen.argmax()), seen.shape)
    expected = volume.positions[6] + volume.affine[:3, 1] * 11 + volume.affine[:3, 2] * 13  # type: ignore[index]
    found = (grid.affine @ [*peak, 1])[:3]
    assert np.linalg.norm(found - expected) < 3.0
    back = grid.backward(seen)
    assert back.shape == volume.shape
    assert np.unravel_index(int(back.argmax()), back.shape) in [(6, h, w) for h in (10, 11, 12) for w in (12, 13, 14)]


def test_slices_that_repeat_another_are_dropped(tmp_path: Path) -> None:
    """Under another identifier, with the same pixels: only where straightening was asked for."""
    shape = (5, 12, 18)
    files = save_sources(ct_series(affine_of(shape), anatomy(shape)), tmp_path)
    again = dcmread(files[2])
    again.SOPInstanceUID += ".1"
    again.file_meta.MediaStorageSOPInstanceUID = again.SOPInstanceUID
    again.save_as(tmp_path / "again.dcm")
    everything = [*files, tmp_path / "again.dcm"]
    with pytest.raises(GeometryError, match="1 duplicate slice position"):
        read_series(everything, "s")
    volume, notes = read_series(everything, "s", 10.0)
    assert volume.shape == shape
    assert any(note.startswith("1 slices were dropped") for note in notes)
    again.RescaleIntercept = "3"  # other values at the same place
    again.save_as(tmp_path / "again.dcm")
    with pytest.raises(GeometryError, match="1 duplicate slice position"):
        read_series(everything, "s", 10.0)
    shutil.rmtree(tmp_path)
