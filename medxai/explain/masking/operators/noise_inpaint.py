"""Noisy linear imputation (ROAD): removed voxels solve for the mean of their neighbours, and noise hides the seam."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medxai.explain.masking.linear_fill import linear_fill
from medxai.explain.masking.operator import Fill, OperatorInfo, binary, take, voxel_size

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = OperatorInfo(
    name="noise_inpaint",
    title="Noisy linear imputation",
    reference="Rong et al. 2022",
    soft=False,
    caveat="large holes become smooth, which a network may not know",
)
#: Standard deviation of the noise as a share of the image's range.
NOISE = 0.01


def prepare(run: Run) -> Fill:
    """Solve for the removed voxels; weights fall with the squared distance in mm."""
    x = run.x.float()
    spread = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    noise = NOISE * run.noise(1).float() * spread.view(-1, *[1] * (x.ndim - 1))
    spacing = voxel_size(run)

    def fill(masks: Tensor, rows: Tensor) -> Tensor:
        keep = binary(masks)
        image = take(x, rows).expand(len(keep), *x.shape[1:])
        filled = linear_fill(image, keep, take(spacing, rows).expand(len(keep), -1))
        return torch.where(keep, image, filled + take(noise, rows)).to(run.x)

    return fill
