from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from medxai.errors import SettingsError
from medxai.learn.lung_us.metrics import (
    by_source,
    decide,
    decide_recordings,
    over_folds,
    pooled,
    score_names,
    scores,
    scores_of_counts,
)

NAMES = ("covid", "pneumonia", "healthy")


@given(seed=st.integers(0, 10_000), n=st.integers(1, 60))
def test_every_score_is_scikit_learns(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    truth, decided = random.integers(0, 3, n), random.integers(0, 3, n)
    found = scores(truth, decided, NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, decided))
        assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(truth, decided))
        kwargs = {"labels": [0, 1, 2], "average": None, "zero_division": np.nan}
        sensitivity = reference.recall_score(truth, decided, **kwargs)
        precision = reference.precision_score(truth, decided, **kwargs)
        f1 = reference.f1_score(truth, decided, **kwargs)
    for k, name in enumerate(NAMES):
        specificity = reference.recall_score(truth != k, decided != k, zero_division=np.nan)
        assert found[f"sensitivity_{name}"] == pytest.approx(sensitivity[k], nan_ok=True)
        assert found[f"specificity_{name}"] == pytest.approx(specificity, nan_ok=True)
        assert found[f"precision_{name}"] == pytest.approx(precision[k], nan_ok=True)
        assert found[f"f1_{name}"] == pytest.approx(f1[k], nan_ok=True)
        if np.isfinite(found[f"mcc_{name}"]):
            assert found[f"mcc_{name}"] == pytest.approx(reference.matthews_corrcoef(truth == k, decided == k))
        else:  # one side is empty, where scikit-learn says 0
            assert len(set((truth == k).tolist())) == 1 or len(set((decided == k).tolist())) == 1


def test_scores_of_a_hand_made_table() -> None:
    counts = [[3, 1, 0], [0, 4, 2], [1, 0, 9]]
    found = dict(zip(score_names(NAMES), scores_of_counts(counts).tolist(), strict=True))
    assert found["accuracy"] == pytest.approx(16 / 20)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 4 / 6 + 9 / 10) / 3)
    assert found["sensitivity_covid"] == pytest.approx(3 / 4)
    assert found["specificity_covid"] == pytest.approx(15 / 16)
    assert found["precision_healthy"] == pytest.approx(9 / 11)


def test_a_class_that_does_not_occur_is_not_counted_as_missed() -> None:
    found = scores([0, 0, 2], [0, 1, 2], NAMES)
    assert found["balanced_accuracy"] == pytest.approx(0.75)
    assert np.isnan(found["sensitivity_pneumonia"])
    with pytest.raises(SettingsError, match="no predictions"):
        scores([], [], NAMES)


def test_over_folds_leaves_undefined_scores_out() -> None:
    spread = over_folds([{"a": 0.5}, {"a": 0.7}, {"a": float("nan")}])["a"]
    assert (spread.mean, spread.folds) == (pytest.approx(0.6), 2)
    assert spread.sd == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert np.isnan(over_folds([{"a": 0.5}])["a"].sd)


def clustered(seed: int) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Twenty-four patients of thirty frames, of whom each is decided right or wrong as a whole."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(24) % 3, 30)
    wrong = np.repeat(random.random(24) < 0.3, 30)
    decided = np.where(wrong, (truth + 1) % 3, truth)
    patients = [f"p{i // 30}" for i in range(720)]
    return truth, decided, patients, [str(i) for i in range(720)]


@given(seed=st.integers(0, 1000))
def test_intervals_over_patients_are_wider_than_over_frames(seed: int) -> None:
    truth, decided, patients, frames = clustered(seed)
    if 0.05 < (truth == decided).mean() < 0.95:
        by_patient = pooled(truth, decided, patients, NAMES, resamples=400)["accuracy"]
        by_frame = pooled(truth, decided, frames, NAMES, resamples=400)["accuracy"]
        assert by_patient.value == by_frame.value == pytest.approx((truth == decided).mean())
        assert (by_patient.groups, by_frame.groups) == (24, 720)
        # Thirty frames that say the same carry the information of one: about the root of thirty wider.
        assert by_patient.high - by_patient.low > 3 * (by_frame.high - by_frame.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        truth = random.integers(0, 3, 120)
        decided = np.where(random.random(120) < 0.7, truth, (truth + 1) % 3)
        interval = pooled(truth, decided, [str(i) for i in range(120)], NAMES, resamples=400, seed=seed)["accuracy"]
        covered += interval.low <= 0.7 <= interval.high
    assert 178 <= covered <= 200


def test_resampling_counts_is_resampling_patients() -> None:
    truth, decided, patients, _ = clustered(5)
    interval = pooled(truth, decided, patients, NAMES, resamples=3000)["balanced_accuracy"]
    from medxai.learn.metrics import balanced_accuracy, bootstrap

    slow = bootstrap(balanced_accuracy, truth, np.eye(3)[decided], patients, n=3000, seed=1)
    assert interval.value == pytest.approx(slow.value)
    assert (interval.low, interval.high) == (pytest.approx(slow.low, abs=0.03), pytest.approx(slow.high, abs=0.03))


def test_a_source_group_of_one_class_shows_that_it_is() -> None:
    found = by_source([0, 0, 1, 2], [0, 1, 1, 2], ["b", "b", "a", "a"], ["x", "x", "y", "z"], NAMES)
    assert list(found) == ["a", "b"]
    assert (found["a"].classes, found["a"].accuracy, found["a"].patients) == (("pneumonia", "healthy"), 1.0, 2)
    assert (found["b"].classes, found["b"].balanced_accuracy, found["b"].n) == (("covid",), 0.5, 2)


def test_mean_and_majority_can_disagree() -> None:
    frames = [[0.51, 0.49, 0.0], [0.51, 0.49, 0.0], [0.0, 1.0, 0.0]]
    assert decide(frames, "majority")[0] == 0
    label, mean = decide(frames, "mean")
    assert label == 1
    assert mean == pytest.approx([0.34, 0.66, 0.0])
    # One vote each: the larger mean decides.
    assert decide([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0]], "majority")[0] == 1


@given(seed=st.integers(0, 1000))
def test_recordings_do_not_mix(seed: int) -> None:
    random = np.random.default_rng(seed)
    of = random.permutation(np.repeat([4, 7, 9], [1, 5, 8]))
    p = random.dirichlet(np.ones(3), len(of))
    for rule in ("mean", "majority"):
        indices, decided, mean = decide_recordings(p, of.tolist(), rule)
        assert indices.tolist() == [4, 7, 9]
        for k, index in enumerate(indices):
            label, expected = decide(p[of == index], rule)
            assert decided[k] == label
            assert mean[k] == pytest.approx(expected)


@pytest.mark.parametrize("bad", [[[2.0, -1.0]], [[0.2, 0.2]], [[np.nan, 1.0]], [[-0.1, -2.3]]])
def test_what_is_no_probability_is_not_averaged(bad: list[list[float]]) -> None:
    with pytest.raises(SettingsError, match="logarithms average wrongly"):
        decide(bad)
    with pytest.raises(SettingsError, match="at least one frame"):
        decide(np.zeros((0, 3)))
