"""Area under the ROC curve by ranks (Mann and Whitney), fast enough to resample; ties count half."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata


def area_under_roc(positive: npt.NDArray[np.bool_], scores: npt.ArrayLike) -> float:
    """The same value as scikit-learn's; NaN where one side is empty.

    Args:
        positive: ``[N]``.
        scores: ``[N]``, higher for positives.
    """
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return float("nan")
    above = float(rankdata(scores)[positive].sum()) - ones * (ones + 1) / 2
    return above / (ones * zeros)
