"""Pooling of masked feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medxai.explain.masking.masked_tensor import MaskedTensor

Rule = Callable[..., Any]
_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def spread(value: Any, dims: int) -> tuple[int, ...]:
    """One number for all axes, or one each, as a tuple."""
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values


def flat(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Pads before and after each axis in the order of `torch.nn.functional.pad`, last axis first."""
    return tuple(p for pair in reversed(pads) for p in pair)


def any_valid(
    mask: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    around: Sequence[int],
    dilation: Sequence[int],
    *,
    up: bool = False,
) -> Tensor:
    """``[N, 1, *S']``: 1 where a window saw a valid position; `around` are pads, `up` is ``ceil_mode``."""
    if all(k == 1 for k in kernel) and not any(around):
        return mask[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]
    padded = functional.pad(mask, tuple(around))
    pooled: Tensor = _MAX[mask.ndim - 2](padded, tuple(kernel), tuple(stride), 0, tuple(dilation), up)
    return pooled


def max_pool(
    func: Rule,
    input: MaskedTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> MaskedTensor:
    """Largest valid value of each window."""
    values, mask = input.x.masked_fill(input.m == 0, -torch.inf), input.m
    if input.border is not None:
        values = functional.pad(values, input.border[0], value=input.border[1])
        mask = functional.pad(mask, input.border[0])
    dims = values.ndim - 2
    kernel = spread(kernel_size, dims)
    steps = kernel if stride is None or stride == [] else spread(stride, dims)
    arguments = (kernel, steps, spread(padding, dims), spread(dilation, dims), bool(ceil_mode))
    pool = _MAX[dims]
    valid = pool(mask, *arguments)
    return MaskedTensor(pool(values, *arguments), valid, input.context)


def avg_pool(
    func: Rule,
    input: MaskedTensor,
    *rest: Any,
    **named: Any,
) -> MaskedTensor:
    """Mean of each window with zeros for what is not valid; with `Context.renormalise` of the valid values."""
    values, mask = input.x, input.m
    if input.border is not None:
        values = functional.pad(values, input.border[0], value=input.border[1])
        mask = functional.pad(mask, input.border[0])
    value, share = func(values, *rest, **named), func(mask, *rest, **named)
    if input.context.renormalise:
        whole = func(torch.ones_like(mask), *rest, **named)
        value = value * torch.where(share > 0, whole / share.clamp_min(1e-8), 0)
    return MaskedTensor(value, share, input.context)


def adaptive_avg_pool(func: Rule, input: MaskedTensor, output_size: Any) -> Tensor:
    """Mean over the valid positions of each cell; a single cell is a plain tensor, the end of the masked part."""
    share = func(input.m, output_size)
    value = func(input.x, output_size) * torch.where(share > 0, 1 / share.clamp_min(1e-30), 0)
    return _single(value, share, input)


def adaptive_max_pool(func: Rule, input: MaskedTensor, output_size: Any, return_indices: bool = False) -> Tensor:
    """Largest valid value of each cell; a single cell is a plain tensor."""
    share = func(input.m, output_size)
    value = func(input.x.masked_fill(input.m == 0, -torch.inf), output_size)
    return _single(torch.where(share > 0, value, 0), share, input)


def _single(value: Tensor, share: Tensor, source: MaskedTensor) -> Tensor:
    if value[0, 0].numel() == 1:
        return value
    return MaskedTensor(value, share, source.context)


POOLS: dict[str, Rule] = {
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "adaptive_avg_pool": adaptive_avg_pool,
    "adaptive_max_pool": adaptive_max_pool,
}
