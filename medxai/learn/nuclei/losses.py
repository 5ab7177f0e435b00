"""Losses of a network of nuclei: its mask, its detection, and its features (DoNuSeg, section 5 in our numbers)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medxai.predict.nuclei_blocks import IGNORED


def segmentation_loss(logits: Tensor, label: Tensor, voronoi: Tensor | None, weight: float) -> Tensor:
    """Cross-entropy and Dice against a label, and a share of the cross-entropy against the label of cells.

    Args:
        logits: ``[N, 2, H, W]``.
        label: ``[N, H, W]`` 1, 0 or ignored.
        voronoi: likewise; None without.
        weight: of the latter.
    """
    loss = cross_entropy(logits, label) + dice_loss(logits, label)
    return loss if voronoi is None or not weight else loss + weight * cross_entropy(logits, voronoi)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over the pixels that are not ignored; 0 when all are."""
    total = functional.cross_entropy(logits, label.long(), ignore_index=IGNORED, reduction="sum")
    return total / (label != IGNORED).sum().clamp_min(1)


def dice_loss(logits: Tensor, label: Tensor) -> Tensor:
    """1 less the Dice coefficient of the nuclei of the whole batch, on pixels that are not ignored."""
    valid = label != IGNORED
    p, y = logits.softmax(1)[:, 1][valid], (label == 1)[valid].float()
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def detection_loss(detection: Tensor, heat: Tensor) -> Tensor:
    """Mean squared error ``[N, H, W]``; pixels about a point (heat above 0.05) count tenfold."""
    weights = 1 + 9 * (heat > 0.05).float()
    return (weights * (detection - heat).square()).sum() / weights.sum()


def contrastive_loss(nucleus: Tensor, tissue: Tensor, temperature: float) -> Tensor:
    """Draw features to the prototype of their own kind and away from pixels of the other.

    ``-log exp(z.c / tau) / (exp(z.c / tau) + sum_j exp(z.z_j / tau))``, j over the other kind; no gradient through the
    prototypes c.

    Args:
        nucleus: ``[n, P]`` of length 1.
        tissue: ``[m, P]`` likewise.
        temperature: tau.
    """
    return (_drawn(nucleus, tissue, temperature) + _drawn(tissue, nucleus, temperature)) / 2


def _drawn(mine: Tensor, others: Tensor, temperature: float) -> Tensor:
    centre = functional.normalize(mine.detach().mean(0), dim=0)
    own = mine @ centre / temperature
    against = mine @ others.T / temperature
    return -(own - torch.cat([own[:, None], against], 1).logsumexp(1)).mean()
