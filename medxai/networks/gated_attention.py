"""Gated attention over the tiles of a slide: multiple instance learning after Ilse et al. 2018 (arXiv:1802.04712)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GatedAttention(nn.Module):
    """``a = softmax_n(w . (tanh(V h_n) * sigmoid(U h_n)))``, logits from the mean of the tiles weighted by it.

    Args:
        features: numbers of a tile.
        hidden: rows of V and U.
        classes: logits.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, features: int, hidden: int = 64, classes: int = 2) -> None:
        super().__init__()
        self.what = nn.Linear(features, hidden)
        self.gate = nn.Linear(features, hidden)
        self.weigh = nn.Linear(hidden, 1, bias=False)
        self.head = nn.Linear(features, classes)
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[..., K]`` and attention ``[..., n]``, which sums to 1, of bags of tiles ``[..., n, features]``."""
        h = (tiles - self.centre) * self.scale
        scores = self.weigh(torch.tanh(self.what(h)) * torch.sigmoid(self.gate(h)))
        attention = torch.softmax(scores.squeeze(-1), dim=-1)
        return self.head((attention.unsqueeze(-1) * h).sum(-2)), attention
