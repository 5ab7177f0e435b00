from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medxai.errors import SettingsError
from medxai.learn.splits import check_groups, grouped_folds
from tests.tools import require_data


@given(seed=st.integers(0, 1000), n_folds=st.integers(2, 5))
@settings(deadline=None, max_examples=30)
def test_a_group_is_never_on_both_sides(seed: int, n_folds: int) -> None:
    random = np.random.default_rng(seed)
    groups = [f"g{v}" for v in random.integers(0, 60, 150)]
    label_of = {g: i % 3 for i, g in enumerate(sorted(set(groups)))}
    fold = grouped_folds([label_of[g] for g in groups], groups, n_folds, seed)
    assert set(fold.tolist()) == set(range(n_folds))
    for number in range(n_folds):
        held_out = {g for g, f in zip(groups, fold, strict=True) if f == number}
        trained = {g for g, f in zip(groups, fold, strict=True) if f != number}
        assert not held_out & trained


def test_folds_repeat_with_the_seed() -> None:
    groups = [str(i // 2) for i in range(60)]
    labels = [(i // 2) % 3 for i in range(60)]
    assert np.array_equal(grouped_folds(labels, groups, 5, 1), grouped_folds(labels, groups, 5, 1))
    assert not np.array_equal(grouped_folds(labels, groups, 5, 1), grouped_folds(labels, groups, 5, 2))


def test_a_straddling_group_is_named() -> None:
    with pytest.raises(SettingsError, match="group b is in folds 1 and 0"):
        check_groups(np.array([0, 1, 0]), ["a", "b", "b"])
    with pytest.raises(SettingsError, match="1 samples are in no fold"):
        check_groups(np.array([0, -1]), ["a", "b"])


def test_too_few_groups_or_a_fold_without_a_class_are_refused() -> None:
    with pytest.raises(SettingsError, match="2 groups cannot fill 3 folds"):
        grouped_folds([0, 1, 0], ["a", "b", "b"], 3, 0)
    with pytest.raises(SettingsError, match="holds no sample of class"):
        grouped_folds([0, 0, 0, 1], ["a", "b", "c", "d"], 2, 0)


def test_the_breast_images_split_by_near_duplicates() -> None:
    with require_data("us_breast_busi", "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    groups = [row["duplicate_group"] for row in rows]
    labels = [("normal", "benign", "malignant").index(row["label"]) for row in rows]
    fold = grouped_folds(labels, groups, 5, 20)
    share = [np.bincount(np.array(labels)[fold == k], minlength=3) / (fold == k).sum() for k in range(5)]
    assert np.ptp(share, axis=0).max() < 0.06
