"""HiRes-CAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.method import MethodInfo, NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="hirescam",
    title="HiRes-CAM",
    family="gradient_cam",
    reference="Draelos and Carin 2020",
    passes="1F+1B",
    caveat="equal to Grad-CAM where the head averages over positions",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """``sum_k G_k A_k`` per position; with an affine tail it sums to the score less its bias."""
    return (run.gradient * run.activation).sum(1)
