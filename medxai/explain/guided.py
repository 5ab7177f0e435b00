"""Guided backpropagation: only positive signals pass a ReLU on their way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from medxai.errors import ExplainError
from medxai.explain.run import Run
from medxai.explain.split import INPUT

_RELU = {functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_OTHERS = (
    nn.SiLU, nn.GELU, nn.ELU, nn.LeakyReLU, nn.PReLU, nn.SELU, nn.CELU, nn.Mish, nn.Hardswish, nn.Tanh, nn.ReLU6,
    nn.RReLU, nn.Softplus,
)  # fmt: skip


class _Guided(torch.autograd.Function):
    """ReLU whose backward stops negative gradients as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """``max(x, 0)``."""
        ctx.save_for_backward(x > 0)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """``g 1[x > 0] 1[g > 0]``."""
        (positive,) = ctx.saved_tensors
        return gradients[0].clamp_min(0) * positive


class _Mode(TorchFunctionMode):
    """Replaces every ReLU, module or function, in place or not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function while the mode is entered."""
        if func in _RELU:
            return _Guided.apply(args[0] if args else (kwargs or {})["input"])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def guided_gradient(run: Run) -> Tensor:
    """Guided gradient ``[B, C, *S]`` of the target with respect to the input.

    Raises:
        ExplainError: the network has other activations than ReLU, for which it is not defined.
    """
    for name, module in run.network.named_modules():
        kind = type(module).__name__
        if isinstance(module, _OTHERS) or "swish" in kind.lower():
            msg = f"guided backpropagation is defined for ReLU; {name or 'the network'} is a {kind}"
            raise ExplainError(msg)
    rows = torch.arange(len(run.x), device=run.x.device)
    with _Mode():
        captured, score = run.capture(run.x, rows, [INPUT])
    return captured.gradients(score, [INPUT])[INPUT]
