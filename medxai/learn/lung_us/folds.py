"""Folds by patient, the inner split for early stopping, and a split that leaks on purpose.

The publication split by video and stopped early on the test fold (Born et al. 2021; the metadata shows 24 clips of
four people). Here a patient is on one side only, and what decides when to stop is never the fold that is reported.
`leaking_frame_folds` deals out single frames: neighbours of a test frame are then trained on, and the score says
nothing about a new patient. It exists to show how large that error is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from medxai.errors import SettingsError
from medxai.learn.lung_us.cohort import Recording
from medxai.learn.splits import check_groups

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Fold of a recording that is in no fold: reported apart.
APART = -1
#: Orders of the patients that are tried until every fold holds a clip of every class.
_TRIES = 500


def patient_folds(recordings: Sequence[Recording], labels: Sequence[int], n_folds: int = 5, seed: int = 0) -> IntArray:
    """Assign each recording to the fold in which it is held out, all of a patient's to the same.

    Folds are stratified by class (scikit-learn's `StratifiedGroupKFold`). Of the orders of patients that `seed` and
    the numbers after it give, the first is taken with which every fold holds a clip (a still where a class has no
    clips) of every class.

    Args:
        recordings: stills and clips; a patient may have several, and of several classes.
        labels: class index per recording; -1 is reported apart and gets the fold `APART`.
        n_folds: number of folds.
        seed: first order that is tried.

    Returns:
        ``[N]`` fold number 0 .. `n_folds` - 1, or `APART`.

    Raises:
        SettingsError: a class has fewer patients than folds, or no order fills every fold.
    """
    y = np.asarray(labels, dtype=np.int64)
    used = np.flatnonzero(y >= 0)
    patients = np.array([recording.patient for recording in recordings])
    for label in np.unique(y[used]).tolist():
        if len(np.unique(patients[y == label])) < n_folds:
            msg = f"class {label} has {len(np.unique(patients[y == label]))} patients for {n_folds} folds; use fewer"
            raise SettingsError(msg)
    counted = _counted(recordings, y)
    fold = np.full(len(y), APART, dtype=np.int64)
    for order in range(seed, seed + _TRIES):
        splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=order)
        for number, (_, held_out) in enumerate(splitter.split(np.zeros(len(used)), y[used], patients[used])):
            fold[used[held_out]] = number
        filled = {(int(fold[i]), int(y[i])) for i in np.flatnonzero(counted)}
        if len(filled) == n_folds * len(np.unique(y[used])):
            check_groups(fold[used], patients[used].tolist())
            return fold
    msg = f"no way was found to put a clip of every class into each of {n_folds} folds; use fewer folds"
    raise SettingsError(msg)


def inner_validation(
    recordings: Sequence[Recording], labels: Sequence[int], training: Sequence[int], share: float = 0.2, seed: int = 0
) -> BoolArray:
    """Choose patients of a fold's training set whose recordings decide when to stop and how to calibrate.

    For every class and kind, rarest first, patients are drawn until `share` of the recordings is reached. A patient
    who would take it beyond one and a half times that is passed over, unless all would: then the one with the fewest
    recordings is taken. The last training patient of a class and kind is never taken.

    Args:
        recordings: all recordings.
        labels: class index of each.
        training: indices that are not held out.
        share: of the recordings of a class and kind.
        seed: of the draw.

    Returns:
        ``[N]`` True for validation; False for the rest, held out or not. A class with one training patient has none.
    """
    strata: dict[tuple[int, str], Counter[str]] = {}
    for i in training:
        strata.setdefault((int(labels[i]), recordings[i].kind), Counter())[recordings[i].patient] += 1
    random = np.random.default_rng(seed)
    chosen: set[str] = set()
    for _, counts in sorted(strata.items(), key=lambda item: (len(item[1]), item[0])):
        aim = share * counts.total()
        drawn = random.permutation(sorted(counts)).tolist()
        for limit, order in ((max(1.0, 1.5 * aim), drawn), (np.inf, sorted(drawn, key=lambda name: counts[name]))):
            for patient in order:
                inside = sum(counts[name] for name in chosen)
                wanted = inside < aim if np.isfinite(limit) else not inside
                if wanted and inside + counts[patient] <= limit and _spared(patient, chosen, strata):
                    chosen.add(patient)
    validation = np.zeros(len(recordings), dtype=bool)
    validation[[i for i in training if recordings[i].patient in chosen]] = True
    return validation


def leaking_frame_folds(frame_labels: Sequence[int], n_folds: int = 5, seed: int = 0) -> IntArray:
    """Assign single frames to folds at random, stratified by class: the mistake, for the documented experiment only.

    Args:
        frame_labels: class index per frame; -1 gets the fold `APART`.
        n_folds: number of folds.
        seed: of the order.
    """
    y = np.asarray(frame_labels, dtype=np.int64)
    used = np.flatnonzero(y >= 0)
    fold = np.full(len(y), APART, dtype=np.int64)
    splitter = StratifiedKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(np.zeros(len(used)), y[used])):
        fold[used[held_out]] = number
    return fold


def straddling(fold: Sequence[int] | IntArray, groups: Sequence[str]) -> float:
    """Return the share of groups with members on both sides of a split: 0 is safe, 1 is a full leak.

    Args:
        fold: fold per sample; samples of fold `APART` do not count.
        groups: patient (or file) per sample.
    """
    sides: dict[str, set[int]] = {}
    for number, group in zip(np.asarray(fold).tolist(), groups, strict=True):
        if number != APART:
            sides.setdefault(group, set()).add(number)
    return sum(len(numbers) > 1 for numbers in sides.values()) / max(1, len(sides))


def _spared(patient: str, chosen: set[str], strata: Mapping[tuple[int, str], Counter[str]]) -> bool:
    """Whether every class and kind of `patient` keeps another patient for training."""
    return patient not in chosen and all(
        any(name not in chosen and name != patient for name in counts)
        for counts in strata.values()
        if patient in counts
    )


def _counted(recordings: Sequence[Recording], y: IntArray) -> BoolArray:
    """Recordings of the kind that every fold must hold: clips, or stills of classes without clips."""
    video = np.array([recording.kind == "video" for recording in recordings])
    with_clips = {int(label) for label in y[video]}
    return np.array(
        [
            (label >= 0) and (is_video or label not in with_clips)
            for label, is_video in zip(y.tolist(), video.tolist(), strict=True)
        ]
    )
