"""The prepared grid and the way back, against physical positions."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from medxai.errors import MismatchError
from medxai.prepare.axis import AxisMap, triangle_weights
from medxai.prepare.intensity import map_intensity, match_channels
from medxai.prepare.prepare import prepare
from medxai.prepare.spec import AffineIntensity, PreparationSpec, WindowIntensity, ZScoreIntensity
from medxai.study import Volume, image_affine
from tests.export.build import rotation

PLAIN = AffineIntensity(mean=(0.0,), std=(1.0,))

angles = st.floats(-40, 40)
spacings = st.tuples(*[st.floats(0.5, 5.0)] * 3)
shapes = st.tuples(st.integers(5, 12), st.integers(13, 20), st.integers(21, 30))
axis_orders = st.permutations(range(3))
signs = st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)


def oblique(spacing: tuple[float, ...], order: list[int], sign: tuple[float, ...], a: float, b: float) -> np.ndarray:
    """A right- or left-handed oblique affine whose axes point in any of the 48 ways."""
    base = rotation(a, b)[:, list(order)] * np.array(sign)
    affine = np.eye(4)
    affine[:3, :3] = base * np.array(spacing)
    affine[:3, 3] = [12.5, -40.0, 230.0]
    return affine


def positions(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """LPS position of every voxel, ``[*S, 3]``."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


@settings(max_examples=60, deadline=None)
@given(shape=shapes, spacing=spacings, order=axis_orders, sign=signs, a=angles, b=angles)
def test_way_back_is_exact_on_linear_fields(
    shape: tuple[int, ...], spacing: tuple[float, ...], order: list[int], sign: tuple[float, ...], a: float, b: float
) -> None:
    """A field linear in LPS, sampled on the prepared grid, returns as the same field on the source grid.

    Linear interpolation reproduces linear fields, so any error is a misplacement.
    """
    affine = oblique(spacing, order, sign, a, b)
    volume = Volume(np.zeros((1, *shape), np.float32), "DHW", affine, "CT")
    spec = PreparationSpec(axes="DHW", window=(8, 10, 12), spacing_mm=(1.7, 2.1, 1.3), intensity=PLAIN)
    prepared = prepare(volume, spec)
    slope = np.array([0.3, -0.7, 0.5])
    field = (positions(prepared.grid.affine, prepared.grid.shape) @ slope).astype(np.float32)
    back = prepared.grid.backward(field)
    truth = positions(affine, shape) @ slope
    # Up to 0.8 of a prepared voxel beyond the outermost centres the border value is held, so only the inside is exact.
    inverse = np.linalg.inv(prepared.grid.affine)
    index = positions(affine, shape) @ inverse[:3, :3].T + inverse[:3, 3]
    inside = np.all((index >= -1e-6) & (index <= np.array(prepared.grid.shape) - 1 + 1e-6), axis=-1)
    assert inside.mean() > 0.3
    assert np.abs(back - truth)[inside].max() < 1e-3
    held = np.abs(slope @ prepared.grid.affine[:3, :3]).sum() * 0.8 + 1e-3
    assert np.abs(back - truth).max() <= held


@settings(max_examples=40, deadline=None)
@given(shape=shapes, spacing=spacings, order=axis_orders, sign=signs)
def test_axes_point_superior_posterior_left(
    shape: tuple[int, ...], spacing: tuple[float, ...], order: list[int], sign: tuple[float, ...]
) -> None:
    """Whatever the acquisition, the network sees the same side up, at the spacing it was trained on."""
    affine = oblique(spacing, order, sign, 12, -8)
    volume = Volume(np.zeros((1, *shape), np.float32), "DHW", affine, "CT")
    spec = PreparationSpec(axes="DHW", window=(8, 10, 12), spacing_mm=(1.7, 2.1, 1.3), intensity=PLAIN)
    columns = prepare(volume, spec).grid.affine[:3, :3]
    assert columns[2, 0] > 0.7 * 1.7
    assert columns[1, 1] > 0.7 * 2.1
    assert columns[0, 2] > 0.7 * 1.3
    assert np.allclose(np.linalg.norm(columns, axis=0), (1.7, 2.1, 1.3))


