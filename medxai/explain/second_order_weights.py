"""Channel weights of the Grad-CAM++ family."""

from __future__ import annotations

import torch
from torch import Tensor

from medxai.explain.channels import per_channel

#: Smallest magnitude of a denominator; it can vanish or change sign where activations are signed.
_SMALL = 1e-6


def second_order_weights(first: Tensor, second: Tensor, third: Tensor, activation: Tensor) -> Tensor:
    """``w_k = sum_p a relu(D1)`` with ``a = D2 / (2 D2 + S_k D3)``, ``S_k`` the sum of the channel.

    For a single gradient, ``D_n = G^n``, this is ``a = 1 / (2 + S_k G)``: written so, nothing is squared and
    gradients of 1/P, as in a volume, do not vanish against a constant in the denominator.

    Args:
        first: mean gradient ``D1 [B, K, *s]``.
        second: mean square ``D2``.
        third: mean cube ``D3``.
        activation: ``A [B, K, *s]``.

    Returns:
        ``[B, K]`` weights, not negative unless a denominator is.
    """
    total = per_channel(activation.flatten(2).sum(2), activation)
    live = second > 0
    # D3 / D2 instead of both: for one gradient exactly G.
    ratio = torch.where(live, third / torch.where(live, second, torch.ones_like(second)), torch.zeros_like(third))
    denominator = 2 + total * ratio
    side = torch.where(denominator < 0, -1.0, 1.0)
    denominator = torch.where(denominator.abs() < _SMALL, _SMALL * side, denominator)
    alpha = torch.where(live, 1 / denominator, torch.zeros_like(denominator))
    return (alpha * first.clamp_min(0)).flatten(2).sum(2)
