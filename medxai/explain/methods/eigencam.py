"""Eigen-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medxai.explain.components import first_component
from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="eigencam",
    title="Eigen-CAM",
    family="activation_cam",
    reference="Muhammad and Yeasin 2020",
    passes="1F",
    graph="none",
    class_agnostic=True,
    caveat="the same map for every class",
)


@dataclass(frozen=True)
class Options:
    """Options of Eigen-CAM.

    Attributes:
        center: subtract each channel's mean over positions; the paper does not, common implementations do.
    """

    center: bool = True


def attribute(run: Run, options: Options) -> Tensor:
    """First principal component of the channel vectors, oriented towards the positions with strong features."""
    activation = run.activation
    sign = "energy" if options.center or bool(activation.amin() < 0) else "sum"
    component, unclear = first_component(activation, center=options.center, sign=sign)
    run.flag("unstable", unclear, "the two largest singular values nearly agree, so the component is arbitrary")
    return component
