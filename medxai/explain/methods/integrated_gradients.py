"""Integrated Gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="integrated_gradients",
    title="Integrated Gradients",
    family="gradient",
    reference="Sundararajan et al. 2017",
    passes="N(F+BB)",
    graph="none",
    layer="none",
    repeats=True,
    caveat="depends on the baseline, which is named in the report",
)

_BASELINES = ("zero", "min", "mean")


@dataclass(frozen=True)
class Options:
    """Options of Integrated Gradients.

    Attributes:
        steps: points on the way from the baseline to the image (Gauss-Legendre).
        baseline: ``zero``, the sample's ``min`` (air in a CT) or its ``mean``.
    """

    steps: int = 32
    baseline: str = "zero"

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.steps < 1:
            raise ValueError("steps is at least 1")
        if self.baseline not in _BASELINES:
            raise ValueError(f"baseline is one of {', '.join(_BASELINES)}")


def attribute(run: Run, options: Options) -> Tensor:
    """``(x - b) * mean gradient on the straight way from b to x``, summed over channels.

    The sum over positions is the difference of the two scores; what is missing is reported as
    ``completeness_residual [B]``, relative to it.
    """
    x = run.x
    base = _baseline(x, options.baseline)
    points, weights = np.polynomial.legendre.leggauss(options.steps)
    total = torch.zeros_like(x, dtype=torch.float32)
    rows = torch.arange(len(x), device=x.device)
    run.expect(options.steps * len(x) + len(x))
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        gradient, _ = run.input_gradient(base + float(point) * (x - base), rows)
        total += float(weight) * gradient
    attribution = (x - base).float() * total
    difference = run.score - run.scores(base, rows)
    gap = attribution.flatten(1).sum(1) - difference
    run.report["completeness_residual"] = gap.abs() / difference.abs().clamp_min(1e-8)
    run.report["baseline"] = options.baseline
    return attribution.sum(1)


def _baseline(x: Tensor, kind: str) -> Tensor:
    if kind == "zero":
        return torch.zeros_like(x)
    flat = x.flatten(2)
    values = flat.amin(2) if kind == "min" else flat.mean(2)
    return values.view(*values.shape, *[1] * (x.ndim - 2)).expand_as(x)
