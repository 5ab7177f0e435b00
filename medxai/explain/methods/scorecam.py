"""Score-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medxai.explain.channel_masks import ChannelMasks, ChannelOptions
from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="scorecam",
    title="Score-CAM",
    family="score_cam",
    reference="Wang et al. 2020",
    passes="K F",
    graph="none",
    repeats=True,
    caveat="with logits the softmax is often nearly one-hot (see max_weight); score=prob weights more evenly",
)


@dataclass(frozen=True)
class Options(ChannelOptions):
    """Options of Score-CAM; see `medxai.explain.channel_masks.ChannelOptions`."""


def attribute(run: Run, options: Options) -> Tensor:
    """``sum_k w_k A_k`` with ``w`` from the score of the image masked by each channel's map (arXiv:1910.01279).

    Constant channels get no weight and no forward. A network that ignores its input gives the mean channel.
    """
    masks = ChannelMasks(run, options)
    run.expect(masks.count + (len(run.x) if options.weighting == "linear" else 0))
    return masks.combine(masks.scores("scorecam"))
