from __future__ import annotations

import numpy as np
import pytest

from medxai.learn.metrics import auroc, balanced_accuracy, bootstrap, recall


def test_metrics_of_a_small_example_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.6, 0.4]])
    assert balanced_accuracy(labels, p) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert recall(0)(labels, p) == pytest.approx(2 / 3)
    assert auroc(1)(labels, p) == pytest.approx(5 / 6)
    assert np.isnan(auroc(1)(labels[:3], p[:3]))
    assert np.isnan(recall(2)(labels, p))


def test_auroc_is_that_of_scikit_learn_with_ties_too() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    for digits in (0, 1, 6):
        labels, score = random.integers(0, 2, 90), np.round(random.normal(size=90), digits)
        found = auroc(1)(labels, np.stack([-score, score], axis=1))
        assert found == pytest.approx(roc_auc_score(labels, score))


def test_the_interval_holds_the_value_and_shrinks_with_more_groups() -> None:
    random = np.random.default_rng(0)

    def interval(n: int) -> float:
        labels = random.integers(0, 2, n)
        score = labels + random.normal(size=n)
        found = bootstrap(auroc(1), labels, np.stack([-score, score], 1), [str(i) for i in range(n)], n=400)
        assert found.low < found.value < found.high
        assert (found.n, found.groups) == (n, n)
        return found.high - found.low

    assert interval(1000) < 0.5 * interval(60)


def test_the_interval_covers_the_truth_as_often_as_it_claims() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        labels = np.repeat([0, 1], 40)
        right = random.random(80) < 0.8
        p = np.eye(2)[np.where(right, labels, 1 - labels)]
        found = bootstrap(balanced_accuracy, labels, p, [str(i) for i in range(80)], n=300)
        hits += found.low <= 0.8 <= found.high
    assert 87 <= hits <= 100


def test_copies_within_a_group_do_not_narrow_the_interval() -> None:
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1], 30)
    p = np.eye(2)[np.where(random.random(60) < 0.75, labels, 1 - labels)]
    once = bootstrap(balanced_accuracy, labels, p, [str(i) for i in range(60)], n=500)
    copied = bootstrap(
        balanced_accuracy, np.tile(labels, 5), np.tile(p, (5, 1)), [str(i) for i in range(60)] * 5, n=500
    )
    assert copied.groups == 60
    assert copied.value == pytest.approx(once.value)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.25)


def test_intervals_repeat_with_the_seed_and_print_short() -> None:
    labels, p = np.array([0, 1] * 20), np.random.default_rng(3).random((40, 2))
    groups = [str(i) for i in range(40)]
    assert bootstrap(auroc(1), labels, p, groups, n=100) == bootstrap(auroc(1), labels, p, groups, n=100)
    assert str(bootstrap(auroc(1), labels, p, groups, n=100)).count(".") == 3
