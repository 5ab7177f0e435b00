"""Mirror: the other side of the patient stands in for healthy tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medxai.explain.masking.operator import Blend, Fill, OperatorInfo

if TYPE_CHECKING:
    from medxai.explain.run import Run

INFO = OperatorInfo(
    name="mirror",
    title="Contralateral mirror",
    caveat="assumes a patient in the middle of the image, and the other side healthy",
)


def prepare(run: Run) -> Fill:
    """Blend with the image flipped from left to right: the axis nearest to it by the affine, or else the last."""
    affine, dims = run.shared.inputs.affine, len(run.spatial)
    axes = [dims - 1] * len(run.x)
    if affine is not None and affine.shape[-1] == 4 and dims <= 3:
        columns = affine.detach().cpu().float()[..., :3, :dims]
        share = columns[..., 0, :].abs() / columns.norm(dim=-2).clamp_min(1e-12)
        axes = share.expand(len(run.x), dims).argmax(1).tolist()
    flipped = torch.stack([image.flip(axis + 1) for image, axis in zip(run.x, axes, strict=True)])
    return Blend(run.x, flipped)
