from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map

from medxai.errors import MismatchError
from medxai.predict.windows import gaussian_importance, plan_windows
from medxai.prepare.spec import PreparationSpec, WindowIntensity

INTENSITY = WindowIntensity(low=0, high=1)


def spec(window: tuple[int, ...], overlap: float = 0.5) -> PreparationSpec:
    axes = "HW" if len(window) == 2 else "DHW"
    return PreparationSpec(
        axes=axes, window=window, spacing_mm=(1.0,) * len(window), intensity=INTENSITY, overlap=overlap
    )


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    n = draw(st.integers(2, 3))
    window = tuple(draw(st.integers(1, 9)) for _ in range(n))
    shape = tuple(w + draw(st.integers(0, 17)) for w in window)
    return window, shape, draw(st.floats(0, 0.9))


@given(grids())
@settings(deadline=None, max_examples=150)
def test_windows_cover_everything_and_stay_inside(grid: tuple[tuple[int, ...], tuple[int, ...], float]) -> None:
    window, shape, overlap = grid
    planned = plan_windows(shape, spec(window, overlap))
    covered = np.zeros(shape, dtype=int)
    for offset in planned.offsets:
        part = covered[tuple(slice(a, a + n) for a, n in zip(offset, window, strict=True))]
        assert part.shape == window
        part += 1
    assert covered.min() >= 1
    assert len({tuple(o) for o in planned.offsets.tolist()}) == len(planned)
    for axis in range(len(window)):
        starts = np.unique(planned.offsets[:, axis])
        assert (starts[0], starts[-1]) == (0, shape[axis] - window[axis])
        if len(starts) > 1:
            steps = np.diff(starts)
            assert steps.max() - steps.min() <= 1
            assert steps.max() <= max(1, np.ceil(window[axis] * (1 - overlap)))


def test_extraction_cuts_what_the_offsets_say() -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 9, 11, 13)).astype(np.float32)
    planned = plan_windows(pixels.shape[1:], spec((4, 5, 6)))
    cut = planned.extract(pixels)
    assert cut.shape == (len(planned), 2, 4, 5, 6)
    for i, (d, h, w) in enumerate(planned.offsets.tolist()):
        assert np.array_equal(cut[i], pixels[:, d : d + 4, h : h + 5, w : w + 6])
    assert np.array_equal(planned.extract(pixels, [3, 1]), cut[[3, 1]])


def test_a_cine_gives_one_window_per_frame() -> None:
    pixels = np.random.default_rng(0).normal(size=(3, 7, 4, 5)).astype(np.float32)
    planned = plan_windows(pixels.shape[1:], spec((4, 5)))
    assert planned.offsets[:, 0].tolist() == list(range(7))
    assert np.array_equal(planned.extract(pixels), pixels.transpose(1, 0, 2, 3))
    with pytest.raises(MismatchError, match="one window per frame"):
        plan_windows((7, 6, 5), spec((4, 5)))


def test_a_grid_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(MismatchError, match="holds no window"):
        plan_windows((4, 5), spec((4, 6)))
    with pytest.raises(MismatchError, match="holds no window"):
        plan_windows((4, 5), spec((4, 5, 6)))


@pytest.mark.parametrize("size", [(8, 16, 16), (7, 9), (96, 96)])
def test_importance_is_that_of_monai(size: tuple[int, ...]) -> None:
    theirs = compute_importance_map(size, mode="gaussian", sigma_scale=0.125).numpy()
    theirs = theirs / theirs.max()
    assert gaussian_importance(size) == pytest.approx(theirs, rel=1e-4, abs=1e-6)
