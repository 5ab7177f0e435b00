"""RefineCAM: layers multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medxai.explain.method import MethodInfo
from medxai.explain.registry import get_method
from medxai.explain.resize import resize

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="refinecam",
    title="RefineCAM",
    family="gradient_cam",
    reference="as in the grad-cam and TorchCAM packages",
    passes="1F+1B",
    layer="several",
    tokens=False,
    caveat="a layer without evidence empties the whole map",
)


@dataclass(frozen=True)
class Options:
    """Options of RefineCAM.

    Attributes:
        base: gradient method of each layer.
        mean: take the geometric mean of the layers instead of their product.
    """

    base: str = "gradcampp"
    mean: bool = False

    def __post_init__(self) -> None:
        """Check the base."""
        if self.base not in ("gradcampp", "layercam", "gradcam", "hirescam"):
            raise ValueError("base is gradcampp, layercam, gradcam or hirescam")


def attribute(run: Run, options: Options) -> Tensor:
    """Product over layers of rectified maps divided by their maximum, on the input's grid."""
    base = get_method(options.base)
    layers = run.shared.several
    result = torch.ones(len(run.x), *run.spatial, device=run.x.device)
    for layer in layers:
        raw = base.attribute(run.at(layer), base.Options()).clamp_min(0)
        top = raw.flatten(1).amax(1)
        run.flag("empty", top <= 0, f"layer {layer} has no evidence, which empties the product")
        scale = torch.where(top > 0, top, torch.ones_like(top)).view(-1, *[1] * (raw.ndim - 1))
        result = result * resize(raw / scale, run.spatial)
    return result ** (1 / len(layers)) if options.mean else result
