"""How much a perturbation map owes to what is put where something is removed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from medxai.explain.engine import explain
from medxai.explain.result import TensorExplanation

#: Below this rank correlation two operators tell different stories.
AGREE = 0.5


@dataclass(frozen=True, eq=False)
class Agreement:
    """The same question with two operators.

    Attributes:
        operators: their names.
        maps: one explanation for each; flagged ``baseline_dependent`` where they disagree.
        correlation: ``[B]`` Spearman's rank correlation of the raw maps; 1 for two constant maps, 0 for one.
        text: for each sample ``baseline-dependent`` with the figures, or empty.
    """

    operators: tuple[str, str]
    maps: tuple[TensorExplanation, TensorExplanation]
    correlation: Tensor
    text: tuple[str, ...]


def compare_operators(
    model: nn.Module, x: Any, method: str, operators: tuple[str, str] = ("zero", "blur"), **arguments: Any
) -> Agreement:
    """Run a perturbation method with two operators and compare the maps by rank.

    Args:
        model: as in `explain`.
        x: as in `explain`.
        method: registry name; its option ``masking`` must be left open.
        operators: names of two operators.
        arguments: further arguments of `explain`; one class and one layer.

    Raises:
        ExplainError: as in `explain`.
    """
    first, second = (explain(model, x, methods=[method], masking=name, **arguments)[0] for name in operators)
    correlation = rank_correlation(first.raw, second.raw)
    low = correlation < AGREE
    text = tuple(
        f"baseline-dependent: maps with {operators[0]} and {operators[1]} have rank correlation {value:.2f}"
        if bad
        else ""
        for value, bad in zip(correlation.tolist(), low.tolist(), strict=True)
    )

    def mark(item: TensorExplanation) -> TensorExplanation:
        flags = tuple(
            row | {"baseline_dependent"} if bad else row for row, bad in zip(item.flags, low.tolist(), strict=True)
        )
        return replace(item, flags=flags, report={**item.report, "rank_correlation": correlation})

    return Agreement(operators, (mark(first), mark(second)), correlation, text)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation ``[B]`` of maps ``[B, *s]``; ties share their mean rank."""
    found = []
    for one, other in zip(a.flatten(1), b.flatten(1), strict=True):
        ranks = [_ranks(values) for values in (one, other)]
        centred = [r - r.mean() for r in ranks]
        sizes = [float(c.norm()) for c in centred]
        if min(sizes) == 0:
            found.append(1.0 if max(sizes) == 0 else 0.0)
        else:
            found.append(float(centred[0] @ centred[1]) / (sizes[0] * sizes[1]))
    return torch.tensor(found)


def _ranks(values: Tensor) -> Tensor:
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = (count.cumsum(0).double() - (count.double() - 1) / 2)[place]
    return ranks
