"""Attention inside shifted windows (Swin transformers of MONAI) on the grid of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn


def is_windowed(module: nn.Module) -> bool:
    """Whether a module is a block with attention in windows whose partition can be asked for."""
    return all(hasattr(module, name) for name in ("forward_part1", "window_size", "shift_size", "norm1", "attn"))


def window_index(block: Any, grid: Sequence[int]) -> Tensor:
    """``[windows * n]`` index into the grid's tokens (row-major) of every token of every window; -1 is padding.

    The block itself is asked: its own partition is applied to a grid of numbers.
    """
    numbers = torch.arange(1, prod(grid) + 1, dtype=torch.float64).view(1, *grid, 1)
    seen: list[Tensor] = []

    def note(windows: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(windows)
        return windows

    with _forward(block.norm1, lambda x: x), _forward(block.attn, note), torch.no_grad():
        block.forward_part1(numbers, None)
    return seen[0].flatten().long() - 1


def pull_windows(values: Tensor, matrix: Tensor, index: Tensor) -> Tensor:
    """``v A`` for attention in windows.

    Args:
        values: ``[B, N]`` a number for every query token.
        matrix: ``[B * windows, n, n]`` query by key.
        index: of `window_index`.
    """
    index = index.to(values.device)
    inside = (index >= 0).to(values)
    placed = values[:, index.clamp_min(0)] * inside
    batch, size = len(values), matrix.shape[-1]
    pulled = (placed.view(-1, 1, size) @ matrix.to(values)).view(batch, -1) * inside
    return torch.zeros_like(values).index_add_(1, index.clamp_min(0), pulled)


def split_merged(values: Tensor, coarse: Sequence[int], fine: Sequence[int]) -> Tensor:
    """Numbers of merged tokens ``[B, prod(coarse)]``, shared evenly by the tokens ``[B, prod(fine)]`` in each."""
    spread = values.view(len(values), *coarse)
    for axis, (small, large) in enumerate(zip(coarse, fine, strict=True), start=1):
        factor = -(-large // small)
        # At an odd edge a token was merged with padding, which keeps its share.
        spread = spread.repeat_interleave(factor, axis).narrow(axis, 0, large) / factor
    return spread.flatten(1)


@contextmanager
def _forward(module: nn.Module, function: Any) -> Iterator[None]:
    """Another forward for the time being."""
    kept = module.__dict__.get("forward")
    module.forward = function
    try:
        yield
    finally:
        if kept is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = kept
