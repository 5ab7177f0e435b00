"""How alike two batches of maps are: Spearman and Pearson correlation, structural similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW = 7


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation ``[B]`` float64 of ``[B, *S]``; NaN where a side is constant."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm = a.norm(dim=1) * b.norm(dim=1)
    flat = (a.abs().amax(1) < 1e-12) | (b.abs().amax(1) < 1e-12)
    return torch.where(flat, torch.nan, (a * b).sum(1) / norm.clamp_min(1e-300))


def ranks(values: Tensor) -> Tensor:
    """Ranks ``[B, N]`` float64 along the last axis, ties sharing their mean."""
    flat = values.flatten(1).double()
    found = torch.empty_like(flat)
    for i, row in enumerate(flat):
        unique, inverse, counts = torch.unique(row, return_inverse=True, return_counts=True)
        end = counts.cumsum(0).double()
        found[i] = (end - (counts.double() - 1) / 2)[inverse] if len(unique) else row
    return found


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation ``[B]`` of ``[B, *S]``; NaN where a side is constant."""
    return pearson(ranks(a), ranks(b))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity ``[B]`` of ``[B, *S]``, each scaled to 0..1 first (Wang et al. 2004).

    Uniform windows of 7 positions, or the whole of shorter axes, with the sample covariance.
    """
    x, y = _unit(a), _unit(b)
    window = [min(_WINDOW, s) for s in x.shape[1:]]
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[x.ndim - 1]
    count = 1
    for size in window:
        count *= size

    def mean(values: Tensor) -> Tensor:
        return pool(values[:, None], window, stride=1)[:, 0]

    mx, my = mean(x), mean(y)
    correct = count / max(count - 1, 1)
    vx, vy, cov = (correct * (mean(p * q) - mean(p) * mean(q)) for p, q in ((x, x), (y, y), (x, y)))
    c1, c2 = 0.01**2, 0.03**2
    found = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return found.flatten(1).mean(1)


def _unit(values: Tensor) -> Tensor:
    flat = values.double()
    shape = (-1, *[1] * (values.ndim - 1))
    low, high = flat.flatten(1).amin(1).view(shape), flat.flatten(1).amax(1).view(shape)
    return (flat - low) / (high - low).clamp_min(1e-30)
