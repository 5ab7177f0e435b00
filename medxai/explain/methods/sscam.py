"""SS-CAM: Score-CAM smoothed by noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medxai.explain.channel_masks import ChannelMasks, ChannelOptions
from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="sscam",
    title="SS-CAM",
    family="score_cam",
    reference="Wang et al. 2020 (SS-CAM)",
    passes="N K F",
    repeats=True,
    caveat="35 times the cost of Score-CAM; choose channels for volumes",
)


@dataclass(frozen=True)
class Options(ChannelOptions):
    """Options of SS-CAM, besides those of `medxai.explain.channel_masks.ChannelOptions`.

    Attributes:
        samples: noisy copies.
        sigma: standard deviation of the noise, in units of the mask (0..1) or of the input.
        noise: added to the ``mask`` or to the ``input`` before it is masked.
    """

    samples: int = 35
    sigma: float = 2.0
    noise: str = "mask"

    def __post_init__(self) -> None:
        """Check ranges and names."""
        super().__post_init__()
        if self.samples < 1 or self.sigma < 0:
            raise ValueError("samples is at least 1 and sigma not negative")
        if self.noise not in ("mask", "input"):
            raise ValueError(f"noise is mask or input, not {self.noise!r}")


def attribute(run: Run, options: Options) -> Tensor:
    """Score-CAM whose scores are means over noise, the same draws for every channel (arXiv:2006.14255).

    With ``noise=mask`` a mask may leave 0..1, as published.
    """
    masks = ChannelMasks(run, options)
    run.expect(options.samples * masks.count + (len(run.x) if options.weighting == "linear" else 0))
    generator = run.generator()
    shape = run.spatial if options.noise == "mask" else tuple(run.x.shape[1:])
    total = torch.zeros(masks.alive.shape)
    for index in range(options.samples):
        draw = options.sigma * torch.randn(shape, generator=generator).to(run.x)
        if options.noise == "mask":
            key = ("sscam", options.samples, options.sigma, index)
            total += masks.scores(key, shift=draw.float())
        else:
            total += masks.scores(None, noise=draw)
    return masks.combine(total / options.samples)
