"""KernelSHAP."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

import torch

from medxai.explain.coalitions import Coalitions, SegmentOptions, weighted_r_squared
from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="kernelshap",
    title="KernelSHAP",
    family="perturbation",
    reference="Lundberg and Lee 2017",
    passes="N F",
    graph="none",
    layer="none",
    repeats=True,
    caveat="one value for each segment; they add up to the score less that of the fully masked image",
)


@dataclass(frozen=True)
class Options(SegmentOptions):
    """Options of KernelSHAP; see `medxai.explain.coalitions.SegmentOptions`."""


def attribute(run: Run, options: Options) -> Tensor:
    """Shapley values of segments by constrained weighted least squares (arXiv:1705.07874).

    All coalitions are used where there are few enough, else sizes are drawn by the kernel's weight and every
    coalition comes with its complement. The values of a sample add up to ``y(x) - y(fully masked)``; what is missing
    from that is in the report as ``completeness_residual [B]``. All voxels of a segment share its value.
    """
    coalitions = Coalitions(run, options, "kernelshap")
    drawn = [draw_coalitions(n, options.sample_count(n), run.generator()) for n in coalitions.counts]
    asked = [torch.cat((torch.zeros(1, kept.shape[1], dtype=torch.bool), kept)) for kept, _ in drawn]
    run.expect(sum(map(len, asked)))
    values, fits, residuals = [], [], []
    for (kept, weights), scores, clean in zip(drawn, coalitions.scores(asked), coalitions.clean, strict=True):
        z, y = kept.double(), scores[1:].double()
        base, total = scores[0].double(), (clean - scores[0]).double()
        shapley = constrained(z, y - base, weights, total)
        values.append(shapley)
        fits.append(weighted_r_squared(y, base + z @ shapley, weights))
        residuals.append(shapley.sum() - total)
    run.report["completeness_residual"] = torch.stack(residuals).float()
    coalitions.judge(fits)
    return coalitions.paint(values)


def draw_coalitions(count: int, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Coalitions ``[n, count]`` bool, neither empty nor whole, and their weights ``[n]``."""
    if count < 2:
        return torch.zeros(0, count, dtype=torch.bool), torch.zeros(0, dtype=torch.float64)
    if 2**count - 2 <= samples:
        numbers = torch.arange(1, 2**count - 1)
        kept = (numbers[:, None] >> torch.arange(count)) & 1 == 1
        sizes = kept.sum(1).tolist()
        weights = [(count - 1) / (comb(count, s) * s * (count - s)) for s in sizes]
        return kept, torch.tensor(weights, dtype=torch.float64)
    sizes_ = torch.arange(1, count)
    chosen = 1 + torch.multinomial(1.0 / (sizes_ * (count - sizes_)), (samples + 1) // 2, True, generator=generator)
    order = torch.rand(len(chosen), count, generator=generator).argsort(1).argsort(1)
    half = order < chosen[:, None]
    kept = torch.stack((half, ~half), 1).flatten(0, 1)
    return kept, torch.ones(len(kept), dtype=torch.float64)


def constrained(z: Tensor, y: Tensor, weights: Tensor, total: Tensor) -> Tensor:
    """Coefficients ``[d]`` without intercept that minimise ``sum w (y - z b)^2`` and add up to `total`."""
    size = z.shape[1]
    if not len(z):
        return total.expand(size) / size
    # The constraint takes out one coefficient: b_d = total - sum of the others.
    left = z[:, :-1] - z[:, -1:]
    right = y - z[:, -1] * total
    root = weights.sqrt()[:, None]
    solved = torch.linalg.lstsq(root * left, root * right[:, None], driver="gelsd").solution[:, 0]
    return torch.cat((solved, (total - solved.sum())[None]))
