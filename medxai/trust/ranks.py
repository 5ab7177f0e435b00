"""Measures by ranks, fast enough to resample; ties count half."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata


def area_under_roc(positive: npt.NDArray[np.bool_], scores: npt.ArrayLike) -> float:
    """Area under the ROC curve (Mann and Whitney), the same value as scikit-learn's; NaN where one side is empty.

    Args:
        positive: ``[N]``.
        scores: ``[N]``, higher for positives.
    """
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return float("nan")
    above = float(rankdata(scores)[positive].sum()) - ones * (ones + 1) / 2
    return above / (ones * zeros)


def rank_correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Spearman's correlation of two arrays ``[N]``; NaN for fewer than three pairs or where a side is constant.

    Pairs with a NaN are left out.
    """
    one, other = np.asarray(a, float), np.asarray(b, float)
    kept = ~(np.isnan(one) | np.isnan(other))
    if kept.sum() < 3:
        return math.nan
    x, y = rankdata(one[kept]), rankdata(other[kept])
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / size) if size > 0 else math.nan
