"""Attention matrices of any transformer, taken where the softmax is computed, without touching its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from medxai.errors import ExplainError
from medxai.explain.layout import find_layout
from medxai.explain.modes import evaluation
from medxai.explain.run import Run
from medxai.explain.target import select_output
from medxai.explain.window_attention import is_windowed, pull_windows, split_merged, window_index

_SOFTMAX = {functional.softmax, torch.softmax, Tensor.softmax}


class AttentionTape(TorchFunctionMode):
    """Watches for softmaxes over square matrices while a network runs.

    Fused attention is computed in its plain form, so that its matrix exists and has a gradient.
    """

    def __init__(self, keep: Callable[[Tensor], Tensor]) -> None:
        """Hand every attention matrix ``[..., N, N]`` to `keep`, and its result on to the network."""
        super().__init__()
        self._keep = keep

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function while the tape is entered."""
        kwargs = kwargs or {}
        if func in _SOFTMAX:
            return self._watched(func(*args, **kwargs), kwargs.get("dim", args[1] if len(args) > 1 else -1))
        if func is functional.scaled_dot_product_attention:
            return self._plain(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        return func(*args, **kwargs)

    def _watched(self, weights: Tensor, dim: int | None) -> Tensor:
        last = dim in (-1, weights.ndim - 1)
        square = weights.ndim >= 3 and weights.shape[-1] == weights.shape[-2] > 1
        return self._keep(weights) if last and square else weights

    def _plain(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> Tensor:
        """``softmax(q k' s + mask) v``; dropout has no part in evaluation."""
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            hidden = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if hidden else scores + attn_mask
        return self._watched(scores.softmax(-1), -1) @ value

    def _multi_head(
        self, query: Tensor, key: Tensor, value: Tensor, _embed: int, heads: int, weight: Tensor | None,
        bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None, zero: bool, _dropout: float,
        out_weight: Tensor, out_bias: Tensor | None, *_: Any, attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None, **__: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Torch's multi-head attention with one projection, sequence first."""
        if weight is None or bias_k is not None or bias_v is not None or zero or key_padding_mask is not None:
            msg = "multi-head attention with separate projections, extra tokens or padding cannot be read"
            raise ExplainError(msg)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        parts = [
            functional.linear(x, w, b).reshape(*x.shape[:2], heads, -1).permute(1, 2, 0, 3)  # [B, heads, N, d]
            for x, w, b in zip((query, key, value), weight.chunk(3), biases, strict=True)
        ]
        mixed = self._plain(parts[0], parts[1], parts[2], attn_mask)
        return functional.linear(mixed.permute(2, 0, 1, 3).flatten(2), out_weight, out_bias), None


@dataclass(frozen=True, eq=False)
class Step:
    """One attention of the network.

    Attributes:
        matrix: ``[B, heads, N, N]``, or ``[B * windows, heads, n, n]`` inside windows; query by key.
        grid: of its tokens.
        index: of the windows' tokens on the grid (see `window_index`); None for attention between all tokens.
        block: name of the module that holds it and a residual; empty inside windows.
        tokens: output ``[B, N, K]`` of the block.
    """

    matrix: Tensor
    grid: tuple[int, ...]
    index: Tensor | None = None
    block: str = ""
    tokens: Tensor | None = None

    def pull(self, values: Tensor, matrix: Tensor) -> Tensor:
        """``v M`` for ``[B, N]`` and a head-averaged matrix of this step's form."""
        if self.index is not None:
            return pull_windows(values, matrix, self.index)
        return (values.unsqueeze(1) @ matrix.to(values)).squeeze(1)


@dataclass(frozen=True, eq=False)
class Attended:
    """One forward pass with its attention.

    Attributes:
        output: scores, with a graph down to the matrices when one was asked for.
        steps: in the order of computation.
        prefix: tokens before those of the grid.
    """

    output: Tensor
    steps: Sequence[Step]
    prefix: int

    def image(self, values: Tensor) -> Tensor:
        """Values of all tokens ``[B, N]`` of the first step -> the patches' on their grid ``[B, *s]``."""
        return values[:, self.prefix :].reshape(-1, *self.steps[0].grid)

    def readout(self) -> Tensor:
        """What the head reads: 1 at the class token, or 1/N at every token of the last step, ``[B, N]``."""
        last = self.steps[-1]
        batch = len(self.output)
        if self.prefix:
            values = torch.zeros(batch, last.matrix.shape[-1], device=last.matrix.device)
            values[:, 0] = 1
            return values
        count = prod(last.grid)
        return torch.full((batch, count), 1 / count, device=last.matrix.device)

    def pulled(self, mix: Callable[[int, Step, Tensor], Tensor]) -> Tensor:
        """Take the readout back to the first tokens: ``v <- mix(number, step, v)`` from the last step to the first."""
        values = self.readout()
        grid = self.steps[-1].grid
        for number in reversed(range(len(self.steps))):
            step = self.steps[number]
            if step.grid != grid:
                values, grid = split_merged(values, grid, step.grid), step.grid
            values = mix(number, step, values)
        return values


def attend(run: Run, *, graph: bool, isolate: bool = False) -> Attended:
    """Run the clean batch and keep its attention.

    Args:
        run: batch and network.
        graph: keep a graph from the first matrix on.
        isolate: make every matrix a leaf, so that a block's output depends on its own alone.

    Raises:
        ExplainError: no attention over a grid of patches.
    """
    network, inputs, batch = run.network, run.shared.inputs, len(run.x)
    matrices: list[Tensor] = []
    owners: list[list[str]] = []
    stack: list[str] = []
    outputs: dict[str, Tensor] = {}
    sizes: dict[str, tuple[int, ...]] = {}

    def keep(weights: Tensor) -> Tensor:
        if graph and (isolate or not weights.requires_grad):
            weights = weights.detach().requires_grad_()
            torch.set_grad_enabled(True)  # until the surrounding no_grad ends
        matrices.append(weights)
        owners.append(list(stack))
        return weights

    def leave(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            stack.pop()
            if isinstance(output, Tensor) and output.ndim == 3 and len(output) == batch:
                outputs[name] = output

        return hook

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any) -> None:
            stack.append(name)
            if is_windowed(module):
                sizes[name] = tuple(given[0].shape[1:-1])

        return hook

    named = [(name, module) for name, module in network.named_modules() if name]
    handles = [module.register_forward_pre_hook(enter(name)) for name, module in named]
    handles += [module.register_forward_hook(leave(name)) for name, module in named]
    try:
        with evaluation(network), torch.no_grad(), AttentionTape(keep):
            output = select_output(inputs.call(network), run.shared.forward.output)
    finally:
        for handle in handles:
            handle.remove()
    if any(block in sizes for owner in owners for block in owner):
        return Attended(output, _windowed(network, matrices, owners, sizes), 0)
    count = matrices[0].shape[-1] if matrices else 0
    layout = find_layout((batch, count, 1), batch, run.spatial, network, run.shared.forward.grid) if count else None
    if layout is None or any(m.ndim != 4 or m.shape[0] != batch or m.shape[-1] != count for m in matrices):
        words = "some that cannot be placed on a grid" if matrices else "none"
        msg = f"this method needs attention between the patches of the image; the network has {words}"
        raise ExplainError(msg)
    blocks = [_block(owner, owners, outputs, count) for owner in owners]
    steps = [
        Step(matrix, layout.grid, None, block, outputs[block]) for matrix, block in zip(matrices, blocks, strict=True)
    ]
    return Attended(output, steps, layout.prefix)


def _windowed(
    network: nn.Module, matrices: Sequence[Tensor], owners: Sequence[Sequence[str]], sizes: dict[str, tuple[int, ...]]
) -> list[Step]:
    """Steps of a hierarchical transformer."""
    steps = []
    for matrix, owner in zip(matrices, owners, strict=True):
        name = next((name for name in reversed(owner) if name in sizes), None)
        if name is None:
            msg = (
                f"the attention in {owner[-1] if owner else 'the network'} is not in windows as that of its neighbours"
            )
            raise ExplainError(msg)
        steps.append(Step(matrix, sizes[name], window_index(network.get_submodule(name), sizes[name])))
    return steps


@contextmanager
def head_reads(network: nn.Module, blocks: Sequence[str], tokens: Tensor) -> Iterator[None]:
    """Inside, the network's head reads `tokens [B, N, K]`: the last block hands them on, the others do nothing."""
    modules = [network.get_submodule(name) for name in dict.fromkeys(blocks)]
    kept = [module.__dict__.get("forward") for module in modules]
    try:
        for module in modules[:-1]:
            module.forward = lambda x, *_, **__: x
        modules[-1].forward = lambda *_, **__: tokens
        yield
    finally:
        for module, forward in zip(modules, kept, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward


def _block(owner: Sequence[str], owners: Sequence[Sequence[str]], outputs: dict[str, Tensor], count: int) -> str:
    """The outermost enclosing module that encloses no other attention and hands tokens on."""
    for name in owner:
        alone = sum(name in other for other in owners) == 1
        if alone and name in outputs and outputs[name].shape[1] == count:
            return name
    msg = f"the attention in {owner[-1] if owner else 'the network'} belongs to no block that returns tokens"
    raise ExplainError(msg)
