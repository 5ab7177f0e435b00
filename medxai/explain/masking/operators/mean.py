"""Mean: the image's own mean intensity in each channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.masking.operator import Blend, Fill, OperatorInfo, per_sample

if TYPE_CHECKING:
    from medxai.explain.run import Run

INFO = OperatorInfo(name="mean", title="Mean of the image", caveat="depends on how much background the image has")


def prepare(run: Run) -> Fill:
    """Blend with the mean ``[B, C]`` over positions."""
    return Blend(run.x, per_sample(run.x.flatten(2).mean(-1), run.x.ndim))
