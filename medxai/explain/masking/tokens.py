"""Where the patch tokens of a vision transformer enter its first block, and how to leave some of them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.inputs import Inputs
from medxai.explain.layout import Layout, find_layout
from medxai.explain.split import Forward, infer


@dataclass(frozen=True)
class Tokens:
    """The first block of a transformer.

    Attributes:
        block: dotted name of the module.
        layout: how its input ``[B, prefix + P, K]`` lies on the grid of patches.
    """

    block: str
    layout: Layout


def find_tokens(forward: Forward, inputs: Inputs) -> Tokens:
    """Watch one inference of one sample for the first block around an attention.

    Raises:
        ExplainError: the network has none, or its tokens do not lie on a grid.
    """
    one = inputs.replace(inputs.x[:1], torch.zeros(1, dtype=torch.long))
    blocks = [name for name, module in forward.network.named_modules() if name and _holds_attention(module)]
    found: list[tuple[str, Layout]] = []

    def watch(name: str) -> Callable[..., None]:
        def enter(_module: nn.Module, given: tuple[Any, ...]) -> None:
            if given and isinstance(given[0], Tensor) and given[0].ndim == 3:
                layout = find_layout(given[0].shape, 1, one.spatial, forward.network, forward.grid)
                if layout is not None and layout.kind == "tokens":
                    found.append((name, layout))

        return enter

    modules = dict(forward.network.named_modules())
    handles = [modules[name].register_forward_pre_hook(watch(name)) for name in blocks]
    try:
        infer(forward, one)
    finally:
        for handle in handles:
            handle.remove()
    # A container may add positions before its blocks: only the innermost will do.
    inner = [item for item in found if not any(other.startswith(item[0] + ".") for other, _ in found)]
    if not inner:
        msg = "masking token_drop needs a transformer whose blocks see the patches in order; use layer_mask or blur"
        raise ExplainError(msg)
    return Tokens(*inner[0])


@contextmanager
def dropping(network: nn.Module, tokens: Tokens, kept: Tensor) -> Iterator[None]:
    """Inside, the first block sees the prefix and the tokens ``kept [N, M]`` (indices into the grid) only.

    With no token left and no prefix, a single token of zeros stands for the empty image.
    """
    prefix = tokens.layout.prefix

    def drop(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        values: Tensor = given[0]
        if len(values) != len(kept):
            msg = f"masking token_drop: {tokens.block} saw {len(values)} samples where {len(kept)} were sent"
            raise ExplainError(msg)
        width = values.shape[2]
        patches = values[:, prefix:].gather(1, kept.to(values.device)[:, :, None].expand(-1, -1, width))
        left = torch.cat((values[:, :prefix], patches), 1)
        if left.shape[1] == 0:
            left = values.new_zeros(len(values), 1, width)
        return (left, *given[1:])

    handle = dict(network.named_modules())[tokens.block].register_forward_pre_hook(drop)
    try:
        yield
    finally:
        handle.remove()


def _holds_attention(module: nn.Module) -> bool:
    """True when a module below this one is an attention."""
    return any(other is not module and _is_attention(other) for other in module.modules())


def _is_attention(module: nn.Module) -> bool:
    name = type(module).__name__
    return "ttention" in name or name == "SABlock"
