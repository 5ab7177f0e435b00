"""Neighbour fill: removed voxels take the mean of their neighbours, ring by ring from the edge of the hole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.masking.neighbour_fill import neighbour_fill
from medxai.explain.masking.operator import Fill, OperatorInfo, binary, take

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = OperatorInfo(
    name="neighbour",
    title="Neighbour fill",
    reference="Balasubramanian and Feizi 2022",
    soft=False,
    caveat="large holes become smooth",
)


def prepare(run: Run) -> Fill:
    """Fill until nothing is empty; an image removed as a whole becomes zero."""

    def fill(masks: Tensor, rows: Tensor) -> Tensor:
        keep = binary(masks)
        image = take(run.x, rows).expand(len(keep), *run.x.shape[1:])
        return neighbour_fill(image, keep)

    return fill
