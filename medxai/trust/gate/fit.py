"""Learning weights and thresholds from genuine and broken explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from medxai.errors import TrustError
from medxai.trust.gate.figures import FIGURES, NAMES
from medxai.trust.gate.verdict import ALL, Calibration, ClassGate, Weight

Array = npt.NDArray[np.float64]

GENUINE = "genuine"
#: Strength of the penalty on the squared weights.
_RIDGE = 1e-2
_FOLDS = 5
#: Differences that mean nothing: of the log-odds, and of correlations and shares.
_LEAST_SCALE = {"specificity": 0.02, "stability": 0.02, "outside": 0.02}
_RESAMPLES = 2000
#: Genuine explanations below which thresholds mean nothing.
LEAST = 20


@dataclass(frozen=True)
class Case:
    """One explanation that was measured.

    Attributes:
        kind: `GENUINE`, or how it was broken.
        patient: group; cases of one group stay together.
        figures: measured values.
        label: class it explains.
    """

    kind: str
    patient: str
    figures: Mapping[str, float]
    label: str = ""


def calibrate(
    cases: Sequence[Case],
    *,
    bundle: str,
    method: str,
    masking: tuple[str, str],
    false_alarm: float = 0.05,
    limited: float = 0.2,
    data: str = "",
    seed: int = 0,
) -> Calibration:
    """Weights by logistic regression, thresholds at quantiles of genuine cases that took no part in learning.

    Args:
        cases: genuine and broken.
        bundle: name.
        method: of the explanations.
        masking: operators of the figures.
        false_alarm: share of genuine explanations that may be withheld.
        limited: share of them that may be limited or withheld.
        data: what the cases were.
        seed: of folds and resamples.

    Raises:
        TrustError: every class has too few genuine or no broken explanations, or the shares make no sense.
    """
    if not 0 < false_alarm < limited < 1:
        msg = "shares must be 0 < false alarms < limited < 1"
        raise TrustError(msg)
    classes: dict[str, ClassGate] = {}
    reasons = []
    for label in sorted({case.label for case in cases}):
        mine = [case for case in cases if case.label == label]
        reason = _too_few(mine)
        if reason:
            reasons.append(f"{label}: {reason}")
        else:
            classes[label] = _class_gate(mine, false_alarm, limited, seed)
    if not classes:
        raise TrustError("; ".join(reasons) or "there are no cases")
    return Calibration(
        bundle=bundle,
        method=method,
        masking=masking,
        false_alarm=false_alarm,
        limited=limited,
        classes=classes,
        data=data,
    )


def _too_few(cases: Sequence[Case]) -> str:
    """Why thresholds cannot be learnt from these; empty when they can."""
    genuine = sum(case.kind == GENUINE for case in cases)
    kinds = {case.kind for case in cases} - {GENUINE}
    patients = {case.patient for case in cases}
    if genuine >= LEAST and kinds and len(patients) >= _FOLDS:
        return ""
    return (
        f"{genuine} genuine explanations of {len(patients)} patients and {len(kinds)} kinds of broken ones; "
        f"thresholds need {LEAST}, {_FOLDS} and 1"
    )


def _class_gate(cases: Sequence[Case], false_alarm: float, limited: float, seed: int) -> ClassGate:
    patients = sorted({case.patient for case in cases})
    fold_of = dict(zip(patients, np.random.default_rng(seed).permutation(len(patients)) % _FOLDS, strict=True))
    folds = np.array([fold_of[case.patient] for case in cases])
    index = np.empty(len(cases))
    for fold in range(_FOLDS):
        weights, bias = _learn([case for case, f in zip(cases, folds, strict=True) if f != fold])
        for i in np.flatnonzero(folds == fold).tolist():
            index[i] = _index(weights, bias, cases[i].figures)
    real = np.array([case.kind == GENUINE for case in cases])
    below = {share: float(np.quantile(index[real], share)) for share in (false_alarm, limited)}
    # What a threshold lets pass is measured on cases it was not taken from, genuine ones too.
    flags = {share: _held_out(index, real, folds, share) for share in (false_alarm, limited)}
    weights, bias = _learn(cases)
    return ClassGate(
        weights=weights,
        bias=bias,
        withheld_below=below[false_alarm],
        limited_below=below[limited],
        table=_table(cases, flags[false_alarm], flags[limited], seed),
        cases=int(real.sum()),
        patients=len({case.patient for case in cases if case.kind == GENUINE}),
    )


def _learn(cases: Sequence[Case]) -> tuple[dict[str, Weight], float]:
    """Standardise by the genuine cases; weights along each figure's direction; kinds count alike."""
    real = np.array([case.kind == GENUINE for case in cases])
    values = np.array([[case.figures.get(name, np.nan) for name in NAMES] for case in cases], np.float64)
    centre, scale = np.zeros(len(NAMES)), np.ones(len(NAMES))
    for j in range(len(NAMES)):
        known = values[real, j][~np.isnan(values[real, j])]
        if known.size:
            centre[j] = np.median(known)
            low, high = np.percentile(known, [10, 90])
            scale[j] = max((high - low) / 2.56, _LEAST_SCALE.get(NAMES[j], 0.05))
    x = np.nan_to_num(np.clip((values - centre) / scale, -4, 4))
    y = real.astype(np.float64)
    kinds = [case.kind for case in cases]
    count = {kind: kinds.count(kind) for kind in set(kinds)}
    others = max(len(count) - 1, 1)
    share = np.array([0.5 / count[k] if k == GENUINE else 0.5 / others / count[k] for k in kinds])

    def loss(theta: Array) -> tuple[float, Array]:
        total = x @ theta[:-1] + theta[-1]
        error = 1 / (1 + np.exp(-total)) - y
        value = float((share * (np.logaddexp(0, total) - y * total)).sum()) + _RIDGE * float((theta[:-1] ** 2).sum())
        slope = np.append(x.T @ (share * error) + 2 * _RIDGE * theta[:-1], (share * error).sum())
        return value, slope

    bounds: list[tuple[float | None, float | None]] = [
        (0, None) if figure.better == "higher" else (None, 0) for figure in FIGURES
    ]
    found = minimize(loss, np.zeros(len(NAMES) + 1), jac=True, bounds=[*bounds, (None, None)], method="L-BFGS-B")
    weights = {
        name: Weight(centre=float(centre[j]), scale=float(scale[j]), weight=float(found.x[j]))
        for j, name in enumerate(NAMES)
    }
    return weights, float(found.x[-1])


