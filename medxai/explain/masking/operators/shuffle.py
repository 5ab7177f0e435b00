"""Shuffle: removed voxels change places with each other, which keeps their histogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medxai.explain.masking.operator import Fill, OperatorInfo, binary, take

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = OperatorInfo(
    name="shuffle",
    title="Shuffle within what is removed",
    soft=False,
    caveat="destroys texture and keeps intensity: a bright lesion stays bright on average",
)


def prepare(run: Run) -> Fill:
    """Permute the removed voxels, channels together, by one order drawn from the seed."""
    size = run.x[0, 0].numel()
    order = torch.randperm(size, generator=run.generator()).to(run.x.device)
    raster = torch.arange(size, device=run.x.device)

    def fill(masks: Tensor, rows: Tensor) -> Tensor:
        kept = binary(masks).flatten(1).to(run.x.device)
        # Kept voxels sort behind the removed ones and in raster order in both, so that they stay where they are.
        places = torch.where(kept, raster + size, raster).argsort(1)
        sources = torch.where(kept, raster + size, order).argsort(1)
        image = take(run.x, rows).flatten(2)
        shape = (len(kept), *image.shape[1:])
        moved = image.expand(shape).gather(2, sources[:, None].expand(shape))
        placed = torch.zeros_like(moved).scatter(2, places[:, None].expand(shape), moved)
        return placed.view(*shape[:2], *run.spatial)

    return fill
