"""All measures of all maps of one case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from medxai.explain.split import Forward
from medxai.trust import localisation as loc
from medxai.trust.cohort.case import CohortCase
from medxai.trust.cohort.maps import CaseMaps, case_maps
from medxai.trust.cohort.measures import FAITH, TOLERANCE_MM, measures_of
from medxai.trust.cohort.plan import Plan
from medxai.trust.cohort.result import CaseResult, MethodRow
from medxai.trust.controls import NAMES as CONTROLS
from medxai.trust.curves import deletion, insertion, without_order
from medxai.trust.likeness import spearman
from medxai.trust.probe import Probe, open_run
from medxai.trust.scores import Scores
from medxai.trust.units import blocks

#: Positions along an axis on which maps are compared with one another.
_COARSE = 24


def missing(plan: Plan, known: CaseResult | None) -> tuple[str, ...]:
    """Methods of a plan that an earlier result does not hold, or holds of other options."""
    rows = {} if known is None else known.rows
    good = {m: (plan.basis(m), plan.basis(m, made=False)) for m in plan.methods}
    return tuple(m for m in plan.methods if m not in rows or rows[m].basis not in good[m])


def chosen(result: CaseResult, plan: Plan) -> CaseResult:
    """A result with the rows of the plan's methods in its order, then the controls; others are left out."""
    return replace(result, rows={name: result.rows[name] for name in (*plan.methods, *CONTROLS)})


def measure_case(
    forward: Forward,
    case: CohortCase,
    layer: str,
    plan: Plan,
    *,
    bundle: str,
    fingerprint: str,
    known: CaseResult | None = None,
) -> CaseResult:
    """Explain a case by every method and measure the maps and the controls.

    Args:
        forward: how to run the network, which is in evaluation mode.
        case: what is explained.
        layer: target layer.
        plan: what is measured.
        bundle: name of the model, kept with the result.
        fingerprint: of everything that all rows depend on, likewise.
        known: what was measured of the case before; only what it lacks is measured, and it is part of the answer.
    """
    maps = case_maps(forward, case, layer, plan.only(missing(plan, known)), controls=known is None)
    made = {name: item.values for name, item in maps.items() if item.values is not None}
    rows = {
        name: _row(item, case, "" if name in CONTROLS else plan.basis(name, made=item.values is not None))
        for name, item in maps.items()
    }
    for name, (values, reasons) in (_faithfulness(forward, case, made, plan) if made else {}).items():
        rows[name].values.update(values)
        rows[name].reasons.update(reasons)
    names = [measure.name for measure in measures_of(plan.masking)]
    for name, row in rows.items():
        for lacking in (key for key in names if key not in row.values):
            row.values[lacking] = math.nan
            row.reasons[lacking] = maps[name].reason or "would cost as much as the map again"
    return CaseResult(
        key=case.key,
        patient=case.patient,
        bundle=bundle,
        label=case.label,
        explained=case.labels[case.index],
        decided=case.labels[case.decided],
        probability=case.probability,
        lesion_share=float(case.mask.float().mean()),
        fingerprint=fingerprint,
        rows={**({} if known is None else known.rows), **rows},
    )


def _row(maps: CaseMaps, case: CohortCase, basis: str) -> MethodRow:
    """Localisation, specificity and stability."""
    row = MethodRow({}, {}, basis)
    if maps.values is None:
        return row
    values, mask = maps.values.numpy()[None], case.mask.numpy()[None]
    spacing = case.spacing
    for measure in (loc.mass_lift, loc.rank_accuracy, loc.auprc, loc.pointing_game):
        _keep(row, measure(values, mask))
    if spacing is None:
        row.values["pointing_game_10mm"] = math.nan
        row.reasons["pointing_game_10mm"] = "the image has no millimetres"
    else:
        _keep(row, loc.pointing_game(values, mask, spacing, TOLERANCE_MM), "pointing_game_10mm")
    for name, other in (("specificity", maps.rival), ("stability", maps.noisy)):
        if other is None:
            continue
        alike = _alike(maps.values, other)
        row.values[name] = 1 - alike if name == "specificity" else alike
        if math.isnan(alike):
            row.reasons[name] = "one of the two maps is constant"
    return row


def _keep(row: MethodRow, scores: Scores, name: str = "") -> None:
    row.values[name or scores.name] = float(scores.values[0])
    if scores.reasons[0]:
        row.reasons[name or scores.name] = scores.reasons[0]


def _alike(a: Tensor, b: Tensor) -> float:
    """Spearman correlation on a coarse grid; NaN where one is constant."""
    index = tuple(slice(s // (2 * _COARSE), None, max(1, s // _COARSE)) for s in a.shape)
    return float(spearman(a[index][None], b[index][None])[0])


def _faithfulness(
    forward: Forward, case: CohortCase, maps: Mapping[str, Tensor], plan: Plan
) -> dict[str, tuple[dict[str, float], dict[str, str]]]:
    """Area of insertion less area of deletion of the probability, for each operator and on average.

    Maps that put the blocks in the same order, as many do for a network with average pooling, are measured once.
    """
    names = list(maps)
    stack = torch.stack([maps[name] for name in names])
    reasons = without_order(stack)
    units = blocks(case.mask.shape)
    orders = units.order(stack.nan_to_num(0, 0, 0)).tolist()
    keys = [(reason, *order) for reason, order in zip(reasons, orders, strict=True)]
    first = {key: keys.index(key) for key in dict.fromkeys(keys)}
    place = {key: number for number, key in enumerate(first)}
    stack = stack[list(first.values())]
    x = case.x.expand(len(stack), *case.x.shape[1:]).contiguous()
    run = open_run(forward, x, case.index, masking=plan.masking[0], seed=plan.seed, chunk=plan.chunk)
    columns = []
    for masking in plan.masking:
        probe = Probe(run, masking, score="prob")
        gain = insertion(probe, stack, units, plan.steps).area - deletion(probe, stack, units, plan.steps).area
        columns.append(gain.numpy())
    table = np.stack(columns)[:, [place[key] for key in keys]]
    found = {}
    for number, name in enumerate(names):
        values = {f"{FAITH}_{m}": float(table[i, number]) for i, m in enumerate(plan.masking)}
        values[FAITH] = float(table[:, number].mean())
        why = {key: reasons[number] or "not a number" for key, value in values.items() if math.isnan(value)}
        found[name] = (values, why)
    return found