def _index(weights: Mapping[str, Weight], bias: float, figures: Mapping[str, float]) -> float:
    total = bias + sum(weight.share(figures.get(name)) for name, weight in weights.items())
    return float(1 / (1 + np.exp(-np.clip(total, -60, 60))))


def _held_out(
    index: Array, real: npt.NDArray[np.bool_], folds: npt.NDArray[np.int64], share: float
) -> npt.NDArray[np.bool_]:
    """Whether each case lies below the quantile of the genuine cases of all other folds."""
    below = np.zeros(len(index), bool)
    for fold in range(_FOLDS):
        others = index[real & (folds != fold)]
        if others.size:
            below[folds == fold] = index[folds == fold] < np.quantile(others, share)
    return below


def _table(
    cases: Sequence[Case], withheld: npt.NDArray[np.bool_], limited: npt.NDArray[np.bool_], seed: int
) -> dict[str, dict[str, float]]:
    """For each kind the share withheld, and limited or withheld, with an interval over patients."""
    found: dict[str, dict[str, float]] = {}
    kinds = [GENUINE, *sorted({case.kind for case in cases} - {GENUINE})]
    groups = [(kind, [i for i, case in enumerate(cases) if case.kind == kind]) for kind in kinds]
    groups.append((ALL, [i for i, case in enumerate(cases) if case.kind != GENUINE]))
    for kind, which in groups:
        low, high = _interval(withheld[which], [cases[i].patient for i in which], seed)
        found[kind] = {
            "withheld": float(withheld[which].mean()), "low": low, "high": high,
            "limited_or_withheld": float(limited[which].mean()), "n": float(len(which)),
        }  # fmt: skip
    return found


def _interval(values: npt.NDArray[np.bool_], patients: Sequence[str], seed: int) -> tuple[float, float]:
    names, inverse = np.unique(np.asarray(patients), return_inverse=True)
    sums, counts = np.bincount(inverse, values), np.bincount(inverse)
    draws = np.random.default_rng(seed).integers(0, len(names), (_RESAMPLES, len(names)))
    low, high = np.percentile(sums[draws].sum(1) / counts[draws].sum(1), [2.5, 97.5])
    return float(low), float(high)
