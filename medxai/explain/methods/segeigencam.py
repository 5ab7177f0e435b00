"""Seg-Eigen-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medxai.explain.components import first_component
from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="segeigencam",
    title="Seg-Eigen-CAM",
    family="gradient_cam",
    reference="Gildenblat et al. 2021, grad-cam package",
    passes="1F+1B",
    caveat="its sign is a convention: the largest magnitude counts as evidence for the class",
)


@dataclass(frozen=True)
class Options:
    """Options of Seg-Eigen-CAM.

    Attributes:
        center: subtract each channel's mean over positions.
    """

    center: bool = True


def attribute(run: Run, options: Options) -> Tensor:
    """First principal component of ``|G| A``; works for classifiers and for segmentation targets."""
    component, unclear = first_component(run.gradient.abs() * run.activation, center=options.center, sign="range")
    run.flag("unstable", unclear, "the two largest singular values nearly agree, so the component is arbitrary")
    return component
