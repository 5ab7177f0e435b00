"""Eigen-CAM of gradient times activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medxai.explain.components import first_component
from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="eigengradcam",
    title="EigenGrad-CAM",
    family="gradient_cam",
    reference="Gildenblat et al. 2021, grad-cam package",
    passes="1F+1B",
    caveat="its sign is a convention: oriented towards the positions with strong evidence",
)


@dataclass(frozen=True)
class Options:
    """Options of EigenGrad-CAM.

    Attributes:
        center: subtract each channel's mean over positions.
    """

    center: bool = True


def attribute(run: Run, options: Options) -> Tensor:
    """First principal component of ``G A``."""
    component, unclear = first_component(run.gradient * run.activation, center=options.center, sign="energy")
    run.flag("unstable", unclear, "the two largest singular values nearly agree, so the component is arbitrary")
    return component
