"""From figures to a verdict: a weighted sum learnt from broken explanations, two thresholds, reasons in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from medxai.errors import BundleError
from medxai.identity import sha256_text
from medxai.strict import Strict
from medxai.study import Flag, TrustReport, Verdict
from medxai.trust.gate.figures import FIGURES, REMOVAL

FILE = "trust.json"
FORMAT = 1
#: Named reasons at most.
_REASONS = 3
#: Row of a table that counts all kinds of broken explanations together.
ALL = "all broken"
_UNDEFINED = (
    "not judged: its figures are not defined (no evidence in the decisive part of the image, or answers of the network "
    "to masked images that are no numbers)"
)
#: A gate that catches less of them supports nothing.
USEFUL = 0.5


class Weight(Strict):
    """One figure in the sum.

    Attributes:
        centre: median over genuine explanations, also taken where the figure is not defined.
        scale: robust deviation over genuine explanations.
        weight: of the standardised figure, never against its direction.
        floor: standardised value at which it counts no further, either way.
    """

    centre: float
    scale: float = Field(gt=0)
    weight: float
    floor: float = Field(default=4.0, gt=0)

    def share(self, value: float | None) -> float:
        """Contribution of a value; 0 where it is not defined."""
        if value is None or math.isnan(value):
            return 0.0
        return self.weight * float(np.clip((value - self.centre) / self.scale, -self.floor, self.floor))


class ClassGate(Strict):
    """What was learnt for the maps of one class: evidence for a finding and for its absence look different.

    Attributes:
        weights: by figure.
        bias: of the sum.
        limited_below: index below which a map is at most limited.
        withheld_below: index below which it is withheld.
        table: by kind of broken explanation, the share withheld with its interval, measured on cases that took no
            part in learning.
        cases: genuine explanations it was learnt from.
        patients: groups they come from.
    """

    weights: dict[str, Weight]
    bias: float
    limited_below: float
    withheld_below: float
    table: dict[str, dict[str, float]]
    cases: int
    patients: int

    @property
    def caught(self) -> float:
        """Share of all broken explanations that it withholds."""
        return self.table[ALL]["withheld"]

    def index(self, figures: Mapping[str, float]) -> float:
        """0..1, larger for maps like the genuine ones."""
        total = self.bias + sum(weight.share(figures.get(name)) for name, weight in self.weights.items())
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, total))))


class Calibration(Strict):
    """Content of ``configs/trust.json``.

    Attributes:
        format: version of this form.
        bundle: name.
        method: explanation method it was learnt with.
        masking: two operators.
        false_alarm: share of genuine explanations that was allowed to be withheld.
        limited: share of genuine explanations that was allowed to be limited or withheld.
        classes: by label; classes with too few cases have no gate.
        data: what the cases were, in words.
    """

    format: int = FORMAT
    bundle: str
    method: str
    masking: tuple[str, str]
    false_alarm: float
    limited: float
    classes: dict[str, ClassGate]
    data: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the content."""
        return sha256_text(self.model_dump_json())


def read_calibration(bundle_path: Path) -> Calibration | None:
    """The calibration of a bundle; None when it has none.

    Raises:
        BundleError: it cannot be read.
    """
    path = bundle_path / "configs" / FILE
    if not path.exists():
        return None
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if stated.get("format") != FORMAT:
            msg = f"{FILE} has format {stated.get('format')}, this version reads {FORMAT}; calibrate again"
            raise BundleError(msg, study=f"bundle {bundle_path.name}")
        return Calibration.model_validate(stated)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        msg = f"{FILE} is not readable ({type(error).__name__}); calibrate again"
        raise BundleError(msg, study=f"bundle {bundle_path.name}") from error


def cap(report: TrustReport, reason: str) -> TrustReport:
    """Return a report that is at most limited, with a further reason; what is withheld stays so."""
    verdict: Verdict = "limited" if report.verdict == "supported" else report.verdict
    return replace(report, verdict=verdict, reasons=(*report.reasons, reason))


def withhold(report: TrustReport, reason: str) -> TrustReport:
    """Return a report whose map is withheld, for this reason first."""
    return replace(report, verdict="withheld", reasons=(reason, *report.reasons))


