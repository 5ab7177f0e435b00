"""SmoothGrad: a gradient method averaged over noisy copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="smoothgrad",
    title="SmoothGrad",
    family="gradient",
    reference="Smilkov et al. 2017",
    passes="N(F+BB)",
    graph="none",
    layer="none",
    repeats=True,
    caveat="random by design; the same seed gives the same map",
)


@dataclass(frozen=True)
class Options:
    """Options of SmoothGrad.

    Attributes:
        samples: noisy copies.
        noise: standard deviation as a share of the sample's range.
        base: ``saliency``, ``inputxgradient`` or ``squared``.
    """

    samples: int = 16
    noise: float = 0.15
    base: str = "saliency"

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.samples < 1 or self.noise < 0:
            raise ValueError("samples is at least 1 and noise not negative")
        if self.base not in ("saliency", "inputxgradient", "squared"):
            raise ValueError("base is saliency, inputxgradient or squared")


def attribute(run: Run, options: Options) -> Tensor:
    """Mean over ``x + noise`` of the base map; saliency takes the magnitude of the mean gradient."""
    x = run.x
    spread = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, *[1] * (x.ndim - 1))
    total = torch.zeros_like(x, dtype=torch.float32)
    rows = torch.arange(len(x), device=x.device)
    run.expect(options.samples * len(x))
    for draw in run.noise(options.samples):
        noisy = x + options.noise * spread * draw
        gradient, _ = run.input_gradient(noisy, rows)
        if options.base == "inputxgradient":
            gradient = gradient * noisy.float()
        total += (gradient**2 if options.base == "squared" else gradient) / options.samples
    return total.sum(1) if options.base == "inputxgradient" else total.abs().amax(1)
