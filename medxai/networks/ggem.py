"""Group generalised mean pooling: a head that every class activation map works with, for tokens and feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class GGeM(nn.Module):
    """``y_gk = (mean_j max(x_jgk, eps)^p_g)^(1/p_g)`` over positions j, one learnable power for each group of channels.

    ``p = 1`` is the mean, a large ``p`` the maximum; the power of a group says how sharply its evidence is
    localised. Group generalised mean pooling for vision transformers (Ko et al. 2022).
    """

    def __init__(
        self, channels: int, groups: int = 1, p: float = 3.0, eps: float = 1e-6, *, softplus: bool = False
    ) -> None:
        """Make the head.

        Args:
            channels: K.
            groups: how many powers; the number of attention heads is usual.
            p: initial power.
            eps: smallest value; token features are signed, and what is below takes no part.
            softplus: map features through softplus instead of cutting negative ones off.

        Raises:
            ValueError: the channels do not divide into the groups, or the power is not positive.
        """
        super().__init__()
        if groups < 1 or channels % groups:
            msg = f"{channels} channels do not divide into {groups} groups"
            raise ValueError(msg)
        if p <= 0 or eps <= 0:
            msg = "p and eps must be positive"
            raise ValueError(msg)
        self.groups, self.eps, self.softplus = groups, eps, softplus
        self.p = nn.Parameter(torch.full((groups,), float(p)))

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``[B, K, *s]`` over positions to ``[B, K]``; for tokens ``[B, N, K]`` give ``x.transpose(1, 2)``."""
        values = x.flatten(2).float()
        values = functional.softplus(values) if self.softplus else values
        values = values.clamp_min(self.eps)
        power = self.p.repeat_interleave(values.shape[1] // self.groups)[None, :, None]
        # Divided by the largest value first: a power of it would leave the range of float32.
        top = values.amax(2, keepdim=True)
        pooled = ((values / top) ** power).mean(2, keepdim=True) ** (1 / power) * top
        return pooled[:, :, 0].to(x.dtype)

    def token_weights(self, x: Tensor) -> Tensor:
        """Derivative ``dy_k / dx_jk = (x_j / y)^(p-1) / P`` as ``[B, K, *s]``, in closed form; 0 where x is cut off."""
        if self.softplus:
            msg = "the closed form is that of the cut-off features; with softplus use gradients"
            raise ValueError(msg)
        values = x.flatten(2).float()
        pooled = self(x).float()[:, :, None]
        power = self.p.detach().repeat_interleave(values.shape[1] // self.groups)[None, :, None]
        weights = (values.clamp_min(self.eps) / pooled) ** (power - 1) / values.shape[2]
        result: Tensor = (weights * (values >= self.eps)).view(x.shape)
        return result
