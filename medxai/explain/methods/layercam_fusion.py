"""Layer-CAM of several layers, fused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medxai.explain.method import MethodInfo
from medxai.explain.resize import resize

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="layercam_fusion",
    title="Layer-CAM, fused over layers",
    family="gradient_cam",
    reference="Jiang et al. 2021",
    passes="1F+1B",
    layer="several",
    tokens=False,
    caveat="shallow layers add detail of weaker relation to the class",
)


@dataclass(frozen=True)
class Options:
    """Options of the fusion.

    Attributes:
        gamma: how strongly weak evidence is lifted before the maximum is taken.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        """Check the range."""
        if self.gamma <= 0:
            raise ValueError("gamma is positive")


def attribute(run: Run, options: Options) -> Tensor:
    """``max over layers of tanh(gamma R / max R)``, on the input's grid; a layer without evidence adds nothing."""
    result = torch.zeros(len(run.x), *run.spatial, device=run.x.device)
    for layer in run.shared.several:
        at = run.at(layer)
        raw = (at.gradient.clamp_min(0) * at.activation).sum(1).clamp_min(0)
        top = raw.flatten(1).amax(1)
        scale = torch.where(top > 0, top, torch.ones_like(top)).view(-1, *[1] * (raw.ndim - 1))
        result = torch.maximum(result, resize(torch.tanh(options.gamma * raw / scale), run.spatial))
    return result
