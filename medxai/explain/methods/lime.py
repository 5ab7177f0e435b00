"""LIME."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medxai.explain.coalitions import Coalitions, SegmentOptions, weighted_r_squared
from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="lime",
    title="LIME",
    family="perturbation",
    reference="Ribeiro et al. 2016",
    passes="N F",
    graph="none",
    layer="none",
    repeats=True,
    caveat="one value for each segment; see r_squared for whether a linear model holds at all",
)


@dataclass(frozen=True)
class Options(SegmentOptions):
    """Options of LIME, besides those of `medxai.explain.coalitions.SegmentOptions`.

    Attributes:
        width: of the kernel that weights coalitions by their cosine distance from the whole image.
        ridge: penalty of the coefficients.
    """

    width: float = 0.25
    ridge: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.width <= 0 or self.ridge < 0:
            raise ValueError("width is positive and ridge not negative")


def attribute(run: Run, options: Options) -> Tensor:
    """Coefficients of a weighted ridge regression of the score on which segments are kept (arXiv:1602.04938).

    Each segment is kept with probability one half; the whole image is among the samples. All voxels of a segment
    share its coefficient.
    """
    coalitions = Coalitions(run, options, "lime")
    drawn = [
        torch.rand(options.sample_count(count) - 1, count, generator=run.generator()) < 0.5
        for count in coalitions.counts
    ]
    run.expect(sum(len(kept) for kept in drawn))
    coefficients, fits = [], []
    for kept, scores, clean in zip(drawn, coalitions.scores(drawn), coalitions.clean, strict=True):
        z = torch.cat((torch.ones(1, kept.shape[1]), kept.float())).double()
        y = torch.cat((clean[None], scores)).double()
        weights = proximity(z, options.width)
        slope, level = weighted_ridge(z, y, weights, options.ridge)
        coefficients.append(slope)
        fits.append(weighted_r_squared(y, z @ slope + level, weights))
    coalitions.judge(fits)
    return coalitions.paint(coefficients)


def proximity(kept: Tensor, width: float) -> Tensor:
    """Weight ``[n]`` of coalitions ``[n, d]``: ``sqrt(exp(-D^2 / width^2))``, D the cosine distance from all ones."""
    distance = 1 - (kept.mean(1)).sqrt()
    return torch.exp(-(distance**2) / width**2).sqrt()


def weighted_ridge(z: Tensor, y: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Coefficients ``[d]`` and intercept of ``y [n]`` on ``z [n, d]``; the intercept is not penalised."""
    share = weights / weights.sum()
    z_mean, y_mean = share @ z, share @ y
    centred = z - z_mean
    gram = centred.T @ (weights[:, None] * centred) + penalty * torch.eye(z.shape[1], dtype=z.dtype)
    slope = torch.linalg.lstsq(gram, (centred.T @ (weights * (y - y_mean)))[:, None]).solution[:, 0]
    return slope, y_mean - z_mean @ slope
