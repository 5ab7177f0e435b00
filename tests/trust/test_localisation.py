"""Localisation against oracle maps, chance and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from medxai.trust import localisation as loc
from medxai.trust.boxes import box_iou, boxes_of, free_response, max_box_accuracy

MEASURES = {
    "pointing": loc.pointing_game, "mass": loc.mass_accuracy, "rank": loc.rank_accuracy, "auroc": loc.auroc,
    "auprc": loc.auprc, "dice": loc.dice, "iou": loc.iou, "area": loc.dice_area,
}  # fmt: skip


def masks(dims: int) -> np.ndarray:
    """Two masks on an uneven grid."""
    found = np.zeros((2, *(9, 14, 11)[:dims]), bool)
    found[0, 2:5, 3:9], found[1, 6:8, 10:13] = True, True
    return found


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", list(MEASURES))
def test_oracle_and_its_opposite(dims: int, name: str) -> None:
    truth = masks(dims)
    np.testing.assert_allclose(MEASURES[name](truth.astype(np.float32), truth).values, 1)
    wrong = MEASURES[name]((~truth).astype(np.float32), truth).values
    if name == "auprc":
        assert (wrong < truth.reshape(2, -1).mean(1) + 1e-9).all()
    else:
        np.testing.assert_allclose(wrong, 0, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_uniform_map_knows_nothing(dims: int) -> None:
    truth = masks(dims)
    share = truth.reshape(2, -1).mean(1)
    flat = np.ones(truth.shape, np.float32)
    for name in ("pointing", "mass", "rank", "auprc"):
        np.testing.assert_allclose(MEASURES[name](flat, truth).values, share)
    np.testing.assert_allclose(loc.mass_lift(flat, truth).values, 1)
    np.testing.assert_allclose(loc.auroc(flat, truth).values, 0.5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.integers(1, 40))
def test_areas_are_those_of_scikit_learn(seed: int, levels: int) -> None:
    source = np.random.default_rng(seed)
    maps = source.integers(0, levels + 1, (1, 6, 7, 5)).astype(np.float32)
    truth = source.random((1, 6, 7, 5)) < 0.2
    if not truth.any() or not maps.any():
        return
    assert loc.auroc(maps, truth).values[0] == pytest.approx(roc_auc_score(truth.ravel(), maps.ravel()))
    assert loc.auprc(maps, truth).values[0] == pytest.approx(average_precision_score(truth.ravel(), maps.ravel()))


@pytest.mark.parametrize("name", list(MEASURES))
def test_nothing_is_ever_a_silent_hit(name: str) -> None:
    maps = np.random.default_rng(0).random((4, 6, 8)).astype(np.float32)
    truth = np.zeros((4, 6, 8), bool)
    truth[1:, 2:4, 2:4] = True
    maps[1], maps[2, 0, 0] = 0, np.nan
    found = MEASURES[name](maps, truth)
    assert np.isnan(found.values[:3]).all()
    assert np.isfinite(found.values[3])
    assert found.reasons == (
        "the mask is empty", "the map has no positive evidence", "the map holds NaN or infinite values", "",
    )  # fmt: skip
    assert found.undefined == 3
    assert found.mean == found.values[3]


def test_a_mask_on_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="different grids"):
        loc.mass_accuracy(np.ones((1, 4, 4)), np.ones((1, 4, 5), bool))


def test_pointing_game_counts_all_maxima_and_its_tolerance_in_mm() -> None:
    maps, truth = np.zeros((1, 5, 20)), np.zeros((1, 5, 20), bool)
    truth[0, 2, 10] = True
    maps[0, 2, 10] = maps[0, 2, 13] = 1
    assert loc.pointing_game(maps, truth).values[0] == 0.5
    assert loc.pointing_game(maps, truth, (1.0, 2.0), 5.9).values[0] == 0.5
    assert loc.pointing_game(maps, truth, (1.0, 2.0), 6.0).values[0] == 1


def test_negative_evidence_is_not_evidence() -> None:
    truth = masks(2)
    maps = np.where(truth, 1.0, -5.0)
    np.testing.assert_allclose(loc.mass_accuracy(maps, truth).values, 1)


def test_threshold_is_chosen_on_validation_cases() -> None:
    truth = masks(2)
    maps = truth * 1.0 + 0.55
    assert loc.best_tau(maps, truth) == pytest.approx(0.4, abs=0.06)
    with pytest.raises(ValueError, match="no sample"):
        loc.best_tau(np.zeros_like(maps), truth)


def test_boxes() -> None:
    region = np.zeros((6, 7, 8), bool)
    region[1:3, 2:5, 3:4], region[5, 6, 7] = True, True
    found = boxes_of(region)
    assert sorted(found.tolist()) == [[[1, 3], [2, 5], [3, 4]], [[5, 6], [6, 7], [7, 8]]]
    np.testing.assert_allclose(box_iou(found, found), np.eye(2))
    a, b = np.array([[[0, 4], [0, 4]]]), np.array([[[2, 6], [0, 4]]])
    assert box_iou(a, b)[0, 0] == pytest.approx(8 / 24)


@pytest.mark.parametrize("dims", [2, 3])
def test_max_box_accuracy(dims: int) -> None:
    truth = masks(dims)
    good = max_box_accuracy(truth * 1.0, truth)
    assert good.value == 1
    assert set(good.by_limit) == ({0.1, 0.3, 0.5} if dims == 3 else {0.3, 0.5, 0.7})
    np.testing.assert_allclose(good.hits.values, 1)
    half = truth * 1.0
    half[1] = np.roll(truth[1], -6, axis=1)
    assert max_box_accuracy(half, truth).value == 0.5
    assert np.isnan(max_box_accuracy(np.zeros(truth.shape), truth).value)


def test_free_response() -> None:
    truth, maps = np.zeros((2, 20, 20), bool), np.zeros((2, 20, 20))
    truth[0, 2:5, 2:5] = truth[0, 10:13, 10:13] = True
    maps[0, 3:6, 3:6], maps[0, 16:18, 16:18], maps[1, 0:2, 0:2] = 1.0, 0.6, 0.8
    found = free_response(maps, truth, (0.5, 0.7, 0.95))
    assert (found.images, found.lesions) == (2, 2)
    np.testing.assert_allclose(found.sensitivity, 0.5)
    np.testing.assert_allclose(found.false_positives, [1.0, 0.5, 0.5])  # the second image's own maximum counts
    assert found.at(0.5) == 0.5
    assert np.isnan(found.at(0.1))
    assert np.isnan(free_response(maps, np.zeros_like(truth), (0.5,)).sensitivity).all()


@pytest.mark.parametrize("name", list(MEASURES))
def test_a_volume_of_one_slice_is_an_image(name: str) -> None:
    truth = masks(2)
    maps = np.random.default_rng(1).random(truth.shape)
    np.testing.assert_allclose(
        MEASURES[name](maps[:, None], truth[:, None]).values, MEASURES[name](maps, truth).values, atol=1e-6
    )
