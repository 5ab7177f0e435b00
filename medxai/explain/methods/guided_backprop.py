"""Guided backpropagation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.guided import guided_gradient
from medxai.explain.method import MethodInfo, NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="guided_backprop",
    title="Guided backpropagation",
    family="gradient",
    reference="Springenberg et al. 2014",
    passes="1F+1BB",
    graph="none",
    layer="none",
    tokens=False,
    needs="a network whose only activation is ReLU",
    caveat="shows edges whatever the weights are (Adebayo et al. 2018): never evidence for a class",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """Sum over channels of the input gradient with negative signals stopped at every ReLU."""
    return guided_gradient(run).sum(1)
