"""The results of a cohort as arrays: one value for each case, method and measure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medxai.trust.cohort.intervals import Patients, Values
from medxai.trust.cohort.result import CaseResult
from medxai.trust.controls import NAMES as CONTROLS


@dataclass(frozen=True)
class Columns:
    """Cases side by side.

    Attributes:
        results: of all cases.
    """

    results: tuple[CaseResult, ...]

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods that gave a map in at least one case, without the controls."""
        names = dict.fromkeys(name for case in self.results for name in case.rows if name not in CONTROLS)
        return tuple(name for name in names if not np.isnan(self.values(name, "faithfulness")).all())

    @cached_property
    def failed(self) -> dict[str, str]:
        """Method without any map -> its commonest reason."""
        names = dict.fromkeys(name for case in self.results for name in case.rows if name not in CONTROLS)
        return {
            name: next(iter(self.reasons(name, "faithfulness")), "not a number")
            for name in names
            if name not in self.methods
        }

    @cached_property
    def patients(self) -> Patients:
        """Draws of patients, for all statistics of these cases."""
        return Patients([case.patient for case in self.results])

    def values(self, method: str, measure: str) -> Values:
        """``[cases]``, NaN where there is none."""
        return np.array(
            [case.rows[method].values.get(measure, math.nan) if method in case.rows else math.nan
             for case in self.results]
        )  # fmt: skip

    def reasons(self, method: str, measure: str) -> dict[str, int]:
        """Why cases have no value, the commonest first."""
        found = Counter(
            case.rows[method].reasons.get(measure, "not a number")
            for case in self.results
            if method in case.rows and math.isnan(case.rows[method].values.get(measure, math.nan))
        )
        return dict(found.most_common())

    def table(self, methods: Sequence[str], measure: str) -> Values:
        """``[cases, methods]``."""
        return np.stack([self.values(name, measure) for name in methods], 1)

    def only(self, keep: Sequence[bool]) -> Columns:
        """Some of the cases."""
        return Columns(tuple(case for case, wanted in zip(self.results, keep, strict=True) if wanted))
