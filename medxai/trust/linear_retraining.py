"""A linear model trained anew without some regions: is what they tell found nowhere else?

Logistic regression on the edges of a subject's matrices, as Wang et al. 2024 (arXiv:2411.07121) train their network
anew without the visual one. The penalty is on the sum of squares, so that the fit depends on the products between
subjects alone: thousands of edges cost what there are subjects, and every random set of regions can be trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medxai.prepare.brain.subject import SubjectFeatures
from medxai.trust.fusion_ablation import score_rows
from medxai.trust.network_removal import Array, Mask


class LinearRetraining:
    """Score of `medxai.trust.network_ablation.NetworkAblation`: ``removed [N]`` -> rows as of `FusionAblation`.

    An edge counts when both of its regions are there. Of dynamic connectivity the mean and the standard deviation over
    windows are used, since windows of two subjects at rest do not correspond. Every feature is standardised by the
    training subjects of the fold; who lacks a matrix has their mean. The mean square norm of a subject is 1 however
    many edges are left, so that the penalty is the same for each set.

    The log-odds of a fold are those beyond its training subjects' share of the class; without any edge they are 0.

    Args:
        subjects: all over the same regions.
        matrices: which of ``sfc``, ``dfc``, ``fa``.
        truth: index of the true class of each.
        positive: index of the explained class.
        folds: ``[S]`` in which each is tested, see `medxai.learn.splits`.
        strength: ``C`` of scikit-learn: larger fits closer.
    """

    def __init__(
        self, subjects: Sequence[SubjectFeatures], matrices: Sequence[str], truth: Sequence[int], positive: int,
        folds: npt.ArrayLike, strength: float = 100.0,
    ) -> None:  # fmt: skip
        self._truth, self._positive, self._strength = np.asarray(truth), positive, strength
        self._folds = np.asarray(folds)
        self._ends = np.triu_indices(len(subjects[0].regions), 1)
        #: ``[S, F, E]``: edges last, NaN where a subject lacks a matrix.
        features = np.concatenate([_edges(subjects, name, self._ends) for name in matrices], axis=1)
        self._scaled = [_standardised(features, self._folds != fold) for fold in range(int(self._folds.max()) + 1)]

    def __call__(self, removed: Mask) -> Array:
        """See the class."""
        there = ~(removed[self._ends[0]] | removed[self._ends[1]])
        rows = np.empty((len(self._truth), 3))
        for fold, scaled in enumerate(self._scaled):
            tested = self._folds == fold
            classes = max(int(self._truth.max()), self._positive) + 1
            shares = np.bincount(self._truth[~tested], minlength=classes) / (~tested).sum()
            known = self._log_probabilities(scaled[:, :, there].reshape(len(scaled), -1), tested, shares)
            found = score_rows(known, self._truth[tested], self._positive)
            if shares[self._positive] > 0:
                found[:, 1] -= np.log(shares[self._positive] / (1 - shares[self._positive]))
            rows[tested] = found
        return rows

    def _log_probabilities(self, data: npt.NDArray[np.float32], tested: Mask, shares: Array) -> Array:
        """``[tested, K]``."""
        from sklearn.linear_model import LogisticRegression

        with np.errstate(divide="ignore"):
            prior = np.log(shares)
        reduced = _reduced(data)
        known = np.tile(prior, (int(tested.sum()), 1))
        if reduced is not None:
            model = LogisticRegression(C=self._strength, max_iter=1000, tol=1e-6)
            model.fit(reduced[~tested], self._truth[~tested])
            known[:, model.classes_] = model.predict_log_proba(reduced[tested])
        return known


def _edges(subjects: Sequence[SubjectFeatures], name: str, ends: tuple[npt.NDArray[np.intp], ...]) -> Array:
    """``[S, 1, E]``, of ``dfc`` ``[S, 2, E]``."""
    count = 2 if name == "dfc" else 1
    found = np.full((len(subjects), count, len(ends[0])), np.nan)
    for row, subject in zip(found, subjects, strict=True):
        matrix = getattr(subject, name)
        if matrix is not None:
            edges = matrix[ends].astype(float)
            row[:] = edges if name != "dfc" else (edges.mean(1), edges.std(1))
    return found


def _standardised(features: Array, training: Mask) -> npt.NDArray[np.float32]:
    """In deviations of the training subjects; 0 where nothing is known or nothing varies."""
    known = features[training]
    with np.errstate(invalid="ignore", divide="ignore"):
        there = np.maximum((~np.isnan(known)).sum(0), 1)
        mean = np.nansum(known, 0) / there
        deviation = np.sqrt(np.nansum((known - mean) ** 2, 0) / there)
        scaled = (features - mean) / np.where(deviation > 1e-9, deviation, np.inf)
    single: npt.NDArray[np.float32] = np.nan_to_num(scaled, nan=0.0).astype(np.float32)
    return single


def _reduced(data: npt.NDArray[np.float32]) -> Array | None:
    """``[S, F]`` -> ``[S, at most S]`` with the same products between subjects, of mean norm 1; None without any."""
    products = data.astype(np.float64) @ data.T.astype(np.float64)
    scale = float(np.trace(products)) / len(data)
    if scale <= 0:
        return None
    values, vectors = np.linalg.eigh(products / scale)
    kept = values > 1e-10 * values[-1]
    reduced: Array = vectors[:, kept] * np.sqrt(values[kept])
    return reduced
