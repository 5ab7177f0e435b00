"""Blur: the image without detail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.gaussian import smooth
from medxai.explain.masking.operator import Blend, Fill, OperatorInfo

if TYPE_CHECKING:
    from medxai.explain.run import Run

INFO = OperatorInfo(name="blur", title="Gaussian blur", caveat="leaves low frequencies: a large mass stays visible")
#: Standard deviation as a share of the image's size along each axis.
SHARE = 0.1


def prepare(run: Run) -> Fill:
    """Blend with the image smoothed by a Gaussian of a tenth of the image along every axis."""
    smoothed = smooth(run.x.float(), [SHARE * size for size in run.spatial])
    return Blend(run.x, smoothed.to(run.x))
