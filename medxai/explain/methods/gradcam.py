"""Grad-CAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.channels import mean_over_positions, weighted_sum
from medxai.explain.method import MethodInfo, NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="gradcam",
    title="Grad-CAM",
    family="gradient_cam",
    reference="Selvaraju et al. 2017",
    passes="1F+1B",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """``sum_k mean_p(G_k) A_k``: channels weighted by their mean gradient."""
    return weighted_sum(mean_over_positions(run.gradient), run.activation)
