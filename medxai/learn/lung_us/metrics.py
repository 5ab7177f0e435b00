"""Scores of frames and recordings: per class, per fold, per source group, with intervals over patients.

All of them follow from a confusion matrix, and the matrix of a resample of patients is the sum of theirs: one pass
over the predictions serves all resamples, where scikit-learn would count each anew. The tests compare every score with
scikit-learn's. Which scores: Born et al. 2021 (arXiv:2009.06116). One whose denominator is empty is nan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medxai.errors import SettingsError
from medxai.learn.metrics import Interval

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Rule = Literal["mean", "majority"]


@dataclass(frozen=True)
class Spread:
    """A score over folds.

    Attributes:
        mean: over the folds in which it is defined.
        sd: their sample standard deviation (divisor n - 1); nan for a single fold.
        folds: in which it is defined.
    """

    mean: float
    sd: float
    folds: int

    def __str__(self) -> str:
        """Read as ``0.83 +- 0.05 (5 folds)``."""
        return f"{self.mean:.3f} +- {self.sd:.3f} ({self.folds} folds)"


@dataclass(frozen=True)
class GroupScore:
    """What was decided in one source group; one that has a single class says nothing about telling classes apart.

    Attributes:
        n: recordings (or frames).
        patients: patients among them.
        classes: true classes that occur.
        accuracy: share decided right.
        balanced_accuracy: mean over the classes that occur.
    """

    n: int
    patients: int
    classes: tuple[str, ...]
    accuracy: float
    balanced_accuracy: float


def score_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the scores: ``accuracy``, ``balanced_accuracy``, then each of the others with every class's name."""
    each = ("sensitivity", "specificity", "precision", "f1", "mcc")
    return ("accuracy", "balanced_accuracy", *(f"{score}_{name}" for name in classes for score in each))


def scores_of_counts(counts: npt.ArrayLike) -> FloatArray:
    """Return ``[..., n_scores]`` scores of confusion matrices ``[..., K, K]`` (rows are the truth) by `score_names`.

    Sensitivity, specificity, precision, F1 and Matthews' correlation are those of a class against the rest. Balanced
    accuracy is the mean sensitivity of the classes that occur.
    """
    m = np.asarray(counts, dtype=np.float64)
    total = m.sum(axis=(-2, -1))[..., None]
    hit = np.diagonal(m, axis1=-2, axis2=-1)
    missed = m.sum(axis=-1) - hit
    false = m.sum(axis=-2) - hit
    rest = total - hit - missed - false
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity = hit / (hit + missed)
        each = np.stack(
            [
                sensitivity,
                rest / (rest + false),
                hit / (hit + false),
                2 * hit / (2 * hit + false + missed),
                (hit * rest - false * missed)
                / np.sqrt((hit + false) * (hit + missed) * (rest + false) * (rest + missed)),
            ],
            axis=-1,
        )
        occurs = (hit + missed) > 0
        balanced = np.where(occurs, sensitivity, 0.0).sum(axis=-1) / occurs.sum(axis=-1)
        accuracy = hit.sum(axis=-1) / total[..., 0]
    lead = np.stack([accuracy, balanced], axis=-1)
    return np.concatenate([lead, each.reshape(*each.shape[:-2], -1)], axis=-1)


def scores(truth: npt.ArrayLike, decided: npt.ArrayLike, classes: Sequence[str]) -> dict[str, float]:
    """Return every score of `score_names`.

    Args:
        truth: ``[N]`` class indices.
        decided: ``[N]`` class indices.
        classes: names in the order of the indices.

    Raises:
        SettingsError: nothing to score.
    """
    values = scores_of_counts(_counts(truth, decided, len(classes))[0]).tolist()
    return dict(zip(score_names(classes), values, strict=True))


