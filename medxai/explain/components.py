"""First principal component of channel vectors over positions, with a sign that means something."""

from __future__ import annotations

import torch
from torch import Tensor

#: Two largest singular values closer than this ratio leave the direction undetermined.
_CLEAR = 1.05
#: Extremes of either sign that are this close do not say which is the larger.
_TIE = 1e-3


def first_component(features: Tensor, *, center: bool, sign: str) -> tuple[Tensor, Tensor]:
    """Project every position on the first right singular vector of the position-by-channel matrix.

    The smaller of the two Gram matrices is decomposed: no ``P x P`` matrix for volumes, no ``K x K`` one for
    wide layers.

    Args:
        features: ``[B, K, *s]``.
        center: subtract each channel's mean over positions first.
        sign: ``energy`` orients the component along the positions with large features, ``range`` so that the
            largest magnitude is positive (Seg-Eigen-CAM), ``sum`` so that the singular vector sums to a
            non-negative number (uncentred, non-negative features).

    Returns:
        ``[B, *s]`` projection, zero where the features are constant, and ``[B]`` bool: the direction is
        undetermined because the two largest singular values nearly agree.
    """
    rows = features.flatten(2).transpose(1, 2).double()  # [B, P, K]
    size = rows.abs().amax((1, 2), keepdim=True)
    rows = rows / torch.where(size > 0, size, torch.ones_like(size))  # keeps squares finite
    energy = rows.abs().sum(2)
    if center:
        rows = rows - rows.mean(1, keepdim=True)
    # What is left of a constant after centring is rounding.
    rows = torch.where(rows.abs().amax((1, 2), keepdim=True) < 1e-7, torch.zeros_like(rows), rows)
    positions, channels = rows.shape[1:]
    if channels <= positions:
        values, vectors = torch.linalg.eigh(rows.transpose(1, 2) @ rows)
        direction = vectors[:, :, -1]
    else:
        values, vectors = torch.linalg.eigh(rows @ rows.transpose(1, 2))
        direction = (rows.transpose(1, 2) @ vectors[:, :, -1:])[:, :, 0]
        norm = direction.norm(dim=1, keepdim=True)
        direction = direction / torch.where(norm > 0, norm, torch.ones_like(norm))
    projection = (rows @ direction[:, :, None])[:, :, 0]
    top = values[:, -1].clamp_min(0).sqrt()
    second = values[:, -2].clamp_min(0).sqrt() if values.shape[1] > 1 else torch.zeros_like(top)
    unclear = (top > 0) & (top < _CLEAR * second)
    projection = orient(projection, energy, direction, sign) * size[:, 0]
    return projection.view(-1, *features.shape[2:]).float(), unclear


def orient(projection: Tensor, energy: Tensor, direction: Tensor | None, sign: str) -> Tensor:
    """Flip ``projection [B, P]`` where its sign rule says so, see `first_component`."""
    by_energy = (projection * (energy - energy.mean(1, keepdim=True))).sum(1) < 0
    if sign == "sum" and direction is not None:
        flip = direction.sum(1) < 0
    elif sign == "range":
        low, high = projection.amin(1).abs(), projection.amax(1).abs()
        tie = (low - high).abs() <= _TIE * torch.maximum(low, high)  # rounding must not decide
        flip = torch.where(tie, by_energy, low > high)
    else:
        flip = by_energy
    return torch.where(flip[:, None], -projection, projection)
