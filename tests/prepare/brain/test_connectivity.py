"""Regional series and connectivity against nilearn, numpy and planted correlations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medxai.errors import MismatchError
from medxai.prepare.brain.atlas import Atlas, Placed
from medxai.prepare.brain.connectivity import (
    LARGEST_R,
    dynamic_connectivity,
    region_series,
    static_connectivity,
    window_weights,
    windows,
)
from medxai.prepare.brain.image import Image, as_nifti
from medxai.prepare.brain.settings import WindowOptions

GRID = (4, 6, 5)


def atlas_of(labels: np.ndarray, missing: tuple[int, ...] = ()) -> Placed:
    count = int(labels.max()) if labels.ndim == 3 else labels.shape[3]
    names = tuple(f"r{n}" for n in range(count))
    image = Image(labels, np.diag([3.0, 2.0, 2.5, 1.0]))
    atlas = Atlas(image, tuple(range(1, count + 1)), names, ("",) * count, "", "x")
    return Placed(labels, np.ones(count), missing, atlas)


def test_series_agree_with_nilearn() -> None:
    from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker

    generator = np.random.default_rng(0)
    data = generator.normal(1000, 10, (*GRID, 9)).astype(np.float32)
    labels = generator.integers(0, 4, GRID).astype(np.int32)
    mask = np.ones(GRID, bool)
    affine = np.diag([3.0, 2.0, 2.5, 1.0])
    scan = as_nifti(Image(data, affine))
    ours = region_series(data, atlas_of(labels), mask)
    theirs = NiftiLabelsMasker(as_nifti(Image(labels, affine)), standardize=None).fit_transform(scan)
    assert np.allclose(ours, theirs, rtol=1e-5)
    weights = generator.random((*GRID, 3)).astype(np.float32)
    ours = region_series(data, atlas_of(weights), mask)
    theirs = NiftiMapsMasker(as_nifti(Image(weights, affine)), standardize=None).fit_transform(scan)
    assert np.allclose(ours, theirs, rtol=1e-3)


def test_missing_regions_are_zeros() -> None:
    labels = np.zeros(GRID, np.int32)
    labels[0], labels[1], labels[2] = 1, 2, 3
    data = np.random.default_rng(0).normal(size=(*GRID, 30)).astype(np.float32)
    found = region_series(data, atlas_of(labels, (1,)), np.ones(GRID, bool))
    assert (found[:, 1] == 0).all()
    z = static_connectivity(found)
    assert (z[1] == 0).all()
    assert np.isfinite(z).all()


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(8, 60))
@settings(max_examples=15)
def test_static_connectivity_is_nilearns(seed: int, regions: int, volumes: int) -> None:
    from nilearn.connectome import ConnectivityMeasure
    from sklearn.covariance import EmpiricalCovariance

    generator = np.random.default_rng(seed)
    series = (generator.normal(size=(volumes, regions)) @ generator.normal(size=(regions, regions))).astype(np.float32)
    measure = ConnectivityMeasure(EmpiricalCovariance(), kind="correlation", standardize=None)
    expected = measure.fit_transform([series.astype(np.float64)])[0]
    z = static_connectivity(series)
    assert np.array_equal(z, z.T)
    assert (np.diag(z) == 0).all()
    off = ~np.eye(regions, dtype=bool)
    assert np.allclose(np.tanh(z)[off], np.clip(expected, -LARGEST_R, LARGEST_R)[off], atol=2e-5)


def test_a_planted_correlation() -> None:
    generator = np.random.default_rng(0)
    common, a, b = generator.normal(size=(3, 20_000))
    series = np.stack([common, 0.6 * common + 0.8 * a, b, -common, np.full(20_000, 4.0)], 1).astype(np.float32)
    z = static_connectivity(series)
    assert np.tanh(z[0, 1]) == pytest.approx(0.6, abs=0.015)
    assert abs(z[0, 2]) < 0.03
    assert np.tanh(z[0, 3]) == pytest.approx(-LARGEST_R, abs=1e-6)
    assert (z[4] == 0).all()


def test_windows_see_when_regions_go_together() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 300))
    y[150:] = x[150:] + 0.3 * y[150:]
    series = np.stack([x, y, generator.normal(size=300)], 1).astype(np.float32)
    found, starts = dynamic_connectivity(series, 2.0, WindowOptions(seconds=80, step=10))
    assert found.shape == (3, 3, 27)
    together = starts >= 150
    apart = starts + 40 <= 150
    assert found[0, 1, together].min() > 1.2
    assert np.abs(found[0, 1, apart]).max() < 0.8
    assert np.array_equal(found, found.transpose(1, 0, 2))
    for n, start in enumerate(starts):
        assert np.allclose(found[..., n], static_connectivity(series[start : start + 40]), atol=1e-6)


def test_tapered_windows_are_weighted_correlations() -> None:
    options = WindowOptions(seconds=60, step=7, shape="tapered", taper_seconds=6)
    weights = window_weights(30, 2.0, options)
    assert weights.max() == 1
    assert np.allclose(weights, weights[::-1])
    assert weights[0] == pytest.approx(0.5, abs=0.1)  # half of the Gaussian lies outside
    series = np.random.default_rng(2).normal(size=(100, 4)).astype(np.float32)
    found, starts = dynamic_connectivity(series, 2.0, options)
    for n, start in enumerate(starts):
        covariance = np.cov(series[start : start + 30].T, aweights=weights)
        size = np.sqrt(np.diag(covariance))
        expected = covariance / np.outer(size, size)
        off = ~np.eye(4, dtype=bool)
        assert np.allclose(np.tanh(found[..., n])[off], expected[off], atol=1e-5)


def test_a_given_number_of_windows() -> None:
    length, starts = windows(240, 2.0, WindowOptions(seconds=100, count=120))
    assert (length, len(starts), starts[0], starts[-1]) == (50, 120, 0, 190)
    assert (np.diff(starts) > 0).all()
    assert windows(50, 2.0, WindowOptions(count=1))[1].tolist() == [0]


@pytest.mark.parametrize(
    ("volumes", "seconds", "options", "words"),
    [
        (49, 2.0, WindowOptions(), "49 volumes of 2 s are too few for a window of 100 s, which needs 50"),
        (100, 2.0, WindowOptions(count=52), "room for 51 different windows of 50 volumes, and 52 are wanted; 101"),
        (100, 2.0, WindowOptions(seconds=6), "a window of 6 s holds 3 volumes"),
    ],
)
def test_too_few_volumes(volumes: int, seconds: float, options: WindowOptions, words: str) -> None:
    with pytest.raises(MismatchError, match=words):
        dynamic_connectivity(np.zeros((volumes, 2), np.float32), seconds, options)
