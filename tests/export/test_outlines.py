from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medxai.export.outlines import MOST_POINTS, TOLERANCE, area, encloses, outlines, region_at, simplified


def cone(shape, at, radius):
    """1 at `at` (row, column), falling to 0 at `radius`."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.clip(1 - np.hypot(rows - at[0], columns - at[1]) / radius, 0, 1).astype(np.float32)


def distance(points, at):
    """Distance of a point from a closed polygon."""
    start, along = points[:-1], np.diff(points, axis=0)
    length = np.maximum((along**2).sum(axis=1), 1e-12)
    share = np.clip(((np.asarray(at) - start) * along).sum(axis=1) / length, 0, 1)
    return float(np.linalg.norm(start + share[:, None] * along - at, axis=1).min())


def test_a_disc_is_outlined_where_it_is():
    (points,) = outlines(cone((90, 120), (40, 70), 40.0), 0.5)
    assert np.array_equal(points[0], points[-1])
    centre = points[:-1].mean(axis=0)
    # Column and row of the centre of pixel (40, 70), counted from the outer corner of the first pixel.
    np.testing.assert_allclose(centre, (70.5, 40.5), atol=0.3)
    np.testing.assert_allclose(np.linalg.norm(points - (70.5, 40.5), axis=1), 20.0, atol=TOLERANCE + 0.05)
    assert area(points) == pytest.approx(np.pi * 400, rel=0.02)
    assert len(points) < 60


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(0.05, 0.95), rows=st.integers(4, 23))
def test_inside_means_in_the_band(seed, threshold, rows):
    from scipy.ndimage import gaussian_filter

    values = gaussian_filter(np.random.default_rng(seed).random((rows, 31)), 2.0)
    values = ((values - values.min()) / np.ptp(values)).astype(np.float32)
    found = outlines(values, threshold)
    for points in found:
        assert np.array_equal(points[0], points[-1])
        assert points.min() >= 0
        assert points[:, 0].max() <= 31
        assert points[:, 1].max() <= rows
    for row in range(rows):
        for column in range(31):
            at = (column + 0.5, row + 0.5)
            if found and min(distance(points, at) for points in found) < TOLERANCE + 0.01:
                continue  # so near to a line that simplifying may put it on the other side
            inside = sum(encloses(points, at) for points in found) % 2 == 1
            assert inside == (values[row, column] >= np.float32(threshold))


def test_evidence_at_the_border_has_a_closed_outline_within_the_image():
    values = np.ones((6, 9), np.float32)
    (points,) = outlines(values, 0.5)
    assert np.array_equal(points[0], points[-1])
    assert (points.min(axis=0) >= 0).all()
    assert (points.max(axis=0) <= (9, 6)).all()
    assert area(points) == pytest.approx(9 * 6, abs=1.0)


@pytest.mark.parametrize("value", [0.5, 0.5000001, 0.51, 1.0])
def test_a_single_pixel_is_outlined_however_small_the_outline(value):
    values = np.zeros((7, 9), np.float32)
    values[3, 5] = value
    (points,) = outlines(values, 0.5)
    assert len(points) >= 4
    np.testing.assert_allclose(points[:-1].mean(axis=0), (5.5, 3.5), atol=1e-6)


def test_holes_and_parts_are_outlines_of_their_own():
    ring = cone((60, 60), (30, 30), 30.0)
    ring[ring > 0.7] = 0
    outer, inner = outlines(ring, 0.4)
    assert area(outer) > area(inner)
    assert encloses(outer, (30.5, 30.5))
    assert encloses(inner, (30.5, 30.5))
    assert outlines(np.zeros((5, 5), np.float32), 0.5) == []


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_points_that_are_left_out_are_near_the_line(seed):
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, 200)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (20 + rng.normal(0, 0.4, (200, 1)))
    points[-1] = points[0]
    fewer = simplified(points, 0.5)
    assert len(fewer) < len(points)
    assert max(distance(fewer, point) for point in points) <= 0.5 + 1e-9


def test_no_outline_is_longer_than_an_element_can_hold():
    angles = np.linspace(0, 2 * np.pi, 30_000)
    star = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (200 + 40 * np.sign(np.sin(9000 * angles)))[:, None]
    star[-1] = star[0]
    assert len(simplified(star)) <= MOST_POINTS < 65534 // 8


def test_the_region_is_the_part_that_holds_the_pixel():
    values = np.maximum(cone((50, 70), (12, 15), 12.0), cone((50, 70), (35, 50), 20.0))
    for at, radius in (((12, 15), 6.0), ((35, 50), 10.0)):
        points, count = region_at(values, 0.5, at)
        assert encloses(points, (at[1] + 0.5, at[0] + 0.5))
        assert area(points) == pytest.approx(np.pi * radius**2, rel=0.05)
        assert count == np.count_nonzero(cone((50, 70), at, 2 * radius) >= 0.5)
    assert region_at(values, 0.5, (0, 0)) is None
