from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medxai.errors import SettingsError
from medxai.learn.lung_us.cohort import CLASSES, Recording, class_indices, read_negatives, read_recordings
from medxai.learn.lung_us.folds import APART, inner_validation, leaking_frame_folds, patient_folds, straddling
from medxai.learn.lung_us.frames import frame_indices
from tests.tools import require_data


def recording(number: int, label: str, patient: str, kind: str = "video") -> Recording:
    return Recording(f"{number}.mp4", label, kind, patient, "clinic", "x", 30, (64, 64), 25.0)  # type: ignore[arg-type]


def cohort(seed: int, patients: int = 40) -> list[Recording]:
    """Patients with one to six recordings; some have two classes, some are viral, some only stills."""
    random = np.random.default_rng(seed)
    found: list[Recording] = []
    for number in range(patients):
        label = CLASSES[number % 3] if number % 13 else "viral_pneumonia"
        for _ in range(random.integers(1, 7)):
            other = CLASSES[int(random.integers(3))] if label in CLASSES and random.random() < 0.05 else label
            kind = "image" if random.random() < 0.2 else "video"
            found.append(recording(len(found), other, f"p{number}", kind))
    return found


@given(seed=st.integers(0, 10_000), n_folds=st.integers(2, 5))
def test_no_patient_is_in_two_folds_and_every_recording_in_one(seed: int, n_folds: int) -> None:
    recordings = cohort(seed)
    labels = class_indices(recordings)
    fold = patient_folds(recordings, labels, n_folds, seed)
    assert straddling(fold, [r.patient for r in recordings]) == 0
    assert all((f == APART) == (label == -1) for f, label in zip(fold.tolist(), labels, strict=True))
    assert set(fold.tolist()) - {APART} == set(range(n_folds))
    for number in range(n_folds):
        clips = {labels[i] for i in np.flatnonzero(fold == number) if recordings[i].kind == "video"}
        assert clips == {0, 1, 2}
    assert np.array_equal(fold, patient_folds(recordings, labels, n_folds, seed))


@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.4))
def test_the_inner_split_is_by_patient_and_leaves_every_class_on_both_sides(seed: int, share: float) -> None:
    recordings = cohort(seed)
    labels = class_indices(recordings)
    fold = patient_folds(recordings, labels, 4, seed)
    training = np.flatnonzero((fold != 0) & (fold != APART)).tolist()
    validation = inner_validation(recordings, labels, training, share, seed)
    assert not validation[fold == 0].any()
    assert not validation[fold == APART].any()
    inside = {recordings[i].patient for i in training if validation[i]}
    assert not inside & {recordings[i].patient for i in training if not validation[i]}
    for side in (True, False):
        assert {labels[i] for i in training if validation[i] == side} == {0, 1, 2}
    assert np.array_equal(validation, inner_validation(recordings, labels, training, share, seed))


def test_a_class_with_too_few_patients_is_named() -> None:
    recordings = [recording(i, CLASSES[i % 2], f"p{i}") for i in range(20)]
    recordings += [recording(20 + i, "healthy", f"h{i % 3}") for i in range(9)]
    labels = class_indices(recordings)
    with pytest.raises(SettingsError, match="class 2 has 3 patients for 5 folds"):
        patient_folds(recordings, labels, 5)
    assert set(patient_folds(recordings, labels, 3).tolist()) == {0, 1, 2}
    # One covid patient with two clips and two healthy ones with stills: clips cannot be in both folds.
    few = [recording(0, "covid", "a"), recording(1, "covid", "a"), recording(2, "covid", "b", "image")]
    few += [recording(3 + i, "healthy", f"h{i}") for i in range(4)]
    with pytest.raises(SettingsError, match="a clip of every class"):
        patient_folds(few, class_indices(few), 2)


def test_the_last_training_patient_of_a_class_is_never_taken() -> None:
    # Patient a has the only covid clip and also a healthy one: only b can be spared.
    pair = [recording(0, "covid", "a"), recording(1, "healthy", "a"), recording(2, "healthy", "b")]
    for seed in range(20):
        assert inner_validation(pair, class_indices(pair), [0, 1, 2], 0.5, seed).tolist() == [False, False, True]


def test_a_patient_with_most_of_a_class_stays_in_training() -> None:
    sizes = {"a": 10, "b": 2, "c": 2, "d": 1}
    names = [name for name, size in sizes.items() for _ in range(size)]
    recordings = [recording(i, "covid", name) for i, name in enumerate(names)]
    for seed in range(20):
        validation = inner_validation(recordings, [0] * 15, range(15), 0.2, seed)
        assert not validation[:10].any()
        assert 3 <= validation.sum() <= 4
    # Where everybody has much, the one with least is taken.
    two = [recording(i, "covid", "a" if i < 6 else "b") for i in range(10)]
    assert inner_validation(two, [0] * 10, range(10)).tolist() == [False] * 6 + [True] * 4


def test_the_leaking_split_leaks() -> None:
    recordings = cohort(3)
    labels = class_indices(recordings)
    frames = [i for i in range(len(recordings)) for _ in range(12)]
    patients = [recordings[i].patient for i in frames]
    leaking = leaking_frame_folds([labels[i] for i in frames])
    assert straddling(leaking, patients) > 0.95
    assert straddling(patient_folds(recordings, labels)[frames], patients) == 0
    assert all((leaking[k] == APART) == (labels[i] == -1) for k, i in enumerate(frames))


@pytest.mark.data
def test_the_real_folds_hold_every_class_of_clips_and_split_no_patient() -> None:
    recordings = read_recordings(require_data("us_lung").parent)
    labels = class_indices(recordings)
    fold = patient_folds(recordings, labels)
    patients = [r.patient for r in recordings]
    assert straddling(fold, patients) == 0
    assert int((fold == APART).sum()) == 2
    sizes = Counter(fold.tolist())
    assert min(sizes[k] for k in range(5)) >= 20
    clips = Counter((int(f), r.label) for f, r in zip(fold, recordings, strict=True) if r.kind == "video" and f >= 0)
    assert len(clips) == 15
    for number in range(5):
        training = np.flatnonzero((fold != number) & (fold != APART)).tolist()
        validation = inner_validation(recordings, labels, training, seed=number)
        for side in (True, False):
            assert {(labels[i]) for i in training if validation[i] == side and recordings[i].kind == "video"} == {
                0,
                1,
                2,
            }
    # By file instead of by patient, the four people with six clips each would be on both sides.
    by_frame = [i for i, r in enumerate(recordings) for _ in frame_indices(r.frames, r.frame_rate or 25)]
    leaking = leaking_frame_folds([labels[i] for i in by_frame])
    assert straddling(leaking, [patients[i] for i in by_frame]) > 0.6


@pytest.mark.data
def test_real_negatives_fit_into_the_same_folds() -> None:
    data = require_data("us_lung").parent
    recordings = (*read_recordings(data), *read_negatives(data))
    labels = class_indices(recordings, uninformative=True)
    fold = patient_folds(recordings, labels)
    assert straddling(fold, [r.patient for r in recordings]) == 0
    for number in range(5):
        assert {labels[i] for i in np.flatnonzero(fold == number)} == {0, 1, 2, 3}