def judge(
    figures: Mapping[str, float],
    calibration: Calibration | None,
    *,
    method: str,
    label: str,
    flags: frozenset[Flag] = frozenset(),
    masking: tuple[str, ...] = (),
    forwards: int = 0,
    agreement: Mapping[str, float] | None = None,
) -> TrustReport:
    """Verdict of one map.

    A map without evidence is withheld whatever else was measured. Without a calibration nothing is supported: the
    figures stand for themselves. Thresholds hold for the method they were learnt with.

    Args:
        figures: of the map.
        calibration: of the bundle.
        method: that made the map.
        label: class it explains.
        flags: of the explanation.
        masking: operators in use.
        forwards: spent on the figures.
        agreement: with maps of other method families (`medxai.trust.gate.consensus`); reported, no part of the verdict.
    """
    given: dict[str, Any] = {
        "figures": dict(figures),
        "masking": masking,
        "forwards": forwards,
        "agreement": dict(agreement or {}),
    }
    if "empty" in flags:
        return TrustReport("withheld", ("the map is empty: nothing in the image speaks for this class",), **given)
    if calibration is None:
        reason = "not judged: the bundle has no calibrated thresholds (medxai trust calibrate)"
        return TrustReport("limited", (reason, *_bad(figures)), **given)
    given["calibration"] = calibration.sha256
    gate = calibration.classes.get(label)
    if gate is None:
        reason = f"not judged: the thresholds were learnt without enough maps of {label}"
        return TrustReport("limited", (reason, *_bad(figures)), **given)
    index = gate.index(figures)
    given |= {"index": index, "limited_below": gate.limited_below, "withheld_below": gate.withheld_below}
    if any(math.isnan(figures.get(name, math.nan)) for name in REMOVAL):  # the sum would take them for average ones
        return TrustReport("limited", (_UNDEFINED, *_bad(figures)), **given)
    if gate.caught < USEFUL:  # what it says of a map means little, either way
        reason = f"for {label} the gate catches only {gate.caught:.0%} of broken explanations"
        return TrustReport("limited", (reason, *_bad(figures)), **given)
    verdict: Verdict = "supported"
    if index < gate.withheld_below:
        verdict = "withheld"
    elif index < gate.limited_below:
        verdict = "limited"
    reasons = _reasons(figures, gate) if verdict != "supported" else ()
    if "class_agnostic" in flags and verdict == "supported":
        verdict, reasons = "limited", ("the map does not depend on the class",)
    if "unstable" in flags and verdict == "supported":
        verdict, reasons = "limited", ("slight noise in the image changes the map",)
    if method != calibration.method and verdict == "supported":
        verdict = "limited"
        reasons = (f"thresholds were learnt for {calibration.method}, not for {method}",)
    return TrustReport(verdict, reasons, **given)


def _reasons(figures: Mapping[str, float], gate: ClassGate) -> tuple[str, ...]:
    """The figures that pulled the index down most, in words, with what genuine maps have."""
    pulled = []
    for figure in FIGURES:
        weight, value = gate.weights.get(figure.name), figures.get(figure.name, math.nan)
        if weight is None or math.isnan(value):
            continue
        away = (value - weight.centre) / weight.scale * (1 if figure.better == "higher" else -1)
        if away < -1 and weight.share(value) < 0:
            pulled.append((weight.share(value), f"{figure.low} ({value:.2g}; genuine maps {weight.centre:.2g})"))
    found = tuple(words for _, words in sorted(pulled)[:_REASONS])
    return found or ("taken together its figures are unlike those of the genuine maps the thresholds come from",)


def _bad(figures: Mapping[str, float]) -> tuple[str, ...]:
    """What is plainly bad without a calibration."""
    limits = {"deletion": 0.0, "insertion": 0.0, "specificity": 0.01, "stability": 0.5}
    low = {name for name, limit in limits.items() if figures.get(name, float("nan")) <= limit}
    if figures.get("outside", 0.0) > 0.5:
        low.add("outside")
    return tuple(figure.low for figure in FIGURES if figure.name in low)[:_REASONS]


def describe(report: TrustReport | None) -> dict[str, Any] | None:
    """A report for JSON; what is not defined becomes null."""
    if report is None:
        return None
    plain = asdict(report) | {"consensus": report.consensus}
    for table in ("figures", "agreement"):
        plain[table] = {name: _number(value) for name, value in plain[table].items()}
    return {name: _number(value) for name, value in plain.items()}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