def over_folds(per_fold: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Return mean and standard deviation over folds of every score; folds where it is undefined are left out."""
    spreads = {}
    for name in per_fold[0]:
        values = np.array([fold[name] for fold in per_fold])
        values = values[np.isfinite(values)]
        mean = float(values.mean()) if values.size else float("nan")
        sd = float(values.std(ddof=1)) if values.size > 1 else float("nan")
        spreads[name] = Spread(mean, sd, int(values.size))
    return spreads


def pooled(
    truth: npt.ArrayLike,
    decided: npt.ArrayLike,
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return every score over all folds with its 95 % interval by resampling patients.

    Percentile bootstrap over whole groups (Efron and Tibshirani 1993, chapter 13); resamples in which a score is
    undefined are left out of it.

    Args:
        truth: ``[N]`` class indices.
        decided: ``[N]`` out-of-fold decisions.
        groups: patient per sample.
        classes: names in the order of the indices.
        resamples: number of resamples.
        seed: of the draws.
    """
    y, d = np.asarray(truth), np.asarray(decided)
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    each = _counts(y, d, len(classes), member, len(names))
    random = np.random.default_rng(seed)
    times = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    drawn = scores_of_counts(np.tensordot(times, each, axes=1))
    found = {}
    for name, value, column in zip(score_names(classes), scores_of_counts(each.sum(0)).tolist(), drawn.T, strict=True):
        finite = column[np.isfinite(column)]
        low, high = np.percentile(finite, [2.5, 97.5]).tolist() if finite.size else (float("nan"), float("nan"))
        found[name] = Interval(value, low, high, len(y), len(names))
    return found


def by_source(
    truth: npt.ArrayLike,
    decided: npt.ArrayLike,
    sources: Sequence[str],
    patients: Sequence[str],
    classes: Sequence[str],
) -> dict[str, GroupScore]:
    """Return the scores of every source group, in alphabetical order."""
    y, d, where, who = (np.asarray(values) for values in (truth, decided, sources, patients))
    found = {}
    for source in np.unique(where).tolist():
        mine = where == source
        accuracy, balanced = scores_of_counts(_counts(y[mine], d[mine], len(classes))[0])[:2].tolist()
        present = tuple(classes[k] for k in np.unique(y[mine]).tolist())
        found[source] = GroupScore(int(mine.sum()), len(np.unique(who[mine])), present, accuracy, balanced)
    return found


def decide(probabilities: npt.ArrayLike, rule: Rule = "mean") -> tuple[int, FloatArray]:
    """Decide on one recording from its frames.

    Args:
        probabilities: ``[T, K]`` of the frames; probabilities, never their logarithms.
        rule: ``mean`` takes the class with the largest mean probability; ``majority`` the label that most frames
            have, and among equals the one with the largest mean probability.

    Returns:
        The class and the mean probabilities ``[K]``.

    Raises:
        SettingsError: no frame, or rows that are no probabilities.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not len(p):
        msg = "a decision needs at least one frame with probabilities [T, K]"
        raise SettingsError(msg)
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-3)):
        msg = "frames need probabilities that are at least 0 and sum to 1; logits and logarithms average wrongly"
        raise SettingsError(msg)
    mean = p.mean(axis=0)
    if rule == "mean":
        return int(mean.argmax()), mean
    votes = np.bincount(p.argmax(axis=1), minlength=p.shape[1])
    leading = np.flatnonzero(votes == votes.max())
    return int(leading[mean[leading].argmax()]), mean


def decide_recordings(
    probabilities: npt.ArrayLike, recording: Sequence[int], rule: Rule = "mean"
) -> tuple[IntArray, IntArray, FloatArray]:
    """Decide on every recording.

    Args:
        probabilities: ``[N, K]`` of all frames.
        recording: index of the recording of each frame.
        rule: see `decide`.

    Returns:
        Indices ``[R]`` of the recordings in ascending order, decisions ``[R]``, mean probabilities ``[R, K]``.
    """
    p, of = np.asarray(probabilities, dtype=np.float64), np.asarray(recording)
    indices = np.unique(of)
    results = [decide(p[of == index], rule) for index in indices]
    return indices, np.array([label for label, _ in results]), np.stack([mean for _, mean in results])


def _counts(
    truth: npt.ArrayLike, decided: npt.ArrayLike, n_classes: int, member: npt.ArrayLike = 0, n_members: int = 1
) -> IntArray:
    """Confusion matrices ``[n_members, K, K]``, rows the truth, of the groups that `member` numbers."""
    y, d = np.asarray(truth, dtype=np.int64), np.asarray(decided, dtype=np.int64)
    if not y.size:
        msg = "no predictions to score"
        raise SettingsError(msg)
    counts = np.zeros((n_members, n_classes, n_classes), dtype=np.int64)
    np.add.at(counts, (np.broadcast_to(member, y.shape), y, d), 1)
    return counts
