"""Networks whose answers to masked images are known in closed form."""

from __future__ import annotations

import torch
from torch import nn


class Linear(nn.Module):
    """``logit_k = <w_k, x> + b_k`` over the whole image; with a zero baseline ``w_k x`` adds up exactly."""

    def __init__(self, shape: tuple[int, ...], classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        count = int(torch.tensor(shape).prod())
        self.shape = shape
        self.fc = nn.Linear(count, classes)
        with torch.no_grad():
            self.fc.weight.copy_(torch.randn(classes, count, generator=source) / count**0.5)
            self.fc.bias.copy_(torch.randn(classes, generator=source))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))

    def attribution(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """``[B, *S]`` sum over channels of ``w x``."""
        weight = self.fc.weight[index].detach().view(self.shape)
        return (weight * x).sum(1)


class Constant(nn.Module):
    """Ignores the image."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(classes, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(x), -1) + 0 * x.flatten(1).sum(1, keepdim=True)
