"""Means and rank correlations over cases, with intervals by bootstrap over patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
#: ``indices [n]`` of cases, drawn with whole patients -> a statistic.
Statistic = Callable[[Indices], float]

DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval.

    Attributes:
        value: over all cases that have one.
        low: 2.5th percentile of the draws.
        high: 97.5th percentile.
        n: cases that have a value.
        patients: they belong to.
    """

    value: float
    low: float
    high: float
    n: int
    patients: int

    def __str__(self) -> str:
        """Read as ``0.83 (0.79 to 0.87)``; small numbers with a digit more."""
        if math.isnan(self.value):
            return "-"
        digits = 3 if max(abs(x) for x in (self.value, self.low, self.high) if not math.isnan(x)) < 0.2 else 2
        if math.isnan(self.low):
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON: four decimals, None for NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        plain = {key: None if math.isnan(value) else round(value, 4) for key, value in numbers.items()}
        return {**plain, "n": self.n, "patients": self.patients}


class Patients:
    """Draws of whole patients, the same for every statistic, so that differences are paired.

    Args:
        names: patient of every case.
        draws: how many.
        seed: of the draws.
    """

    def __init__(self, names: Sequence[str], draws: int = DRAWS, seed: int = 0) -> None:
        self.names = np.asarray(names)
        unique, self._of = np.unique(self.names, return_inverse=True)
        self._members = [np.flatnonzero(self._of == number) for number in range(len(unique))]
        source = np.random.default_rng(seed)
        count = len(unique)
        self._drawn = source.integers(0, count, (draws, count)) if count else np.zeros((draws, 0), int)
        self.weights = np.stack([np.bincount(row, minlength=count)[self._of] for row in self._drawn]).astype(float)

    def mean(self, values: Values) -> Estimate:
        """Mean of ``values [cases]``, NaN left out; an interval needs two patients."""
        kept = ~np.isnan(values)
        count, patients = int(kept.sum()), len(np.unique(self.names[kept]))
        if not count:
            return Estimate(math.nan, math.nan, math.nan, 0, 0)
        filled, weight = np.where(kept, values, 0.0), self.weights @ kept
        means = (self.weights @ filled)[weight > 0] / weight[weight > 0]
        return _estimate(float(values[kept].mean()), means, count, patients)

    def statistic(self, measure: Statistic, values: Values, draws: int = 500) -> Estimate:
        """Any statistic of cases; `values` says which have one."""
        kept = np.flatnonzero(~np.isnan(values))
        patients = len(np.unique(self.names[kept]))
        if not len(kept):
            return Estimate(math.nan, math.nan, math.nan, 0, 0)
        good = set(kept.tolist())
        members = [np.array([i for i in each.tolist() if i in good], dtype=np.int64) for each in self._members]
        found = []
        for row in self._drawn[:draws]:
            chosen = np.concatenate([members[number] for number in row])
            found.append(measure(chosen) if len(chosen) else math.nan)
        return _estimate(measure(kept), np.array(found), len(kept), patients)


def _estimate(value: float, drawn: Values, count: int, patients: int) -> Estimate:
    finite = drawn[np.isfinite(drawn)]
    if patients < 2 or not finite.size:
        return Estimate(value, math.nan, math.nan, count, patients)
    low, high = np.percentile(finite, [2.5, 97.5]).tolist()
    return Estimate(value, low, high, count, patients)
