"""Layer masking: the network computes with the kept voxels only, so that a mask's shape says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medxai.explain.masking.layer_masking import LayerMasked
from medxai.explain.masking.masked_tensor import MaskedTensor
from medxai.explain.masking.operator import Fill, OperatorInfo, binary
from medxai.explain.split import infer

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = OperatorInfo(
    name="layer_mask",
    title="Layer masking",
    reference="Balasubramanian and Feizi 2022",
    soft=False,
    place="network",
    caveat="convolutional networks only; one forward costs about twice a plain one",
)


def prepare(run: Run) -> Fill:
    """Run the network on pairs of image and mask."""
    size = run.samples_at_once

    def query(masks: Tensor, rows: Tensor) -> Tensor:
        parts = []
        for keep, which in zip(torch.split(binary(masks), size), torch.split(rows, size), strict=True):
            with LayerMasked(run.network) as masked:
                pair = MaskedTensor(run.x[which], keep.to(run.x), masked.context)
                parts.append(infer(run.shared.forward, run.shared.inputs.replace(pair, which)).float())
        return torch.cat(parts)

    return query
