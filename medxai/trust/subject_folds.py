"""Folds of labelled subjects: classes alike in each, relatives together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medxai.errors import MismatchError


def subject_folds(
    truth: Sequence[int], kin: Sequence[str] | None = None, count: int = 5, seed: int = 0
) -> npt.NDArray[np.intp]:
    """Fold ``[S]`` in which each subject is tested.

    Args:
        truth: class of each.
        kin: family, recording or site of each; those of one are in one fold. None where every subject is alone.
        count: of folds; fewer where a class has fewer subjects or kin.
        seed: of the order.

    Raises:
        MismatchError: a class has fewer than two subjects or kin, or a fold would be trained without a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = np.asarray(truth)
    groups = np.arange(len(labels)).astype(str) if kin is None else np.asarray(kin)
    fewest = min(len({*groups[labels == label]}) for label in {*labels.tolist()})
    if fewest < 2:
        raise MismatchError("a class has one subject or family alone; training anew needs two of every class")
    options = {"n_splits": min(count, fewest), "shuffle": True, "random_state": seed}
    if kin is None:
        parts = StratifiedKFold(**options).split(labels, labels)
    else:
        parts = StratifiedGroupKFold(**options).split(labels, labels, groups)
    folds = np.zeros(len(labels), dtype=np.intp)
    for number, (training, tested) in enumerate(parts):
        if {*labels[training].tolist()} != {*labels.tolist()}:
            raise MismatchError("a fold would be trained without one of the classes; use fewer folds or larger groups")
        folds[tested] = number
    return folds
