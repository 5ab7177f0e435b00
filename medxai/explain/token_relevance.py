"""Layer-wise relevance propagation through transformers, as gradient times value on a modified backward.

Rules (Achtibat et al. 2024): linear layers pass relevance in proportion (epsilon rule, the plain gradient);
norms and activations are locally linear with their factor held constant; a product of two values shares its
relevance in halves; the softmax follows its Taylor expansion, which is again its plain gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from medxai.errors import ExplainError
from medxai.explain.attention import AttentionTape
from medxai.explain.layout import Layout, find_layout
from medxai.explain.modes import evaluation
from medxai.explain.run import Run
from medxai.explain.target import select_output

_ACTIVATIONS = {functional.gelu, functional.silu, functional.mish, functional.hardswish, Tensor.sigmoid, torch.sigmoid}
_PRODUCTS = {
    torch.matmul, torch.bmm, torch.mul, torch.einsum, functional.linear, Tensor.matmul, Tensor.bmm, Tensor.mul,
    Tensor.__mul__, Tensor.__matmul__,
}  # fmt: skip
_SMALL = 1e-10


class _Rules(TorchFunctionMode):
    """The rules above, applied where torch computes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function while the mode is entered."""
        kwargs = kwargs or {}
        if func is functional.layer_norm:
            x = args[0]
            centred = x - x.mean(-1, keepdim=True)
            value = functional.layer_norm(x.detach(), *args[1:], **kwargs).detach()
            weight = args[2] if len(args) > 2 else kwargs.get("weight")
            scale = (x.detach().var(-1, correction=0, keepdim=True) + (args[4] if len(args) > 4 else 1e-5)).rsqrt()
            linear = centred * scale if weight is None else centred * scale * weight.detach()
            return value + linear - linear.detach()
        if func in _ACTIVATIONS:
            x = args[0]
            value = func(x.detach(), *args[1:], **kwargs)
            factor = value / torch.where(x.abs() < _SMALL, torch.full_like(x, _SMALL), x).detach()
            return value + factor * (x - x.detach())
        result = func(*args, **kwargs)
        if func in _PRODUCTS and isinstance(result, Tensor) and result.requires_grad and _both_vary(args):
            return 0.5 * result + 0.5 * result.detach()
        return result


def _both_vary(args: Any) -> bool:
    """Whether two factors depend on the input: neither is a parameter or a constant."""
    flat = [item for arg in args for item in (arg if isinstance(arg, (list, tuple)) else (arg,))]
    varying = [t for t in flat if isinstance(t, Tensor) and t.requires_grad and not isinstance(t, nn.Parameter)]
    return len(varying) > 1


def token_relevance(run: Run, *, through_attention: bool) -> Tensor:
    """Signed relevance ``[B, *s]`` of every patch's embedding for the score.

    ``conservation [B]`` in the report is the sum of the relevance of all tokens over the score: what biases
    hold is missing from it.

    Args:
        run: batch, target and network.
        through_attention: False holds attention weights constant (CP-LRP).

    Raises:
        ExplainError: no layer of the network returns patch tokens.
    """
    network, batch = run.network, len(run.x)
    leaf: list[Tensor] = []
    layouts: list[Layout] = []

    def cut(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if leaf or not isinstance(output, Tensor) or output.ndim != 3:
            return None
        layout = find_layout(output.shape, batch, run.spatial, network, run.shared.forward.grid)
        if layout is None or layout.kind != "tokens":
            return None
        leaf.append(output.detach().requires_grad_())
        layouts.append(layout)
        torch.set_grad_enabled(True)  # until the surrounding no_grad ends
        return leaf[0].clone()

    def weights(matrix: Tensor) -> Tensor:
        return matrix if through_attention else matrix.detach()

    # Parameters must not count as values that vary, nor collect a graph of their own.
    frozen = [parameter for parameter in network.parameters() if parameter.requires_grad]
    handles = [module.register_forward_hook(cut) for name, module in network.named_modules() if name]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with evaluation(network), torch.no_grad(), _Rules(), AttentionTape(weights):
            output = select_output(run.shared.inputs.call(network), run.shared.forward.output)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()
    if not leaf:
        msg = "no layer of the network returns patch tokens, so there is nothing to give relevance to"
        raise ExplainError(msg)
    with torch.enable_grad():
        score = run.target(output).float()
        (gradient,) = torch.autograd.grad(score.sum(), leaf[0])
    relevance = (gradient * leaf[0].detach()).float()
    run.report["conservation"] = relevance.flatten(1).sum(1) / score.detach()
    return layouts[0].to_grid(relevance).sum(1)
