"""Linear imputation: every removed voxel is the weighted mean of its neighbours, solved by conjugate gradients."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from medxai.explain.masking.neighbour_fill import neighbour_fill


def linear_fill(values: Tensor, mask: Tensor, spacing: Tensor, *, tolerance: float = 1e-4, most: int = 200) -> Tensor:
    """Solve ``x_p sum_d w_d = sum_d w_d x_(p+d)`` for the removed voxels (ROAD, Rong et al. 2022, without noise).

    Weights fall with the squared distance in mm over the 3 x 3 (x 3) neighbourhood; at the image's edge those
    that exist are used, which keeps the system symmetric. Neighbour fill is the first guess.

    Args:
        values: ``[N, C, *S]`` float32; what lies under ``mask == 0`` is never read.
        mask: ``[N, 1, *S]`` bool, True where values are known.
        spacing: ``[N, dims]`` edge lengths of the voxels in mm.
        tolerance: of the residual, relative to the right-hand side.
        most: iterations.

    Returns:
        ``[N, C, *S]``; zero where nothing at all is known.
    """
    hole = ~mask
    guess = neighbour_fill(values, mask)
    if not bool(hole.any()):
        return guess
    offsets = [o for o in product((-1, 0, 1), repeat=values.ndim - 2) if any(o)]
    steps = torch.tensor(offsets, dtype=spacing.dtype)
    # [N, offsets]
    weights = 1 / (steps[None] * spacing.cpu()[:, None]).square().sum(-1)
    weights = (weights / weights.sum(1, keepdim=True)).to(values)

    def gather(image: Tensor) -> Tensor:
        padded = functional.pad(image, [1, 1] * len(offsets[0]))
        total = torch.zeros_like(image)
        for index, offset in enumerate(offsets):
            part = padded
            for axis, step in enumerate(offset):
                part = part.narrow(axis + 2, 1 + step, image.shape[axis + 2])
            total += part * weights[:, index].view(-1, *[1] * (image.ndim - 1))
        return total

    available = gather(torch.ones_like(guess[:, :1]))

    def residual_of(image: Tensor) -> Tensor:
        return torch.where(hole, available * image - gather(image), 0)

    known = torch.where(mask, values, 0)
    x = torch.where(hole, guess, 0)
    right = torch.where(hole, gather(known), 0)
    residual = right - residual_of(x)
    direction = residual
    power = _dot(residual, residual)
    goal = tolerance**2 * _dot(right, right)
    for _ in range(most):
        active = power > goal
        if not bool(active.any()):
            break
        product_ = residual_of(direction)
        curvature = _dot(direction, product_)
        step = torch.where(active & (curvature > 0), power / curvature.clamp_min(1e-30), 0)
        x = x + step * direction
        residual = residual - step * product_
        fresh = _dot(residual, residual)
        direction = residual + torch.where(active, fresh / power.clamp_min(1e-30), 0) * direction
        power = torch.where(step > 0, fresh, torch.zeros_like(fresh))
    return torch.where(mask, values, x)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample and channel, ``[N, C, 1, ...]``."""
    return (a * b).sum(tuple(range(2, a.ndim)), keepdim=True)
