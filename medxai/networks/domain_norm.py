"""Batch normalisation that keeps the statistics of several kinds of input apart."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional


class DomainBatchNorm(nn.Module):
    """Batch normalisation with its own statistics and scale for each domain (Chang et al. 2019, arXiv:1906.03950).

    An encoder that several kinds of image share sees their statistics one kind at a time while it is trained. Running
    means over all of them fit none, and what was learned is lost in evaluation mode.

    A batch of a single value per channel has no variance; it is normalised by the running statistics in training too.

    Args:
        features: channels.
        domains: kinds of input.
    """

    def __init__(self, features: int, domains: int = 1) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm3d(features) for _ in range(domains))

    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        """Normalise ``[N, C, *S]`` of one domain."""
        norm = cast("nn.BatchNorm3d", self.norms[domain])
        return functional.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            training=self.training and x.numel() > x.shape[1],
            momentum=norm.momentum or 0.0,
            eps=norm.eps,
        )
