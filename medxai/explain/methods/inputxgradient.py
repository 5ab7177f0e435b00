"""Input times gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.method import MethodInfo, NoOptions
from medxai.explain.split import INPUT

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="inputxgradient",
    title="Input x Gradient",
    family="gradient",
    reference="Shrikumar et al. 2016",
    passes="1F+1BB",
    graph="input",
    layer="none",
    caveat="zero wherever the prepared image is zero, whatever is there",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """``x dy/dx`` summed over channels; for a ReLU network without biases it sums to the score."""
    return (run.at(INPUT).gradient * run.x.float()).sum(1)
