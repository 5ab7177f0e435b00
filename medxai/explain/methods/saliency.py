"""Saliency: the gradient's magnitude at the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.method import MethodInfo, NoOptions
from medxai.explain.split import INPUT

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="saliency",
    title="Saliency",
    family="gradient",
    reference="Simonyan et al. 2014",
    passes="1F+1BB",
    graph="input",
    layer="none",
    caveat="where the score is sensitive, not what speaks for the class; noisy",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """Largest magnitude over the input's channels of ``dy/dx``; never negative."""
    return run.at(INPUT).gradient.abs().amax(1)
