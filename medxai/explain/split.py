"""Forward with the graph cut at the target layer: no graph below it, gradients only down to it.

Below the layer nothing is kept for backward, which makes a gradient-based map cost about one inference
in time and memory. The network comes back as it was: no hook, no ``.grad``, same mode of every module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError


@dataclass(frozen=True, eq=False)
class Captured:
    """One forward pass, cut at a layer.

    Attributes:
        logits: ``[B, K]`` with a graph down to `activation`.
        activation: ``[B, C, *s]`` leaf tensor, output of the target layer.
    """

    logits: Tensor
    activation: Tensor

    def gradient(self, class_index: int, *, last: bool = False) -> Tensor:
        """Gradient ``[B, C, *s]`` float32 of the class logit with respect to the activation.

        Samples do not interact in evaluation mode, so one backward serves the batch.

        Args:
            class_index: the class; for a single-logit network 1 is ``+z`` and 0 is ``-z``.
            last: free the graph afterwards.

        Raises:
            ExplainError: the logits do not depend on the layer, or the gradient is not finite.
        """
        try:
            with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
                score = class_score(self.logits, class_index).float().sum()
                (gradient,) = torch.autograd.grad(score, self.activation, retain_graph=not last)
        except RuntimeError as error:
            msg = "the class score does not depend on the target layer; choose a layer upstream of the head"
            raise ExplainError(msg) from error
        if not torch.isfinite(gradient).all():
            msg = "the gradient at the target layer holds NaN or infinite values"
            raise ExplainError(msg)
        return gradient.float()


def class_score(logits: Tensor, class_index: int) -> Tensor:
    """Per-sample score ``[B]`` of a class; a single logit ``z`` stands for two classes, ``-z`` and ``+z``.

    Raises:
        ExplainError: there is no such class.
    """
    classes = 2 if logits.shape[1] == 1 else logits.shape[1]
    if not 0 <= class_index < classes:
        msg = f"there is no class {class_index}; the network has {classes}"
        raise ExplainError(msg)
    if logits.shape[1] == 1:
        return logits[:, 0] if class_index == 1 else -logits[:, 0]
    return logits[:, class_index]


def forward_split(network: nn.Module, x: Tensor, layer: str, autocast: torch.dtype | None = None) -> Captured:
    """Run `network` on ``x [B, C, *S]`` without a graph up to `layer` and with one from there on.

    Args:
        network: any module that returns ``[B, K]`` logits; its modes and parameters are left untouched.
        x: input; neither changed nor required to need gradients.
        layer: dotted module name; ``name#2`` means the third call of a module that runs several times.
        autocast: lower precision for the forward pass; gradients and maps are float32.

    Raises:
        ExplainError: unknown layer, a layer that does not run or has no spatial output, NaN, or an
            output that is not ``[B, K]``.
    """
    name, _, call = layer.partition("#")
    module = _named(network, name)
    wanted, seen = int(call or 0), 0
    captured: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen - 1 != wanted:
            return None
        if not isinstance(output, Tensor) or output.ndim < 3:
            msg = f"layer {layer!r} returns no spatial feature map"
            raise ExplainError(msg)
        leaf = output.detach().requires_grad_()
        captured.append(leaf)
        torch.set_grad_enabled(True)  # until the surrounding no_grad ends
        return leaf.clone()  # what follows may work in place, which a leaf does not allow

    with _evaluation(network):
        handle = module.register_forward_hook(cut)
        try:
            with torch.inference_mode(False), torch.no_grad(), _precision(x, autocast):
                output = network(x)
        finally:
            handle.remove()
    if not captured:
        msg = f"layer {layer!r} ran {seen} time(s) in this network, not often enough to be captured"
        raise ExplainError(msg)
    if not isinstance(output, Tensor) or output.ndim != 2:
        kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        msg = f"the network returns {kind}; logits of shape [batch, classes] are needed"
        raise ExplainError(msg)
    if not torch.isfinite(output).all() or not torch.isfinite(captured[0]).all():
        msg = "the network produced NaN or infinite values for this study"
        raise ExplainError(msg)
    return Captured(output, captured[0])


def _named(network: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(network.named_modules())
    if name not in modules or not name:
        near = get_close_matches(name, modules, n=3)
        hint = f"; nearest names: {', '.join(near)}" if near else ""
        msg = f"the network has no layer {name!r}{hint}"
        raise ExplainError(msg)
    return modules[name]


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time being; every module's own mode is restored."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _precision(x: Tensor, dtype: torch.dtype | None) -> Iterator[None]:
    if dtype is None:
        yield
        return
    with torch.autocast(x.device.type, dtype=dtype):
        yield
