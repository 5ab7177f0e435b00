"""How concentrated a map is: sparseness, entropy, effective complexity."""

from __future__ import annotations

import torch
from torch import Tensor

from medxai.trust.curves import without_order
from medxai.trust.scores import Scores, scored

_EPS = 1e-7


def sparseness(maps: Tensor) -> Scores:
    """Gini coefficient of ``|map|`` (Chalasani et al. 2020): 0 for a uniform map, nearly 1 for a single voxel.

    Args:
        maps: ``[B, *S]``, of any scale.
    """
    ordered = (_of_largest(maps) + _EPS).sort(dim=1).values
    n = ordered.shape[1]
    place = 2 * torch.arange(1, n + 1, dtype=torch.float64) - n - 1
    found = (place * ordered).sum(1) / (n * ordered.sum(1)).clamp_min(1e-300)
    return scored("sparseness", found.numpy(), without_order(maps))


def entropy(maps: Tensor, *, relative: bool = False) -> Scores:
    """Entropy in nats of ``|map| / sum |map|`` (Bhatt et al. 2020).

    Args:
        maps: ``[B, *S]``.
        relative: divide by that of the uniform map, to compare grids of different size.
    """
    share = maps.flatten(1).double().abs().nan_to_num(0, 0, 0)
    share = share / share.sum(1, keepdim=True).clamp_min(1e-300)
    found = torch.special.entr(share).sum(1)
    if relative:
        found = found / torch.log(torch.tensor(float(share.shape[1])))
    return scored("complexity", found.numpy(), without_order(maps), "lower")


def effective_complexity(maps: Tensor, threshold: float = 1e-5) -> Scores:
    """Voxels above a share of the largest ``|map|`` (Nguyen and Martinez 2020)."""
    found = (_of_largest(maps) > threshold).sum(1)
    return scored("effective_complexity", found.double().numpy(), without_order(maps), "lower")


def _of_largest(maps: Tensor) -> Tensor:
    """``[B, N]`` float64 ``|map|`` over its largest value."""
    size = maps.flatten(1).double().abs().nan_to_num(0, 0, 0)
    return size / size.amax(1, keepdim=True).clamp_min(1e-300)
