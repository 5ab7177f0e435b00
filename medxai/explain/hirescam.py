"""HiRes-CAM (Draelos and Carin 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NAME = "hirescam"
TITLE = "HiRes-CAM"
CLASS_AGNOSTIC = False


def raw_map(activation: Tensor, gradient: Tensor) -> Tensor:
    """Signed map ``[B, *s]``: activation times gradient, summed over channels.

    ``R_p = sum_k G_kp A_kp``. Where the layers above are affine the map sums to the logit minus its bias.

    Args:
        activation: ``A [B, K, *s]``.
        gradient: ``G [B, K, *s]`` of the class score.
    """
    return (activation * gradient).sum(1)
