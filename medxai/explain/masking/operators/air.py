"""Air: the smallest intensity of each channel, the background of CT, MRI and ultrasound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.masking.operator import Blend, Fill, OperatorInfo, per_sample

if TYPE_CHECKING:
    from medxai.explain.run import Run

INFO = OperatorInfo(name="air", title="Air (minimum)", caveat="leaves a hole with sharp edges, itself a feature")


def prepare(run: Run) -> Fill:
    """Blend with the minimum ``[B, C]`` over positions."""
    return Blend(run.x, per_sample(run.x.flatten(2).amin(-1), run.x.ndim))
