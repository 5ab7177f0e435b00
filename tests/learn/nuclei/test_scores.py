"""Scores of objects: perfect, hand-computed and empty cases."""

from __future__ import annotations

import numpy as np
import pytest

from medxai.learn.nuclei.scores import (
    NAMES,
    aggregated_jaccard,
    detection_f1,
    middles,
    object_dice,
    panoptic,
    score_field,
)
from sample_cases.synthetic_nuclei import fields


def test_a_perfect_result_scores_one() -> None:
    truth = fields(1, 2)[0].instances
    centres = middles(truth, np.full((truth.max(), 2), np.nan))
    renamed = np.where(truth > 0, truth.max() + 1 - truth, 0).astype(np.int32)  # names of objects do not matter
    found = score_field(renamed, truth, centres[::-1], centres, 11)
    assert tuple(found) == NAMES
    assert found == {name: pytest.approx(1.0, abs=1e-6) for name in NAMES}


def imperfect() -> tuple[np.ndarray, np.ndarray]:
    """Three true objects of 8, 12 and 4 pixels; found: 6 of the first, 9 of the second with 3 more, and 5 elsewhere."""
    truth, found = np.zeros((10, 12), np.int32), np.zeros((10, 12), np.int32)
    truth[0, :8], truth[2, :12], truth[4, :4] = 1, 2, 3
    found[0, :6] = 1
    found[2, 3:12], found[3, :3] = 2, 2
    found[8, :5] = 3
    return found, truth


def test_a_hand_computed_case() -> None:
    found, truth = imperfect()
    # pairs: 6 / 8 and 9 / 15; not met: 4 true pixels, 5 found ones
    assert aggregated_jaccard(found, truth) == pytest.approx((6 + 9) / (8 + 15 + 4 + 5))
    quality = panoptic(found, truth)
    assert quality["dq"] == pytest.approx(2 / 3)  # 2 met, 1 found in vain, 1 missed
    assert quality["sq"] == pytest.approx((6 / 8 + 9 / 15) / 2)
    assert quality["pq"] == pytest.approx(quality["dq"] * quality["sq"])
    first, second = 2 * 6 / 14, 2 * 9 / 24
    true_side = (8 * first + 12 * second) / 24
    found_side = (6 * first + 12 * second) / 23
    assert object_dice(found, truth) == pytest.approx((true_side + found_side) / 2)
    scores = score_field(found, truth, np.zeros((0, 2)), np.zeros((0, 2)), 3)
    assert scores["dice"] == pytest.approx(2 * 15 / (24 + 23))
    assert scores["iou"] == pytest.approx(15 / 32)


def test_one_object_for_two_is_punished() -> None:
    truth = np.zeros((6, 10), np.int32)
    truth[1:5, 1:5], truth[1:5, 5:9] = 1, 2
    merged = (truth > 0).astype(np.int32)
    # the first takes it (16 / 32), the second too, as the algorithm has it: each adds the whole union
    assert aggregated_jaccard(merged, truth) == pytest.approx(32 / 64)
    assert panoptic(merged, truth)["pq"] == 0


def test_detection_pairs_one_to_one() -> None:
    centres = np.array([(10.0, 10.0), (30.0, 10.0)])
    assert detection_f1(np.array([(10.0, 12.0), (12.0, 10.0), (33.0, 10.0)]), centres, 5) == pytest.approx(4 / 5)
    assert detection_f1(np.array([(16.0, 10.0)]), centres, 5) == 0


def test_empty_fields() -> None:
    none, one = np.zeros((5, 7), np.int32), np.zeros((5, 7), np.int32)
    one[2, 3] = 1
    nowhere, somewhere = np.zeros((0, 2)), np.array([(2.0, 3.0)])
    assert set(score_field(none, none, nowhere, nowhere, 3).values()) == {1.0}
    assert set(score_field(one, none, somewhere, nowhere, 3).values()) == {0.0}
    assert set(score_field(none, one, nowhere, somewhere, 3).values()) == {0.0}


def test_without_a_seed_the_centroid_counts() -> None:
    labels = np.zeros((8, 9), np.int32)
    labels[1:4, 2:5], labels[6, 6] = 1, 2
    found = middles(labels, np.array([(np.nan, np.nan), (6.0, 6.0)]))
    np.testing.assert_allclose(found, [(2, 3), (6, 6)])
