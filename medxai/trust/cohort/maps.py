"""Maps of one case by many methods, with those of the runner-up and of a slightly noisy image where they are cheap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medxai.errors import MedxaiError, TrustError
from medxai.explain.engine import explain
from medxai.explain.registry import get_method
from medxai.identity import sha256_text
from medxai.trust.cohort.case import CohortCase
from medxai.trust.cohort.plan import Plan
from medxai.trust.controls import all_controls
from medxai.trust.gate.figures import NOISE

if TYPE_CHECKING:
    from medxai.explain.progress import Progress

#: Grid of the random control where no method reads a layer.
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


def case_maps(network: nn.Module, case: CohortCase, layer: str, plan: Plan) -> dict[str, CaseMaps]:
    """Maps by method, then the controls. A method that cannot run has a reason instead.

    Args:
        network: in evaluation mode.
        case: what is explained.
        layer: target layer of methods that read one.
        plan: methods and limits.
    """
    source = torch.Generator().manual_seed(plan.seed)
    noise = torch.randn(case.x.shape, generator=source).to(case.x)
    noisy = case.x + noise * (NOISE * case.x.std())
    found: dict[str, CaseMaps] = {}
    grid: tuple[int, ...] | None = None
    for name in plan.methods:
        try:
            found[name], used = _maps(network, case, noisy, name, layer, plan)
        except MedxaiError as error:
            found[name] = CaseMaps(None, reason=error.reason)
            continue
        grid = grid or used
    seed = int(sha256_text(case.key, str(plan.seed))[:12], 16)
    for name, values in all_controls(case.x, grid or [min(s, _GRID) for s in case.mask.shape], seed).items():
        found[name] = CaseMaps(values[0])
    return found


def _maps(
    network: nn.Module, case: CohortCase, noisy: Tensor, name: str, layer: str, plan: Plan
) -> tuple[CaseMaps, tuple[int, ...] | None]:
    """Maps, and the layer's grid for methods that read one layer."""
    info = get_method(name).INFO

    def limit(progress: Progress) -> None:
        if progress.total > plan.forwards:
            msg = f"needs about {progress.total} forwards for a map, more than the limit of {plan.forwards}"
            raise TrustError(msg)

    def run(x: Tensor, classes: list[int]) -> list[Tensor]:
        items = explain(
            network,
            x,
            methods=(name,),
            classes=list(classes),
            layers=layer if info.layer == "one" else "auto",
            options={name: plan.options[name]} if name in plan.options else None,
            masking=plan.masking[0],
            seed=plan.seed,
            chunk=plan.chunk,
            progress=limit,
        )
        grids.append(tuple(items[0].raw.shape[1:]))
        return [item.map[0].detach().cpu() for item in items]

    grids: list[tuple[int, ...]] = []
    if info.repeats:
        return CaseMaps(run(case.x, [case.index])[0]), grids[0] if info.layer == "one" else None
    own, rival = run(case.x, [case.index, _rival(network, case)])
    maps = CaseMaps(own, rival, run(noisy, [case.index])[0])
    return maps, grids[0] if info.layer == "one" else None


def _rival(network: nn.Module, case: CohortCase) -> int:
    """The strongest of the other classes."""
    with torch.no_grad():
        logits: Tensor = network(case.x)[0]
    if len(logits) < 2:
        return 1 - case.index
    return next(int(c) for c in logits.argsort(descending=True) if int(c) != case.index)
