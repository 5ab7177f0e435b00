"""Fill empty positions with the mean of their filled neighbours, ring by ring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def neighbour_fill(
    values: Tensor, mask: Tensor, rounds: int | None = None, axes: Sequence[int] | None = None
) -> Tensor:
    """Neighbour padding of layer masking (Balasubramanian and Feizi 2022).

    In each round every empty position beside a filled one takes the mean of its filled neighbours, diagonal ones
    included; positions without any stay zero. Filled values are constants to autograd. A mean is divided by
    its exact count, so that a constant stays that constant.

    Args:
        values: ``[N, C, *S]``; what lies under ``mask == 0`` is never read.
        mask: ``[N, 1, *S]``, non-zero where values are valid.
        rounds: how many; None until nothing is empty.
        axes: spatial axes along which neighbours lie, from 0; None for all.

    Returns:
        ``[N, C, *S]``, equal to `values` where they are valid.
    """
    valid = mask > 0
    along = tuple(range(values.ndim - 2)) if axes is None else tuple(axes)
    limit = max(values.shape[2:]) if rounds is None else rounds
    with torch.no_grad():
        known = valid
        filled = torch.where(valid, values, 0)
        for _ in range(limit if along else 0):
            if bool(known.all()):
                break
            count = box_sum(known.to(values.dtype), along)
            new = (count > 0) & ~known
            if not bool(new.any()):
                break
            filled = torch.where(new, box_sum(filled, along) / count.clamp_min(1), filled)
            known = known | new
    return torch.where(valid, values, filled)


def box_sum(values: Tensor, axes: Sequence[int]) -> Tensor:
    """Sum over 3 neighbours along each of the spatial `axes`, zero outside; same shape."""
    for axis in axes:
        dim = axis + 2
        size = values.shape[dim]
        pads = [0, 0] * (values.ndim - 1 - dim) + [1, 1]
        padded = functional.pad(values, pads)
        values = padded.narrow(dim, 0, size) + padded.narrow(dim, 1, size) + padded.narrow(dim, 2, size)
    return values
