"""Classification metrics with bootstrap intervals over patients, not over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.trust.ranks import area_under_roc

Array = npt.NDArray[np.generic]
Metric = Callable[[Array, Array], float]


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval.

    Attributes:
        value: metric over all samples.
        low: 2.5th percentile of the resamples.
        high: 97.5th percentile.
        n: number of samples.
        groups: number of groups that were resampled.
    """

    value: float
    low: float
    high: float
    n: int
    groups: int

    def __str__(self) -> str:
        """Read as ``0.83 (0.79-0.87)``."""
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"

    def as_dict(self) -> dict[str, float | int]:
        """Return rounded numbers for a JSON file."""
        numbers = {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}
        return {**numbers, "n": self.n, "groups": self.groups}


def balanced_accuracy(labels: Array, probabilities: Array) -> float:
    """Mean over the classes present of the share of their samples that are decided right.

    Args:
        labels: ``[N]`` class indices.
        probabilities: ``[N, K]``; the decision is the largest.
    """
    decided = np.asarray(probabilities).argmax(axis=1)
    return float(np.mean([np.mean(decided[labels == k] == k) for k in np.unique(labels)]))


def auroc(index: int) -> Metric:
    """Return the one-against-rest area under the ROC curve of class `index`; nan when one side is empty."""

    def measure(labels: Array, probabilities: Array) -> float:
        truth = np.asarray(labels) == index
        return area_under_roc(truth, np.asarray(probabilities)[:, index])

    return measure


def recall(index: int) -> Metric:
    """Return the share of the samples of class `index` that are decided right; nan when there are none."""

    def measure(labels: Array, probabilities: Array) -> float:
        mine = np.asarray(labels) == index
        return float((np.asarray(probabilities)[mine].argmax(axis=1) == index).mean()) if mine.any() else float("nan")

    return measure


def bootstrap(
    metric: Metric, labels: Array, probabilities: Array, groups: Sequence[str], *, n: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap over whole groups (Efron and Tibshirani 1993, chapter 13).

    Resamples in which the metric is undefined are left out.

    Args:
        metric: function of labels ``[N]`` and probabilities ``[N, K]``.
        labels: class indices.
        probabilities: per class.
        groups: patient or near-duplicate group per sample; groups are drawn with replacement.
        n: number of resamples.
        seed: of the draws.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(inverse == g) for g in range(len(names))]
    random = np.random.default_rng(seed)
    values = []
    for _ in range(n):
        chosen = np.concatenate([members[g] for g in random.integers(0, len(names), len(names))])
        values.append(metric(labels[chosen], probabilities[chosen]))
    finite = np.array(values)[np.isfinite(values)]
    low, high = np.percentile(finite, [2.5, 97.5]) if finite.size else (float("nan"), float("nan"))
    return Interval(metric(labels, probabilities), float(low), float(high), len(labels), len(names))
