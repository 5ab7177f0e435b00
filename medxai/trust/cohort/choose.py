"""A default method for a model: chosen on one half of the patients, reported on the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from medxai.explain.registry import get_method
from medxai.trust.cohort.columns import Columns
from medxai.trust.cohort.intervals import Estimate, Values
from medxai.trust.cohort.measures import FAITH, PLACE
from medxai.trust.cohort.relations import agree, agreements

#: Patients that each half needs.
LEAST_PATIENTS = 4
#: Share of the cases in which a method must have a map.
LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Choice:
    """A chosen method, measured on patients that took no part in the choice.

    Attributes:
        label: class that was explained; empty for all classes together.
        method: chosen; empty when nothing could be chosen.
        current: method in use.
        by: what it was chosen by.
        validation: patients it was chosen on.
        faithfulness: of the chosen method on the other half.
        place: its average precision there.
        faithfulness_gain: difference from the method in use, case by case.
        place_gain: likewise.
        reason: why nothing was chosen.
    """

    label: str
    method: str
    current: str
    by: tuple[str, ...] = ()
    validation: int = 0
    faithfulness: Estimate | None = None
    place: Estimate | None = None
    faithfulness_gain: Estimate | None = None
    place_gain: Estimate | None = None
    reason: str = ""

    @property
    def clearly_better(self) -> bool:
        """One of the gains is above 0 with its whole interval, and the other is not below it with its own."""
        gains = [gain for gain in (self.faithfulness_gain, self.place_gain) if gain is not None]
        return any(gain.low > 0 for gain in gains) and not any(gain.high < 0 for gain in gains)


def choose_default(columns: Columns, masking: tuple[str, ...], current: str, label: str = "", seed: int = 0) -> Choice:
    """Choose by the mean rank within cases of faithfulness and average precision.

    Without the first where the ways of removing disagree on the validation half. A class-agnostic method is never
    chosen.

    Args:
        columns: of the cases of one class, or all.
        masking: operators.
        current: method in use.
        label: of the class.
        seed: of the halves.
    """
    halves = _halves(columns, seed)
    sizes = [len({case.patient for case in half.results}) for half in halves]
    if min(sizes) < LEAST_PATIENTS:
        reason = f"{sum(sizes)} patients cannot be halved: {LEAST_PATIENTS} in each half are needed"
        return Choice(label, "", current, reason=reason)
    learn, report = halves
    named = [
        name
        for name in learn.methods
        if not get_method(name).INFO.class_agnostic
        and float((~np.isnan(learn.values(name, FAITH))).mean()) >= LEAST_SHARE
    ]
    if not named:
        return Choice(label, "", current, reason="no method has maps in enough cases")
    by = (FAITH, PLACE) if agree(agreements(learn, masking)) else (PLACE,)
    score = np.mean([_ranks(learn.table(named, measure)).mean(0) for measure in by], 0)
    method = named[int(score.argmax())]
    draws = report.patients

    def gain(measure: str) -> Estimate:
        return draws.mean(report.values(method, measure) - report.values(current, measure))

    return Choice(
        label=label,
        method=method,
        current=current,
        by=by,
        validation=sizes[0],
        faithfulness=draws.mean(report.values(method, FAITH)),
        place=draws.mean(report.values(method, PLACE)),
        faithfulness_gain=gain(FAITH),
        place_gain=gain(PLACE),
    )


def _halves(columns: Columns, seed: int) -> tuple[Columns, Columns]:
    """Two halves of the patients, drawn at random."""
    names = sorted({case.patient for case in columns.results})
    order = np.random.default_rng(seed).permutation(len(names))
    first = {names[number] for number in order[: len(names) // 2].tolist()}
    keep = [case.patient in first for case in columns.results]
    return columns.only(keep), columns.only([not wanted for wanted in keep])


def _ranks(table: Values) -> Values:
    """Rank of every method within its case from 0 to 1; a method without a value is last."""
    filled = np.where(np.isnan(table), -math.inf, table)
    if table.shape[1] < 2:
        return np.ones_like(table)
    found: Values = (rankdata(filled, axis=1) - 1) / (table.shape[1] - 1)
    return found
