"""Folds that keep every patient (or group of near-duplicates) on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from medxai.errors import SettingsError

IntArray = npt.NDArray[np.int64]


def grouped_folds(labels: Sequence[int], groups: Sequence[str], n_folds: int, seed: int) -> IntArray:
    """Assign each sample to a fold, stratified by label, with whole groups per fold.

    Args:
        labels: class index per sample.
        groups: patient or near-duplicate group per sample.
        n_folds: number of folds.
        seed: order of the groups before they are dealt out.

    Returns:
        ``[N]`` fold number 0 .. `n_folds` - 1 of the fold in which the sample is held out.

    Raises:
        SettingsError: fewer groups than folds, or a fold without one of the classes.
    """
    y, g = np.asarray(labels), np.asarray(groups)
    if len(np.unique(g)) < n_folds:
        msg = f"{len(np.unique(g))} groups cannot fill {n_folds} folds"
        raise SettingsError(msg)
    fold = np.full(len(y), -1, dtype=np.int64)
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(np.zeros(len(y)), y, g)):
        fold[held_out] = number
    check_groups(fold, groups)
    for number in range(n_folds):
        lacking = sorted(set(y.tolist()) - set(y[fold == number].tolist()))
        if lacking:
            msg = f"fold {number} holds no sample of class {lacking}; use fewer folds"
            raise SettingsError(msg)
    return fold


def check_groups(fold: IntArray, groups: Sequence[str]) -> None:
    """Refuse folds that split a group or leave a sample out.

    Raises:
        SettingsError: naming the first group that straddles, or the number of unassigned samples.
    """
    if (fold < 0).any():
        msg = f"{int((fold < 0).sum())} samples are in no fold"
        raise SettingsError(msg)
    seen: dict[str, int] = {}
    for number, group in zip(fold.tolist(), groups, strict=True):
        if seen.setdefault(group, number) != number:
            msg = f"group {group} is in folds {seen[group]} and {number}"
            raise SettingsError(msg)