def test_resampling_agrees_with_simpleitk() -> None:
    """Enlarging is what SimpleITK's linear resampling gives at the same physical points."""
    shape = (9, 11, 13)
    affine = oblique((3.0, 2.0, 2.5), [2, 1, 0], (1.0, 1.0, 1.0), 15, 25)
    pixels = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    spec = PreparationSpec(axes="DHW", window=(8, 8, 8), spacing_mm=(1.1, 0.9, 1.3), intensity=PLAIN)
    prepared = prepare(Volume(pixels, "DHW", affine, "CT"), spec)
    image = SimpleITK.GetImageFromArray(pixels[0])
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    image.SetDirection(directions[:, ::-1].flatten().tolist())
    image.SetSpacing([2.5, 2.0, 3.0])
    image.SetOrigin(affine[:3, 3].tolist())
    grid = prepared.grid
    reference = SimpleITK.Image(*[int(n) for n in grid.shape[::-1]], SimpleITK.sitkFloat32)
    turned = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    reference.SetDirection(turned[:, ::-1].flatten().tolist())
    reference.SetSpacing([1.3, 0.9, 1.1])
    reference.SetOrigin(grid.affine[:3, 3].tolist())
    resampled = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(image, reference, SimpleITK.Transform(), SimpleITK.sitkLinear)
    )
    assert np.abs(resampled - prepared.pixels[0]).max() < 1e-4


@settings(max_examples=80, deadline=None)
@given(size=st.integers(2, 40), out=st.integers(1, 60), step=st.floats(0.1, 6.0), flip=st.booleans())
def test_rows_are_averages(size: int, out: int, step: float, flip: bool) -> None:
    """Every row inside the source sums to one, is never negative, and a constant stays constant."""
    step = -step if flip else step
    axis = AxisMap(0, size, out, (size - 1) / 2 - step * (out - 1) / 2, step)
    for weights in (axis.forward(), axis.backward()):
        assert (weights >= 0).all()
        sums = weights.sum(1)
        assert np.all(np.isclose(sums, 1, atol=1e-5) | (sums == 0))


def test_reducing_keeps_the_mean() -> None:
    """Anti-aliasing: a checkerboard becomes grey, not a moire."""
    board = (np.indices((64, 64)).sum(0) % 2).astype(np.float32)
    spec = PreparationSpec(axes="HW", window=(16, 16), intensity=PLAIN)
    small = prepare(Volume(board[None], "HW", image_affine(), "US", calibrated=False), spec).pixels[0]
    assert np.abs(small[1:-1, 1:-1] - 0.5).max() < 0.02


def test_picture_fits_with_its_aspect() -> None:
    """A wide picture is padded above and below with the fill value, and maps come back to its pixels."""
    volume = Volume(np.full((1, 20, 80), 7, np.float32), "HW", image_affine(), "US", calibrated=False)
    spec = PreparationSpec(axes="HW", window=(40, 40), fill=-3, intensity=PLAIN)
    prepared = prepare(volume, spec)
    assert prepared.pixels.shape == (1, 40, 40)
    assert np.allclose(prepared.pixels[0, 15:25], 7)
    assert np.allclose(prepared.pixels[0, :14], -3)
    assert np.allclose(prepared.pixels[0, 26:], -3)
    assert prepared.grid.backward(prepared.pixels[0]).shape == (20, 80)


def test_cine_keeps_its_frames() -> None:
    """Frames pass one to one; their number leads the prepared shape."""
    pixels = np.arange(3, dtype=np.float32)[None, :, None, None] * np.ones((1, 3, 10, 12), np.float32)
    volume = Volume(pixels, "THW", image_affine(0.2, 0.2), "US")
    prepared = prepare(volume, PreparationSpec(axes="HW", window=(20, 24), channels=3, intensity=PLAIN))
    assert prepared.pixels.shape == (3, 3, 20, 24)
    assert prepared.grid.shape == (3, 20, 24)
    back = prepared.grid.backward(prepared.pixels[0])
    assert np.allclose(back, pixels[0])


def test_small_volume_is_padded_to_the_window() -> None:
    """Padding has the fill value and does not move the map."""
    volume = Volume(np.zeros((1, 3, 4, 5), np.float32), "DHW", oblique((2, 2, 2), [2, 1, 0], (1, 1, 1), 0, 0), "CT")
    spec = PreparationSpec(axes="DHW", window=(8, 8, 8), spacing_mm=(2, 2, 2), fill=-1000, intensity=PLAIN)
    prepared = prepare(volume, spec)
    assert prepared.pixels.shape == (1, 8, 8, 8)
    assert (prepared.pixels == -1000).sum() >= 8**3 - 4 * 5 * 6


