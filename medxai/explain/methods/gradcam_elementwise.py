"""Grad-CAM with weights per position instead of per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.method import MethodInfo, NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="gradcam_elementwise",
    title="Grad-CAM element-wise",
    family="gradient_cam",
    reference="Gildenblat et al. 2021, grad-cam package",
    passes="1F+1B",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """``sum_k relu(G_k A_k)`` per position; never negative."""
    return (run.gradient * run.activation).clamp_min(0).sum(1)
