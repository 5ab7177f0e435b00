"""Separable Gaussian smoothing of maps and images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def smooth(values: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """Gaussian along every spatial axis, cut at three sigma, edges reflected.

    Args:
        values: ``[B, C, *S]``.
        sigma: in cells, one for all axes or one each; 0 leaves an axis as it is. For millimetres divide by the
            spacing first.
    """
    axes = values.ndim - 2
    sigmas = [float(sigma)] * axes if isinstance(sigma, (int, float)) else [float(s) for s in sigma]
    for axis, width in enumerate(sigmas, start=2):
        size = values.shape[axis]
        reach = min(int(3 * width + 0.5), size - 1)
        if width <= 0 or reach < 1:
            continue
        offsets = torch.arange(-reach, reach + 1, dtype=values.dtype, device=values.device)
        kernel = torch.exp(-(offsets**2) / (2 * width**2))
        moved = values.movedim(axis, -1)
        rows = functional.pad(moved.reshape(-1, 1, size), (reach, reach), mode="reflect")
        rows = functional.conv1d(rows, (kernel / kernel.sum())[None, None])
        values = rows.reshape(moved.shape).movedim(-1, axis)
    return values