def test_wrong_dimensions_are_refused() -> None:
    """Volumes for 2D networks, stills for 3D ones, and millimetres without calibration."""
    still = Volume(np.zeros((1, 8, 8), np.float32), "HW", image_affine(), "US", calibrated=False)
    solid = Volume(np.zeros((1, 4, 8, 8), np.float32), "DHW", np.eye(4)[:, [2, 1, 0, 3]], "CT")
    flat = PreparationSpec(axes="HW", window=(8, 8), intensity=PLAIN)
    deep = PreparationSpec(axes="DHW", window=(8, 8, 8), spacing_mm=(1, 1, 1), intensity=PLAIN)
    metric = PreparationSpec(axes="HW", window=(8, 8), spacing_mm=(1, 1), intensity=PLAIN)
    for volume, spec in ((still, deep), (solid, flat), (still, metric)):
        with pytest.raises(MismatchError):
            prepare(volume, spec)


@pytest.mark.parametrize(
    "wrong",
    [
        {"axes": "DHW", "window": (8, 8, 8)},
        {"axes": "HW", "window": (8, 8, 8)},
        {"axes": "HW", "window": (8, 8), "overlap": 1.0},
    ],
)
def test_contradicting_specs_are_refused(wrong: dict[str, object]) -> None:
    """A 3D spec needs spacing; window and axes must agree."""
    with pytest.raises(ValidationError):
        PreparationSpec(intensity=PLAIN, **wrong)


@given(hnp.arrays(np.float32, (1, 4, 5), elements=st.floats(-3000, 3000, width=32)))
def test_window_intensity(pixels: np.ndarray) -> None:
    """The HU window maps to 0..1 and clips."""
    out = map_intensity(pixels, WindowIntensity(low=-1000, high=400))
    assert np.allclose(out, np.clip((pixels + 1000) / 1400, 0, 1), atol=1e-5)


def test_other_intensities_and_channels() -> None:
    """Per-channel constants, z-score above a floor, luminance."""
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 6, 7)).astype(np.float32)
    out = map_intensity(pixels, AffineIntensity(mean=(1, 2, 3), std=(4, 5, 6)))
    assert np.allclose(out[1], (pixels[1] - 2) / 5, atol=1e-5)
    scored = map_intensity(pixels, ZScoreIntensity(floor=100))
    chosen = scored[pixels > 100]
    assert abs(chosen.mean()) < 1e-4
    assert chosen.std() == pytest.approx(1, abs=1e-4)
    assert np.allclose(
        match_channels(pixels, 1)[0], 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2], rtol=1e-4
    )
    assert match_channels(pixels[:1], 3).shape == (3, 6, 7)
    assert np.allclose(triangle_weights(np.array([1.0]), 4, 1.0), [[0, 1, 0, 0]])


def test_the_border_of_the_source_gets_its_evidence() -> None:
    """21 voxels of 0.77 mm are 6.4 of 2.5 mm: six are made, and the outermost source voxels lie beyond them."""
    axis = AxisMap(0, 21, 6, 10 - 2.5 * (2.5 / 0.765625), 2.5 / 0.765625)
    weights = axis.backward()
    assert np.allclose(weights.sum(1), 1)
    assert weights[0, 0] == weights[-1, -1] == 1


@pytest.mark.parametrize("axes", ["DHW", "HW"])
def test_way_back_is_the_same_in_slabs(axes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many planes are resampled at once; and nothing is copied where the grids are the same."""
    shape = (9, 17, 23)
    affine = oblique((2.0, 0.9, 1.1), [1, 0, 2], (1.0, -1.0, 1.0), 20.0, -10.0)
    if axes == "DHW":
        volume = Volume(np.zeros((1, *shape), np.float32), "DHW", affine, "CT")
        spec = PreparationSpec(axes="DHW", window=(8, 10, 12), spacing_mm=(1.7, 2.1, 1.3), intensity=PLAIN)
    else:
        volume = Volume(np.zeros((1, *shape), np.float32), "THW", image_affine(1.0, 1.0), "US")
        spec = PreparationSpec(axes="HW", window=(12, 12), intensity=PLAIN)
    grid = prepare(volume, spec).grid
    field = np.random.default_rng(0).uniform(size=grid.shape).astype(np.float32)
    whole = grid.backward(field)
    assert whole.shape == shape
    for slab in (1, 500):
        monkeypatch.setattr("medxai.prepare.grid._SLAB", slab)
        assert np.allclose(grid.backward(field), whole, atol=1e-6)
    # Axes d, h, w that run to superior, posterior and left are those of the network already.
    straight = np.eye(4)[[2, 1, 0, 3]]
    same = Volume(np.zeros((1, *shape), np.float32), "DHW", straight, "CT")
    spec = PreparationSpec(axes="DHW", window=(8, 10, 12), spacing_mm=(1.0, 1.0, 1.0), intensity=PLAIN)
    grid = prepare(same, spec).grid
    field = np.zeros(grid.shape, np.float32)
    assert np.shares_memory(grid.backward(field), field)
