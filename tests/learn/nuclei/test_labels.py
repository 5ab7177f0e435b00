"""Labels from points: cells and their borders, clusters of known colours, M, and the target of detection."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medxai.learn.nuclei.labels import cell_borders, heat, make_labels, partition
from medxai.predict.nuclei_blocks import IGNORED, discs
from medxai.predict.nuclei_evidence import nearest_point
from sample_cases.synthetic_nuclei import fields


@pytest.mark.parametrize(("first", "second"), [((20, 10), (20, 50)), ((8, 30), (40, 30)), ((10, 12), (34, 60))])
def test_the_border_of_two_cells_is_the_perpendicular_bisector(first: tuple[int, int], second: tuple[int, int]) -> None:
    points = np.array([first, second], float)
    borders = cell_borders(nearest_point((48, 72), points))
    rows, columns = np.nonzero(borders)
    assert len(rows) > 40
    middle, along = points.mean(0), points[1] - points[0]
    off = ((np.stack([rows, columns], 1) - middle) @ along) / np.hypot(*along)
    assert np.abs(off).max() <= 1.5  # a line of two pixels about it
    assert abs(off.mean()) < 0.51  # pixels as far from both belong to one of them


def test_one_disc_for_every_point() -> None:
    field = fields(1, 3)[0]
    labels = make_labels(field.pixels, field.points, 11.0)
    _, n = ndimage.label(labels.voronoi == 1)
    assert n == len(field.points)
    assert np.median(np.bincount(ndimage.label(labels.voronoi == 1)[0].ravel())[1:]) == 13  # a disc of radius 2
    assert set(np.unique(labels.voronoi)) == {IGNORED, 0, 1}
    np.testing.assert_array_equal(labels.voronoi == 0, labels.borders)


def test_clusters_of_three_flat_colours_are_the_true_partition() -> None:
    """Nuclei, rings of cytoplasm about them, tissue."""
    shape, points = (100, 140), np.array([(25, 30), (60, 100), (75, 40)], float)
    nuclei, cytoplasm = discs(shape, points, 11), discs(shape, points, 16)
    pixels = np.full((*shape, 3), (240, 180, 210), np.uint8)
    pixels[cytoplasm], pixels[nuclei] = (190, 150, 200), (80, 70, 150)
    found = partition(pixels, points, 11.0)
    np.testing.assert_array_equal(found == 1, nuclei)
    np.testing.assert_array_equal(found == IGNORED, cytoplasm & ~nuclei)
    np.testing.assert_array_equal(found == 0, ~cytoplasm)


def test_m_is_precise_and_says_nothing_between() -> None:
    for field in fields(3, 8):
        labels, truth = make_labels(field.pixels, field.points, 11.0), field.instances > 0
        assert truth[labels.main == 1].mean() > 0.9
        assert (~truth)[labels.main == 0].mean() > 0.95
        assert 0.1 < (labels.main == IGNORED).mean() < 0.6
        rows, columns = field.points.astype(int).T
        assert (labels.main[rows, columns] == 1).all()


def test_lengths_follow_the_radius() -> None:
    """A field drawn at half the size has discs and margins of half the width."""
    large, small = fields(1, 5)[0], fields(1, 5, radius=5.5)[0]
    first, second = make_labels(large.pixels, large.points, 11.0), make_labels(small.pixels, small.points, 5.5)
    sizes = [np.median(np.bincount(ndimage.label(made.seeds)[0].ravel())[1:]) for made in (first, second)]
    assert sizes == [13, 5]
    share = [(m.main == 1).sum() / (f.instances > 0).sum() for m, f in ((first, large), (second, small))]
    assert share[0] == pytest.approx(share[1], abs=0.2)


def test_the_target_of_detection() -> None:
    points = np.array([(10, 20), (30, 5)], float)
    target = heat((48, 40), points, 6.0)
    assert target[10, 20] == target[30, 5] == 1
    assert target[10, 22] == pytest.approx(np.exp(-0.5))  # sigma is a third of the radius
    assert target[47, 39] < 1e-6


def test_tissue_is_the_farther_of_two_clusters_that_hold_no_point() -> None:
    """Stroma beside the nuclei and stroma far from them, both away from the discs that decide."""
    shape, points = (120, 120), np.array([(20, 20), (20, 60)], float)
    nuclei = discs(shape, points, 13)
    pixels = np.full((*shape, 3), (200, 120, 170), np.uint8)
    pixels[60:] = (245, 225, 240)
    pixels[nuclei] = (70, 60, 150)
    found = partition(pixels, points, 11.0)
    assert (found[nuclei] == 1).all()
    assert (found[70:] == 0).all()
