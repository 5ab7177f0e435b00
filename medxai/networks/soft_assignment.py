"""Assignment of embeddings to clusters that gives every cluster a share."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distances(z: Tensor, centroids: Tensor) -> Tensor:
    """``||z_i - mu_j||^2`` ``[N, K]`` of embeddings ``[N, d]`` and centroids ``[K, d]``."""
    return (z[:, None] - centroids[None]).square().sum(-1)


def log_assignment(z: Tensor, centroids: Tensor) -> Tensor:
    """``log q`` ``[N, K]``, Student's t with one degree of freedom, rows of q sum to 1 (Xie et al. 2016, equation 1).

    Args:
        z: ``[N, d]``.
        centroids: ``[K, d]``.
    """
    return torch.log_softmax(-torch.log1p(squared_distances(z, centroids)), dim=1)
