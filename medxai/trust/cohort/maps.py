"""Maps of one case by many methods, with those of the runner-up and of a slightly noisy image where they are cheap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medxai.errors import MedxaiError, TrustError
from medxai.explain.engine import explain
from medxai.explain.inputs import as_inputs
from medxai.explain.registry import get_method
from medxai.explain.split import Forward, infer
from medxai.identity import sha256_text
from medxai.trust.cohort.case import CohortCase
from medxai.trust.cohort.plan import Plan
from medxai.trust.controls import all_controls
from medxai.trust.gate.figures import NOISE

if TYPE_CHECKING:
    from medxai.explain.progress import Progress

#: Grid of the random control where the layer has none.
_GRID = 7


@dataclass(frozen=True, eq=False)
class CaseMaps:
    """Maps of one method.

    Attributes:
        values: ``[*S]`` evidence for the explained class, not negative; None when it was not made.
        rival: of the runner-up class; None where it costs as much again.
        noisy: of the noisy image; likewise.
        reason: why there are none.
    """

    values: Tensor | None
    rival: Tensor | None = None
    noisy: Tensor | None = None
    reason: str = ""


def case_maps(
    forward: Forward, case: CohortCase, layer: str, plan: Plan, *, controls: bool = True
) -> dict[str, CaseMaps]:
    """Maps by method, then the controls. A method that cannot run has a reason instead.

    Args:
        forward: how to run the network, which is in evaluation mode.
        case: what is explained.
        layer: target layer of methods that read one.
        plan: methods and limits.
        controls: make them as well.
    """
    source = torch.Generator().manual_seed(plan.seed)
    noise = torch.randn(case.x.shape, generator=source).to(case.x)
    noisy = case.x + noise * (NOISE * case.x.std())
    found: dict[str, CaseMaps] = {}
    rival = _rival(forward, case)
    for name in plan.methods:
        try:
            found[name] = _maps(forward, case, noisy, rival, name, layer, plan)
        except MedxaiError as error:
            found[name] = CaseMaps(None, reason=error.reason)
    if controls:
        seed = int(sha256_text(case.key, str(plan.seed))[:12], 16)
        for name, values in all_controls(case.x, _grid(forward, case, layer), seed).items():
            found[name] = CaseMaps(values[0])
    return found


def _maps(forward: Forward, case: CohortCase, noisy: Tensor, rival: int, name: str, layer: str, plan: Plan) -> CaseMaps:
    info = get_method(name).INFO

    def limit(progress: Progress) -> None:
        if progress.total > plan.forwards:
            msg = f"needs about {progress.total} forwards for a map, more than the limit of {plan.forwards}"
            raise TrustError(msg)

    def run(x: Tensor, classes: list[int]) -> list[Tensor]:
        items = explain(
            forward.network,
            x,
            methods=(name,),
            classes=list(classes),
            layers=layer if info.layer == "one" else "auto",
            options={name: plan.options[name]} if name in plan.options else None,
            masking=plan.masking[0],
            seed=plan.seed,
            chunk=plan.chunk,
            prepared=forward.prepared,
            progress=limit,
        )
        return [item.map[0].detach().cpu() for item in items]

    if info.repeats:
        return CaseMaps(run(case.x, [case.index])[0])
    own, other = run(case.x, [case.index, rival])
    return CaseMaps(own, other, run(noisy, [case.index])[0])


def _grid(forward: Forward, case: CohortCase, layer: str) -> list[int]:
    """Cells of the layer, which the random control has as well; a coarse grid where it has none."""
    try:
        raw = explain(forward.network, case.x, methods=("gradcam",), classes=[case.index], layers=layer)[0].raw
    except MedxaiError:
        return [min(s, _GRID) for s in case.mask.shape]
    return list(raw.shape[1:])


def _rival(forward: Forward, case: CohortCase) -> int:
    """The strongest of the other classes."""
    with torch.no_grad():
        logits = infer(forward, as_inputs(case.x))[0]
    if len(logits) < 2:
        return 1 - case.index
    return next(int(c) for c in logits.argsort(descending=True) if int(c) != case.index)
