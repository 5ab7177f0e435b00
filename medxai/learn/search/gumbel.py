"""One operation a cell, drawn from its architecture weights so that they still get a gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Draw:
    """A sampled path.

    Attributes:
        gates: ``[cells, operations]`` exactly 0 or 1, differentiable by the architecture weights.
        choice: index of the operation of each cell.
    """

    gates: Tensor
    choice: tuple[int, ...]


class _StraightThrough(torch.autograd.Function):
    """The hard sample forward, the gradient of the soft one backward.

    ``hard - soft.detach() + soft`` has the same gradient, but is not exactly 1 in floating point.
    """

    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def draw(weights: Tensor, temperature: float, generator: torch.Generator) -> Draw:
    """Sample by Gumbel-softmax (Jang et al. 2017, arXiv:1611.01144; Maddison et al. 2017, arXiv:1611.00712).

    Args:
        weights: ``[cells, operations]`` architecture weights, log-probabilities up to a constant per cell.
        temperature: of the softmax; the choice itself does not depend on it.
        generator: of the noise.
    """
    uniform = torch.rand(weights.shape, generator=generator).clamp_min(torch.finfo(torch.float32).tiny)
    soft = torch.softmax((weights - (-uniform.log()).log()) / temperature, dim=1)
    index = soft.argmax(1, keepdim=True)
    hard = torch.zeros_like(soft).scatter_(1, index, 1.0)
    gates: Tensor = _StraightThrough.apply(soft, hard)  # type: ignore[no-untyped-call]
    return Draw(gates, tuple(index[:, 0].tolist()))


def temperature(epoch: int, epochs: int, first: float, last: float) -> float:
    """Exponential from `first` in epoch 0 to `last` in the final one."""
    return float(first * (last / first) ** (epoch / max(1, epochs - 1)))


def entropy(weights: Tensor) -> Tensor:
    """Entropy of the probabilities of ``[..., operations]`` as a share of the largest: 1 undecided, 0 decided."""
    log = torch.log_softmax(weights.detach(), dim=-1)
    return -(log.exp() * log).sum(-1) / math.log(weights.shape[-1])
