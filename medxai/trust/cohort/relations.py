"""Relations between measures: do two ways of removing agree, and does faithfulness predict place?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from medxai.trust.cohort.columns import Columns
from medxai.trust.cohort.intervals import Estimate, Indices, Values
from medxai.trust.cohort.measures import FAITH, PLACE
from medxai.trust.curves import agreement
from medxai.trust.ranks import rank_correlation

#: Agreement of two ways of removing below which no method is called the most faithful.
LEAST_AGREEMENT = 0.5


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau of the order of the methods by two operators, over the means of all cases."""

    first: str
    second: str
    tau: Estimate


def agreements(columns: Columns, masking: Sequence[str]) -> list[Agreement]:
    """For every pair of operators; controls take no part."""
    found = []
    for first, second in combinations(masking, 2):
        tables = [columns.table(columns.methods, f"{FAITH}_{name}") for name in (first, second)]

        def tau(chosen: Indices, tables: list[Values] = tables) -> float:
            means = [_means(table[chosen]) for table in tables]
            kept = ~(np.isnan(means[0]) | np.isnan(means[1]))
            return agreement(means[0][kept], means[1][kept]) if kept.sum() > 1 else math.nan

        some = np.where(np.isnan(tables[0]).all(1), math.nan, 1.0)
        found.append(Agreement(first, second, columns.patients.statistic(tau, some)))
    return found


def agree(found: Sequence[Agreement]) -> bool:
    """Whether every pair of operators gives nearly the same order."""
    return all(item.tau.value >= LEAST_AGREEMENT for item in found)


def within_cases(columns: Columns, place: str = PLACE) -> tuple[Estimate, Values]:
    """Spearman over the methods of each case between faithfulness and place: mean with interval, and ``[cases]``."""
    faith, where = columns.table(columns.methods, FAITH), columns.table(columns.methods, place)
    each = np.array([rank_correlation(a, b) for a, b in zip(faith, where, strict=True)])
    return columns.patients.mean(each), each


def over_cases(columns: Columns, method: str, place: str = PLACE) -> Estimate:
    """Spearman over the cases of one method: do its more faithful maps lie better?"""
    faith, where = columns.values(method, FAITH), columns.values(method, place)
    return columns.patients.statistic(
        lambda chosen: rank_correlation(faith[chosen], where[chosen]), np.where(np.isnan(where), math.nan, faith)
    )


def _means(values: Values) -> Values:
    """Mean of each column without NaN; NaN where a column has nothing."""
    kept = ~np.isnan(values)
    total = np.where(kept, values, 0).sum(0)
    count = kept.sum(0)
    found: Values = np.where(count > 0, total / np.maximum(count, 1), math.nan)
    return found
