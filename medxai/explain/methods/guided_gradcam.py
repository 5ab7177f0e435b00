"""Guided Grad-CAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.channels import mean_over_positions, weighted_sum
from medxai.explain.guided import guided_gradient
from medxai.explain.method import MethodInfo, NoOptions
from medxai.explain.resize import resize

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="guided_gradcam",
    title="Guided Grad-CAM",
    family="gradient",
    reference="Selvaraju et al. 2017",
    passes="2F+1B+1BB",
    layer="one",
    tokens=False,
    needs="a network whose only activation is ReLU",
    caveat="fine detail comes from guided backpropagation, which hardly depends on the weights",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """Guided backpropagation, summed over channels, times the enlarged rectified Grad-CAM."""
    cam = weighted_sum(mean_over_positions(run.gradient), run.activation).clamp_min(0)
    return guided_gradient(run).sum(1) * resize(cam, run.spatial)
