"""All measures of all maps of one case."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from medxai.trust import localisation as loc
from medxai.trust.cohort.case import CohortCase
from medxai.trust.cohort.maps import CaseMaps, case_maps
from medxai.trust.cohort.measures import FAITH, TOLERANCE_MM, measures_of
from medxai.trust.cohort.plan import Plan
from medxai.trust.cohort.result import CaseResult, MethodRow
from medxai.trust.curves import deletion, insertion, without_order
from medxai.trust.likeness import spearman
from medxai.trust.probe import Probe, open_run
from medxai.trust.scores import Scores
from medxai.trust.units import blocks

#: Positions along an axis on which maps are compared with one another.
_COARSE = 24


def measure_case(
    network: nn.Module, case: CohortCase, layer: str, plan: Plan, *, bundle: str, fingerprint: str
) -> CaseResult:
    """Explain a case by every method and measure the maps and the controls.

    Args:
        network: in evaluation mode.
        case: what is explained.
        layer: target layer.
        plan: what is measured.
        bundle: name of the model, kept with the result.
        fingerprint: of everything the result depends on, likewise.
    """
    maps = case_maps(network, case, layer, plan)
    made = {name: item.values for name, item in maps.items() if item.values is not None}
    rows = {name: _row(item, case) for name, item in maps.items()}
    for name, (values, reasons) in _faithfulness(network, case, made, plan).items():
        rows[name].values.update(values)
        rows[name].reasons.update(reasons)
    names = [measure.name for measure in measures_of(plan.masking)]
    for name, row in rows.items():
        for missing in (key for key in names if key not in row.values):
            row.values[missing] = math.nan
            row.reasons[missing] = maps[name].reason or "would cost as much as the map again"
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
        rows=rows,
    )


def _row(maps: CaseMaps, case: CohortCase) -> MethodRow:
    """Localisation, specificity and stability."""
    row = MethodRow({}, {})
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
    network: nn.Module, case: CohortCase, maps: Mapping[str, Tensor], plan: Plan
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
    run = open_run(network, x, case.index, masking=plan.masking[0], seed=plan.seed, chunk=plan.chunk)
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
