"""Which windows of a regular grid to look at when there is time for a share of them only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional

from medxai.explain.windows import Windows

#: Effect ``[B, n]`` of windows ``index [B, n]`` of a grid.
Ask = Callable[[Windows, Tensor], Tensor]

#: With fewer windows to choose there is too little to go by, and running all of them costs little.
LEAST = 120
#: Rounds of refinement after the first look, and the share of what is left that the first look may take.
ROUNDS, FIRST = 12, 0.1


def plan(windows: Windows, budget: float) -> tuple[Windows, int] | None:
    """Blocks of the first pass and how many windows follow, or None where these would be too few.

    Args:
        windows: all of them.
        budget: share of them that may be run, both passes together.
    """
    sizes = tuple(min(s, 2 * w) for s, w in zip(windows.spatial, windows.size, strict=True))
    blocks = Windows(windows.spatial, sizes, sizes)
    left = int(budget * windows.count) - blocks.count
    return (blocks, left) if left >= LEAST else None


def estimate(windows: Windows, blocks: Windows, left: int, batch: int, ask: Ask) -> Tensor:
    """Effect ``[B, windows]`` of all windows from `left` of them, chosen for each sample by what was seen before.

    Blocks of twice the size, side by side, show where to look. Every second window in the strongest of them
    follows, then, in rounds, whatever lies beside strong windows. Between known windows values are interpolated;
    far from any the effect counts as zero.

    Args:
        windows: all of them.
        blocks: of the first pass.
        left: windows to run.
        batch: ``B``.
        ask: runs windows.
    """
    grid = windows.grid
    effect = blocks.average(ask(blocks, torch.arange(blocks.count).expand(batch, -1))).abs()
    for axis, span in enumerate(windows.spans, start=1):
        share = (span / span.sum(1, keepdim=True)).to(effect)
        effect = torch.tensordot(effect, share, dims=([axis], [1])).movedim(-1, axis)
    second = torch.ones(grid, dtype=torch.bool)
    for axis, size in enumerate(grid):
        odd = (torch.arange(size) % 2 == 1).view([size if a == axis else 1 for a in range(len(grid))])
        second = second & ~odd
    first = min(max(1, int(FIRST * left)), int(second.sum()))
    priority = effect.masked_fill(~second, -1.0)
    known = torch.zeros(batch, *grid, dtype=torch.bool)
    values = torch.zeros(batch, *grid)
    each = ceil((left - first) / ROUNDS)
    remaining = left
    for count in (first, *[each] * ROUNDS):
        count = min(count, remaining)
        if count <= 0:
            break
        remaining -= count
        index = priority.flatten(1).topk(count).indices
        values.flatten(1).scatter_(1, index, ask(windows, index))
        known.flatten(1).scatter_(1, index, torch.ones_like(index, dtype=torch.bool))
        near = _around(values.abs(), torch.maximum)
        priority = (_between(values, known).abs() + 0.25 * near).masked_fill(known, -1.0)
    return _between(values, known).flatten(1)


def _between(values: Tensor, known: Tensor) -> Tensor:
    """Known values as they are, weighted means of their known neighbours elsewhere, shrunk where these are few."""
    total = _around(values, lambda a, b: a + b, side=0.5)
    weight = _around(known.float(), lambda a, b: a + b, side=0.5)
    return torch.where(known, values, total / (weight + 0.25))


def _around(values: Tensor, join: Callable[[Tensor, Tensor], Tensor], side: float = 1.0) -> Tensor:
    """Combine each cell of ``[B, *grid]`` with its neighbours along every axis, these multiplied by `side`."""
    axes: Sequence[int] = range(1, values.ndim)
    for axis in axes:
        size = values.shape[axis]
        padded = functional.pad(values, [0, 0] * (values.ndim - 1 - axis) + [1, 1])
        beside = join(padded.narrow(axis, 0, size), padded.narrow(axis, 2, size))
        values = join(values, side * beside)
    return values
