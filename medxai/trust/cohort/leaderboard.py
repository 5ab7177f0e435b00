"""The leaderboard of a cohort: every method with intervals, controls, agreement, and the default that follows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medxai.explain.registry import get_method
from medxai.trust.cohort.choose import LEAST_PATIENTS, Choice, choose_default
from medxai.trust.cohort.columns import Columns
from medxai.trust.cohort.intervals import Estimate, Values
from medxai.trust.cohort.measures import FAITH, PLACE, measures_of
from medxai.trust.cohort.plan import Plan
from medxai.trust.cohort.relations import Agreement, agree, agreements, over_cases, within_cases
from medxai.trust.cohort.result import CaseResult
from medxai.trust.controls import NAMES as CONTROLS


@dataclass(frozen=True)
class Line:
    """A method or control.

    Attributes:
        name: registry name, or that of the control.
        control: knows nothing of the network.
        class_agnostic: the map is the same for every class.
        passes: cost of a map.
        measures: by name.
        undefined: measure -> why cases have no value, with counts.
        over_controls: least difference from a control, case by case, for faithfulness and place.
        relation: Spearman over cases between faithfulness and place.
    """

    name: str
    control: bool
    class_agnostic: bool
    passes: str
    measures: Mapping[str, Estimate]
    undefined: Mapping[str, Mapping[str, int]]
    over_controls: Mapping[str, Estimate]
    relation: Estimate | None

    def beats_controls(self, measure: str) -> bool:
        """Better than every control, with the whole interval of the difference."""
        return measure in self.over_controls and self.over_controls[measure].low > 0


@dataclass(frozen=True)
class Leaderboard:
    """All that a validation says.

    Attributes:
        columns: the cases.
        plan: what was measured.
        lines: by falling place, controls among them.
        agreements: of the ways of removing.
        within: Spearman over the methods of each case between faithfulness and place, mean.
        correlations: ``[cases]`` of it.
        choices: of a default, for all classes and for each.
        skipped: reason -> cases that were not measured.
    """

    columns: Columns
    plan: Plan
    lines: tuple[Line, ...]
    agreements: tuple[Agreement, ...]
    within: Estimate
    correlations: Values
    choices: tuple[Choice, ...]
    skipped: Mapping[str, int]

    @property
    def enough(self) -> bool:
        """Whether there are patients enough for intervals that decide anything."""
        return len({case.patient for case in self.columns.results}) >= 2 * LEAST_PATIENTS

    @property
    def agreed(self) -> bool:
        """Whether the ways of removing agree well enough to name a most faithful method."""
        return agree(self.agreements)

    def winner(self, measure: str) -> str:
        """The method with the largest mean that beats every control; empty when there is none or may be none."""
        if not self.enough or (measure == FAITH and not self.agreed):
            return ""
        able = [line for line in self.lines if not line.control and line.beats_controls(measure)]
        return max(able, key=lambda line: line.measures[measure].value).name if able else ""

    def lead(self, measure: str) -> tuple[str, Estimate] | None:
        """The method next to the winner and the winner's lead over it, case by case; None without one of them."""
        first = self.winner(measure)
        others = [line for line in self.lines if not line.control and line.name != first and line.measures[measure].n]
        if not first or not others:
            return None
        second = max(others, key=lambda line: line.measures[measure].value).name
        gain = self.columns.values(first, measure) - self.columns.values(second, measure)
        return second, self.columns.patients.mean(gain)

    def as_dict(self) -> dict[str, Any]:
        """For ``leaderboard.json``."""
        leads = {measure: self.lead(measure) for measure in (FAITH, PLACE)}
        cases = self.columns.results
        known = [case.correct for case in cases if case.correct is not None]
        return {
            "plan": self.plan.described(),
            "bundles": dict(Counter(case.bundle for case in cases)),
            "cases": len(cases),
            "patients": len({case.patient for case in cases}),
            "classes": dict(Counter(case.explained for case in cases)),
            "decided_right": {"share": round(float(np.mean(known)), 4) if known else None, "n": len(known)},
            "skipped": dict(self.skipped),
            "not_measured": self.columns.failed,
            "methods": [_line(line) for line in self.lines],
            "agreement": [
                {"first": item.first, "second": item.second, "kendall": item.tau.as_dict()} for item in self.agreements
            ],
            "winner": {measure: self.winner(measure) or None for measure in (FAITH, PLACE)},
            "lead": {
                name: None if lead is None else {"over": lead[0], **lead[1].as_dict()} for name, lead in leads.items()
            },
            "faithfulness_predicts_place": self.within.as_dict(),
            "default": [_choice(choice) for choice in self.choices],
        }


def make_leaderboard(
    results: Sequence[CaseResult], plan: Plan, current: str, skipped: Mapping[str, int] | None = None
) -> Leaderboard:
    """Summarise measured cases.

    Args:
        results: at least one.
        plan: they were measured by.
        current: method that the model is explained by now.
        skipped: reason -> cases that were not measured.
    """
    columns = Columns(tuple(results))
    within, each = within_cases(columns)
    lines = [_make_line(columns, plan, name) for name in (*columns.methods, *CONTROLS)]
    lines.sort(key=lambda line: -_number(line.measures[PLACE].value))
    labels = sorted({case.explained for case in results})
    choices = [choose_default(columns, plan.masking, current)]
    if len(labels) > 1:
        parts = ((label, columns.only([case.explained == label for case in results])) for label in labels)
        choices += [choose_default(part, plan.masking, current, label) for label, part in parts]
    found = agreements(columns, plan.masking)
    return Leaderboard(columns, plan, tuple(lines), tuple(found), within, each, tuple(choices), dict(skipped or {}))


def _make_line(columns: Columns, plan: Plan, name: str) -> Line:
    control = name in CONTROLS
    info = None if control else get_method(name).INFO
    names = [measure.name for measure in measures_of(plan.masking)]
    over = {}
    for measure in () if control else (FAITH, PLACE):
        mine = columns.values(name, measure)
        gains = [columns.patients.mean(mine - columns.values(other, measure)) for other in CONTROLS]
        over[measure] = min(gains, key=lambda gain: _number(gain.low))
    return Line(
        name=name,
        control=control,
        class_agnostic=info is not None and info.class_agnostic,
        passes="" if info is None else info.passes,
        measures={key: columns.patients.mean(columns.values(name, key)) for key in names},
        undefined={key: why for key in names if (why := columns.reasons(name, key))},
        over_controls=over,
        relation=None if control else over_cases(columns, name),
    )


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _line(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "control": line.control,
        "class_agnostic": line.class_agnostic,
        "passes": line.passes,
        "measures": {name: value.as_dict() for name, value in line.measures.items()},
        "undefined": {name: dict(why) for name, why in line.undefined.items()},
        "over_controls": {name: value.as_dict() for name, value in line.over_controls.items()},
        "faithfulness_with_place_over_cases": None if line.relation is None else line.relation.as_dict(),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    numbers = {
        "faithfulness": choice.faithfulness,
        "place": choice.place,
        "faithfulness_gain": choice.faithfulness_gain,
        "place_gain": choice.place_gain,
    }
    return {
        "class": choice.label or "all",
        "method": choice.method or None,
        "current": choice.current,
        "chosen_by": list(choice.by),
        "validation_patients": choice.validation,
        **{name: None if value is None else value.as_dict() for name, value in numbers.items()},
        "clearly_better": choice.clearly_better,
        "reason": choice.reason,
    }
