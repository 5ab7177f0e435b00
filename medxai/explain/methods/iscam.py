"""IS-CAM: Score-CAM along a path from the masked-out to the masked image."""

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
    name="iscam",
    title="IS-CAM",
    family="score_cam",
    reference="Naidu et al. 2020",
    passes="N K F",
    repeats=True,
    caveat="10 times the cost of Score-CAM; choose channels for volumes",
)


@dataclass(frozen=True)
class Options(ChannelOptions):
    """Options of IS-CAM, besides those of `medxai.explain.channel_masks.ChannelOptions`.

    Attributes:
        samples: steps of the path.
        torchcam_compat: the factors of torch-cam, which add up (1/N, 3/N, 6/N, ...) and leave the input's range,
            in place of i/N.
    """

    samples: int = 10
    torchcam_compat: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.samples < 1:
            raise ValueError("samples is at least 1")


def attribute(run: Run, options: Options) -> Tensor:
    """Score-CAM whose scores are means over masks scaled by i/N (arXiv:2010.03023)."""
    masks = ChannelMasks(run, options)
    run.expect(options.samples * masks.count + (len(run.x) if options.weighting == "linear" else 0))
    total = torch.zeros(masks.alive.shape)
    for step in range(1, options.samples + 1):
        factor = step / options.samples
        if options.torchcam_compat:
            factor = step * (step + 1) / (2 * options.samples)
        total += masks.scores(("iscam", factor), factor=factor)
    return masks.combine(total / options.samples)
