"""Whether confidence tells right from wrong: rejection and correlation (Born et al. 2021, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import pearsonr

from medxai.learn.metrics import Interval, bootstrap
from medxai.predict.confidence import Belief

FloatArray = npt.NDArray[np.float64]

#: Below this confidence the publication's notebook rejects a frame.
REJECT_BELOW = 0.5


@dataclass(frozen=True, eq=False)
class RejectionCurve:
    """Accuracy of what is kept when the least confident samples are put aside.

    Attributes:
        kept: share that is kept, ascending to 1.
        accuracy: of the kept.
        threshold: confidence at or above which a sample is kept.
    """

    kept: FloatArray
    accuracy: FloatArray
    threshold: FloatArray


def combined_confidence(aleatoric: Belief, epistemic: Belief) -> FloatArray:
    """Return the mean of both confidences ``[N]``."""
    return (aleatoric.confidence + epistemic.confidence) / 2


def rejection_curve(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> RejectionCurve:
    """Return the accuracy of what is kept at every threshold; samples of equal confidence go together.

    Args:
        confidence: ``[N]``.
        correct: ``[N]`` whether the decision is right.
    """
    c, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    order = np.argsort(-c, kind="stable")
    last = np.flatnonzero(np.append(np.diff(c[order]) != 0, True))
    hits = np.cumsum(right[order])[last]
    return RejectionCurve((last + 1) / len(c), hits / (last + 1), c[order][last])


def correctness_correlation(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, patients: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return Pearson's r of confidence with being right, with its interval over patients; nan without variation.

    Args:
        confidence: ``[N]``.
        correct: ``[N]`` whether the decision is right.
        patients: who each sample is of.
        resamples: of the bootstrap.
        seed: of its draws.
    """
    right = np.asarray(correct, dtype=np.float64)
    return bootstrap(_correlation, right, np.asarray(confidence, dtype=np.float64), patients, n=resamples, seed=seed)


def _correlation(correct: npt.NDArray[np.generic], confidence: npt.NDArray[np.generic]) -> float:
    if len(np.unique(correct)) < 2 or len(np.unique(confidence)) < 2:
        return float("nan")
    return float(pearsonr(confidence, correct).statistic)
