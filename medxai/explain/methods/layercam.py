"""Layer-CAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.method import MethodInfo, NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="layercam",
    title="Layer-CAM",
    family="gradient_cam",
    reference="Jiang et al. 2021",
    passes="1F+1B",
    caveat="at shallow layers it shows fine detail, of weaker relation to the class",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """``sum_k relu(G_k) A_k`` per position; equals HiRes-CAM where no gradient is negative."""
    return (run.gradient.clamp_min(0) * run.activation).sum(1)
