"""How a layer's output lies on the grid of the input: feature maps, channels last, tokens, frames of a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Tokens before those of the patches: none, a class token, class and distillation, class and four registers.
_PREFIXES = (0, 1, 2, 5)


@dataclass(frozen=True)
class Layout:
    """Arrangement of a layer's output.

    Attributes:
        kind: ``map`` is ``[B, K, *s]``, ``last`` is ``[B, *s, K]``, ``tokens`` is ``[B, prefix + P, K]`` with
            tokens in row-major order of the grid, ``frames`` is ``[B * T, K, h, w]`` of a network that sees
            one frame at a time.
        grid: ``s``.
        prefix: tokens before those of the grid.
    """

    kind: Literal["map", "last", "tokens", "frames"]
    grid: tuple[int, ...]
    prefix: int = 0

    def to_grid(self, output: Tensor) -> Tensor:
        """Return ``[B, K, *s]``."""
        if self.kind == "map":
            return output
        if self.kind == "last":
            return output.movedim(-1, 1)
        if self.kind == "tokens":
            tokens = output[:, self.prefix :].transpose(1, 2)
            return tokens.reshape(*tokens.shape[:2], *self.grid)
        return output.reshape(-1, self.grid[0], *output.shape[1:]).transpose(1, 2)

    def from_grid(self, grid: Tensor, like: Tensor) -> Tensor:
        """Inverse of `to_grid`; prefix tokens are taken from `like`, repeated along the batch when needed."""
        if self.kind == "map":
            return grid
        if self.kind == "last":
            return grid.movedim(1, -1)
        if self.kind == "tokens":
            import torch

            tokens = grid.flatten(2).transpose(1, 2)
            head = like[:, : self.prefix]
            if len(head) != len(tokens):
                head = head.repeat_interleave(len(tokens) // len(head), 0)
            return torch.cat((head, tokens), 1)
        return grid.transpose(1, 2).flatten(0, 1)


def find_layout(
    shape: Sequence[int],
    batch: int,
    spatial: Sequence[int],
    network: nn.Module | None = None,
    grid: Sequence[int] | None = None,
) -> Layout | None:
    """Recognise the layout of a layer's output from its shape.

    Args:
        shape: of the output, batch included.
        batch: samples in the batch.
        spatial: ``S`` of the input.
        network: asked for the patch size of its embedding when the output is a row of tokens.
        grid: the token grid where it is known; it wins over what the shape suggests.

    Returns:
        the layout, or None when the output has no grid, or one of a single position.
    """
    dims, rank = len(spatial), len(shape)
    if rank == dims + 2 and shape[0] == batch:
        first, last = tuple(shape[2:]), tuple(shape[1:-1])
        layout = Layout("map", first)
        if _unevenness(last, spatial) < _unevenness(first, spatial):
            layout = Layout("last", last)
        return layout if prod(layout.grid) > 1 else None
    if rank == dims + 1 and dims == 3 and shape[0] == batch * spatial[0] and spatial[0] > 1:
        frames = (spatial[0], *shape[2:])
        return Layout("frames", frames) if prod(shape[2:]) > 1 else None
    if rank == 3 and dims >= 2 and shape[0] == batch:
        return _token_layout(shape[1], spatial, network, grid)
    return None


def _unevenness(grid: Sequence[int], spatial: Sequence[int]) -> float:
    """How much the strides of the axes differ; infinite for a grid larger than the input."""
    if any(g > s for g, s in zip(grid, spatial, strict=True)):
        return float("inf")
    strides = [s / g for g, s in zip(grid, spatial, strict=True)]
    return max(strides) / min(strides)


def _token_layout(
    count: int, spatial: Sequence[int], network: nn.Module | None, grid: Sequence[int] | None
) -> Layout | None:
    candidates = [tuple(grid)] if grid is not None else list(_grids(spatial, network))
    for prefix in _PREFIXES:
        for candidate in candidates:
            if prod(candidate) == count - prefix and prod(candidate) > 1:
                return Layout("tokens", candidate, prefix)
    return None


def _grids(spatial: Sequence[int], network: nn.Module | None) -> Iterator[tuple[int, ...]]:
    """Grids that the network's patch sizes, or any isotropic patch, cut the input into; likeliest first."""
    for module in network.modules() if network is not None else ():
        patch = getattr(module, "patch_size", None)
        if patch is None:
            continue
        sizes = tuple(patch) if isinstance(patch, (tuple, list)) else (patch,) * len(spatial)
        if len(sizes) == len(spatial) and all(isinstance(p, int) and p > 0 for p in sizes):
            cut = tuple(s // p for s, p in zip(spatial, sizes, strict=True))
            while min(cut) >= 1:  # a hierarchical network halves the grid from stage to stage
                yield cut
                cut = tuple(c // 2 for c in cut)
    for patch in range(2, max(spatial) + 1):
        if all(s % patch == 0 for s in spatial):
            yield tuple(s // patch for s in spatial)
