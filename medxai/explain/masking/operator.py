"""What an operator file says about itself: `INFO` and `prepare`, the same two names in every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from medxai.explain.run import Run

#: ``masks [N, *S]``, ``rows [N]`` -> images ``[N, C, *S]``, or outputs ``[N, ...]`` of the network.
Fill = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OperatorInfo:
    """An operator's entry.

    Attributes:
        name: registry name, equal to the file's.
        title: as people write it.
        reference: authors and year; empty for what everybody does.
        soft: masks may lie between 0 and 1; others are cut at 0.5.
        place: it changes the image, or the way the network reads it.
        caveat: what a reader of maps made with it must know.
    """

    name: str
    title: str
    reference: str = ""
    soft: bool = True
    place: Literal["image", "network"] = "image"
    caveat: str = ""


class Operator(Protocol):
    """What an operator file offers."""

    INFO: OperatorInfo

    @staticmethod
    def prepare(run: Run) -> Fill:
        """Work out what does not depend on the mask, once, and return what does."""
        ...


def take(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]``; a batch of one is left to broadcast, which saves a copy."""
    return values if len(values) == 1 else values.index_select(0, rows.to(values.device))


@dataclass(frozen=True, eq=False)
class Blend:
    """Operator with a baseline that does not depend on the mask: ``x m + base (1 - m)``.

    Attributes:
        x: ``[B, C, *S]``.
        base: anything that broadcasts to it; None for zero.
    """

    x: Tensor
    base: Tensor | None = None

    def __call__(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Images ``[N, C, *S]``, see `Fill`."""
        keep = masks[:, None].to(self.x)
        kept = take(self.x, rows) * keep
        return kept if self.base is None else kept + take(self.base, rows) * (1 - keep)

    def baseline(self, row: int) -> Tensor:
        """``[C, *S]`` what a sample becomes where nothing is kept."""
        if self.base is None:
            return torch.zeros_like(self.x[row])
        return self.base[min(row, len(self.base) - 1)].expand_as(self.x[row])


def binary(masks: Tensor) -> Tensor:
    """``[N, *S]`` -> ``[N, 1, *S]`` bool, True where kept."""
    return (masks > 0.5)[:, None]


def per_sample(values: Tensor, rank: int) -> Tensor:
    """``[N]`` or ``[N, C]`` with trailing axes up to `rank`."""
    return values.reshape(*values.shape, *[1] * (rank - values.ndim))


def is_volume(spatial: tuple[int, ...]) -> bool:
    """True for three axes with more than one position; a volume of one slice is an image."""
    return sum(size > 1 for size in spatial) > 2


def voxel_size(run: Run) -> Tensor:
    """Edge lengths ``[B, dims]`` of the voxels in mm, all 1 when the image came without an affine."""
    dims, affine = len(run.spatial), run.shared.inputs.affine
    if affine is None or dims > 3 or affine.shape[-1] != 4:
        return torch.ones(len(run.x), dims)
    size: Tensor = torch.linalg.vector_norm(affine.detach().cpu().float()[..., :3, :dims], dim=-2)
    return size.expand(len(run.x), dims)
