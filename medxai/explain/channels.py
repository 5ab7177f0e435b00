"""Sums over channels that the class activation maps are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mean_over_positions(values: Tensor) -> Tensor:
    """``[B, K, *s]`` -> ``[B, K]``."""
    return values.flatten(2).mean(-1)


def weighted_sum(weights: Tensor, activation: Tensor) -> Tensor:
    """``sum_k w_k A_k``: ``[B, K]`` and ``[B, K, *s]`` -> ``[B, *s]``."""
    return (weights.unsqueeze(1) @ activation.flatten(2)).view(activation.shape[0], *activation.shape[2:])


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """``[B, K]`` with trailing axes, to be multiplied with ``[B, K, *s]``."""
    return values.view(*values.shape, *[1] * (like.ndim - 2))
