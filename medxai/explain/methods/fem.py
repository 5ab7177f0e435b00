"""FEM, the feature explanation method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medxai.explain.channels import per_channel, weighted_sum
from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="fem",
    title="FEM",
    family="activation_cam",
    reference="Fuad et al. 2020",
    passes="1F",
    graph="none",
    class_agnostic=True,
    caveat="the same map for every class: shows where rare strong features are",
)


@dataclass(frozen=True)
class Options:
    """Options of FEM.

    Attributes:
        deviations: a position counts as strong that many standard deviations above its channel's mean.
    """

    deviations: float = 2.0


def attribute(run: Run, options: Options) -> Tensor:
    """Channels weighted by the share of their positions that stand out."""
    activation = run.activation
    flat = activation.flatten(2)
    threshold = flat.mean(2) + options.deviations * flat.std(2, correction=0)
    share = (activation > per_channel(threshold, activation)).float().flatten(2).mean(2)
    return weighted_sum(share, activation)
