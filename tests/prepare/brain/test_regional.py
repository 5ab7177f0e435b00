"""ALFF, fALFF and ReHo against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medxai.errors import MismatchError
from medxai.prepare.brain.regional import alff, over_mean
from medxai.prepare.brain.reho import reho
from medxai.prepare.brain.settings import BandOptions

BAND = BandOptions()


def bins(volumes: int, seconds: float) -> int:
    frequencies = np.arange(volumes // 2 + 1) / (volumes * seconds)
    return int(((frequencies >= 0.01 - 1e-12) & (frequencies <= 0.08 + 1e-12)).sum())


@pytest.mark.parametrize("volumes", [200, 201])
@pytest.mark.parametrize("cycles", [4, 11, 32])
def test_a_sine_inside_the_band(volumes: int, cycles: int) -> None:
    wave = 7.5 * np.sin(2 * np.pi * cycles * np.arange(volumes) / volumes + 0.3)
    amplitude, fraction = alff(wave[:, None].astype(np.float32), 2.0, BAND)
    inside = 0.01 - 1e-9 <= cycles / (volumes * 2.0) <= 0.08 + 1e-9
    expected = 7.5 / bins(volumes, 2.0) if inside else 0.0
    assert amplitude[0] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert fraction[0] == pytest.approx(float(inside), abs=1e-3)


def test_two_sines_share_by_amplitude() -> None:
    time = np.arange(400)
    wave = 3 * np.cos(2 * np.pi * 20 * time / 400) + 1 * np.cos(2 * np.pi * 150 * time / 400)  # 0.025 and 0.1875 Hz
    _, fraction = alff(wave[:, None].astype(np.float32), 2.0, BAND)
    assert fraction[0] == pytest.approx(0.75, abs=1e-3)


def test_the_nyquist_frequency_counts_once() -> None:
    time = np.arange(100)
    wave = np.cos(2 * np.pi * 10 * time / 100) + (-1.0) ** time  # 0.05 Hz and Nyquist, amplitude 1 each
    _, fraction = alff(wave[:, None].astype(np.float32), 2.0, BAND)
    assert fraction[0] == pytest.approx(0.5, abs=1e-4)


def test_scale_and_constant_voxels() -> None:
    series = np.random.default_rng(0).normal(size=(120, 9000)).astype(np.float32)  # more than a chunk
    series[:, 5] = 0
    amplitude, fraction = alff(series, 2.0, BAND)
    doubled, same = alff(2 * series, 2.0, BAND)
    assert np.allclose(doubled, 2 * amplitude, rtol=1e-5)
    assert np.allclose(same, fraction, rtol=1e-4)
    assert amplitude[5] == fraction[5] == 0
    assert over_mean(amplitude).mean() == pytest.approx(1, abs=1e-5)


def test_no_frequency_in_the_band() -> None:
    with pytest.raises(MismatchError, match=r"4 volumes of 2 s resolve steps of 0.125 Hz up to 0.25 Hz"):
        alff(np.zeros((4, 1), np.float32), 2.0, BAND)
    with pytest.raises(MismatchError, match="constant"):
        over_mean(np.zeros(3, np.float32))


def kendall(columns: np.ndarray) -> float:
    """W by its relation to Friedman's statistic, which scipy corrects for ties."""
    from scipy.stats import friedmanchisquare

    n, k = columns.shape
    return float(friedmanchisquare(*columns).statistic / (k * (n - 1)))


@given(st.integers(0, 10_000), st.sampled_from([3, 50]))
@settings(max_examples=15)
def test_reho_is_kendalls_w_of_the_neighbours(seed: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (3, 4, 5)
    mask = generator.random(shape) < 0.7
    series = generator.integers(0, levels, (20, int(mask.sum()))).astype(np.float32)  # ties
    found = reho(series, mask)
    grid = np.full((20, *shape), np.nan)
    grid[:, mask] = series
    for value, (d, h, w) in zip(found, np.argwhere(mask), strict=True):
        near = grid[:, max(d - 1, 0) : d + 2, max(h - 1, 0) : h + 2, max(w - 1, 0) : w + 2].reshape(20, -1)
        near = near[:, ~np.isnan(near[0])]
        expected = kendall(near) if near.shape[1] > 1 else 0.0
        assert value == pytest.approx(expected, abs=1e-5)


def test_equal_series_are_wholly_concordant_and_noise_is_not() -> None:
    mask = np.ones((5, 6, 7), bool)
    generator = np.random.default_rng(0)
    line = np.repeat(generator.normal(size=(30, 1)), mask.sum(), 1).astype(np.float32)
    assert np.allclose(reho(line, mask), 1)
    noise = reho(generator.normal(size=(300, mask.sum())).astype(np.float32), mask).reshape(mask.shape)
    # Expectation of W of K independent rankings is 1 / K.
    assert noise[1:-1, 1:-1, 1:-1].mean() == pytest.approx(1 / 27, rel=0.05)
    assert reho(np.zeros((30, mask.sum()), np.float32), mask).max() == 0
    with pytest.raises(MismatchError, match="2 volumes"):
        reho(line[:2], mask)
