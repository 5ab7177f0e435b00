"""N-way identification: does the true class win among some others that are drawn at random?"""

from __future__ import annotations

from math import lgamma

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def n_way(scores: npt.ArrayLike, truth: npt.ArrayLike, ways: int = 50) -> Array:
    """Probability ``[N]`` that the true class scores highest among itself and ``ways - 1`` others.

    The expectation over all draws, of which Wang et al. 2024 (arXiv:2411.07121) take 1000; equal scores win by lot,
    so that a constant answer gives ``1 / ways``.

    Args:
        scores: ``[N, K]``.
        truth: ``[N]`` class.
        ways: classes that compete.

    Raises:
        ValueError: fewer classes than compete, or fewer than two.
    """
    values, classes = np.asarray(scores, dtype=float), np.asarray(truth, dtype=int)
    others = values.shape[1] - 1
    if not 2 <= ways <= others + 1:
        message = f"{ways} classes cannot compete among {others + 1}"
        raise ValueError(message)
    own = values[np.arange(len(values)), classes][:, None]
    lower, equal = (values < own).sum(1), (values == own).sum(1) - 1
    wins = np.array([_all_lower(beaten, others, ways - 1) for beaten in range(others + 1)])
    return np.array([wins[low : low + tied + 1].mean() for low, tied in zip(lower, equal, strict=True)])


def _all_lower(beaten: int, others: int, drawn: int) -> float:
    """Probability that all of the drawn others are among the beaten."""
    if beaten < drawn:
        return 0.0
    return float(np.exp(_log_choose(beaten, drawn) - _log_choose(others, drawn)))


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
