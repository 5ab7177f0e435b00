"""Rank Gaussian filter: between median and mean, after how much the values of a window differ."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: A window whose values vary less than this, relative to their mean, takes its median.
_FLAT = 1e-6


def rank_gaussian_filter(maps: Tensor, size: int = 3) -> Tensor:
    """Filter non-negative maps ``[N, *s]`` with two or three spatial axes; edges are reflected.

    The values of a window are sorted and averaged with Gaussian weights over their rank, centred on the
    median, of a width that is their coefficient of variation (Li et al. 2025, Token Activation Map). In a
    volume the distance of ranks is scaled so that the spread matches that of the 3x3 window. A window with
    mean zero gives zero, a constant one its value.

    Args:
        maps: ``[N, *s]``.
        size: odd width of the window.
    """
    if size % 2 == 0 or size < 3:
        msg = "the window must have an odd width of 3 or more"
        raise ValueError(msg)
    axes, reach = maps.ndim - 1, size // 2
    padded = maps[:, None].float()
    # Reflection needs more cells than it reaches; a narrower axis repeats its edge.
    for axis in range(axes):
        pads = [0] * (2 * axes)
        pads[2 * axis] = pads[2 * axis + 1] = reach
        mode = "reflect" if maps.shape[-1 - axis] > reach else "replicate"
        padded = functional.pad(padded, pads, mode=mode)
    windows = padded[:, 0]
    for axis in range(1, axes + 1):
        windows = windows.unfold(axis, size, 1)
    values = windows.reshape(*maps.shape, -1).sort(-1).values
    count = values.shape[-1]
    mean = values.mean(-1, keepdim=True)
    spread = values.std(-1, correction=0, keepdim=True) / torch.where(mean > 0, mean, torch.ones_like(mean))
    ranks = (torch.arange(count, device=maps.device) - count // 2) * ((size * size // 2) / (count // 2))
    sigma = spread.clamp_min(_FLAT)
    weights = torch.exp(-(ranks**2) / (2 * sigma**2))
    smooth = (values * weights).sum(-1) / weights.sum(-1)
    result = torch.where(spread[..., 0] < _FLAT, values[..., count // 2], smooth)
    return torch.where(mean[..., 0] > 0, result, torch.zeros_like(result))
