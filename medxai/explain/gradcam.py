"""Grad-CAM (Selvaraju et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NAME = "gradcam"
TITLE = "Grad-CAM"
CLASS_AGNOSTIC = False


def raw_map(activation: Tensor, gradient: Tensor) -> Tensor:
    """Signed map ``[B, *s]``: channels weighted by their mean gradient.

    ``R = sum_k mean_p(G_k) A_k``; the ReLU is applied after fusion over windows.

    Args:
        activation: ``A [B, K, *s]``.
        gradient: ``G [B, K, *s]`` of the class score.
    """
    weights = gradient.flatten(2).mean(-1)
    return (weights.unsqueeze(1) @ activation.flatten(2)).view(activation.shape[0], *activation.shape[2:])
