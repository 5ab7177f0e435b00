"""What the biases of a network contribute to a score: ``bias * dy/dz`` at every layer, effective biases included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)


class BiasTerms:
    """Context in which one forward and its backward hand every bias term over as it arises, and keep none.

    Instance, group and layer norms are taken as affine maps with their statistics held constant, which makes
    their share a bias as well.
    """

    def __init__(self, network: nn.Module, use: Callable[[Tensor], None]) -> None:
        """Call `use` with the term ``[B, K, *s]`` of every convolution and normalisation."""
        self._network, self._use = network, use
        self._handles: list[RemovableHandle] = []
        self._sums: list[Tensor] = []
        self._mode = _ConstantStatistics()

    def __enter__(self) -> Self:
        """Watch all layers."""
        for module in self._network.modules():
            if isinstance(module, (*_CONVOLUTIONS, *_BATCH_NORMS, *_OTHER_NORMS, nn.Linear)):
                self._handles.append(module.register_forward_hook(self._watch))
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave the network as it was."""
        self._mode.__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def total(self, batch: int) -> Tensor:
        """Sum ``[B]`` of all bias terms, those of linear layers included."""
        return torch.stack([part.cpu() for part in self._sums]).sum(0) if self._sums else torch.zeros(batch)

    def _watch(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        bias = _bias(module, inputs[0], output)
        if bias is None or not output.requires_grad:
            return None
        on_grid = not isinstance(module, nn.Linear) and output.ndim > 2

        def receive(gradient: Tensor) -> None:
            term = (bias * gradient).detach().float()
            self._sums.append(term.flatten(1).sum(1))
            if on_grid:
                self._use(term)

        output.register_hook(receive)  # type: ignore[no-untyped-call]
        return output.clone()  # what follows may work in place


class _ConstantStatistics(TorchFunctionMode):
    """Norms that compute their own statistics do so without passing a gradient through them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function while the mode is entered."""
        kwargs = kwargs or {}
        if func in (functional.instance_norm, functional.group_norm, functional.layer_norm):
            x, value = args[0], func(*(a.detach() if isinstance(a, Tensor) else a for a in args), **kwargs)
            return value + _scale(x.detach(), func, args, kwargs) * (x - x.detach())
        return func(*args, **kwargs)


def _scale(x: Tensor, func: Any, args: Any, kwargs: Any) -> Tensor:
    """Factor ``weight / std`` by which a norm multiplies each element."""
    given = dict(kwargs)
    if func is functional.layer_norm:
        axes = tuple(range(x.ndim - len(args[1] if len(args) > 1 else given["normalized_shape"]), x.ndim))
        weight = args[2] if len(args) > 2 else given.get("weight")
        eps = args[4] if len(args) > 4 else given.get("eps", 1e-5)
        scale: Tensor = (x.var(axes, correction=0, keepdim=True) + eps).rsqrt().expand_as(x)
        return scale if weight is None else scale.mul(weight.detach())
    if func is functional.group_norm:
        groups = args[1] if len(args) > 1 else given["num_groups"]
        weight = args[2] if len(args) > 2 else given.get("weight")
        eps = args[4] if len(args) > 4 else given.get("eps", 1e-5)
        flat = x.reshape(len(x), groups, -1)
        scale = (flat.var(2, correction=0, keepdim=True) + eps).rsqrt().expand_as(flat).reshape(x.shape)
    else:
        weight, eps = given.get("weight"), given.get("eps", 1e-5)
        axes = tuple(range(2, x.ndim))
        scale = (x.var(axes, correction=0, keepdim=True) + eps).rsqrt().expand_as(x)
    return scale if weight is None else scale.mul(weight.detach().view(-1, *[1] * (x.ndim - 2)))


def _bias(module: nn.Module, x: Tensor, output: Tensor) -> Tensor | None:
    """Effective bias, broadcastable to the output."""
    if isinstance(module, _BATCH_NORMS) and module.running_mean is not None and module.running_var is not None:
        scale = (module.running_var + module.eps).rsqrt()
        weight = module.weight if module.weight is not None else torch.ones_like(scale)
        shift = module.bias if module.bias is not None else torch.zeros_like(scale)
        return (shift - weight * module.running_mean * scale).detach().view(-1, *[1] * (output.ndim - 2))
    if isinstance(module, (*_BATCH_NORMS, *_OTHER_NORMS)):
        scale = _module_scale(module, x.detach())
        return (output - scale * x).detach()
    bias = getattr(module, "bias", None)
    if bias is None:
        return None
    shape = (-1, *[1] * (output.ndim - 2)) if isinstance(module, _CONVOLUTIONS) else (-1,)
    result: Tensor = bias.detach().view(shape)
    return result


def _module_scale(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return _scale(
            x, functional.layer_norm, (x, module.normalized_shape, module.weight, module.bias, module.eps), {}
        )
    if isinstance(module, nn.GroupNorm):
        return _scale(x, functional.group_norm, (x, module.num_groups, module.weight, module.bias, module.eps), {})
    eps = getattr(module, "eps", 1e-5)
    return _scale(x, functional.instance_norm, (x,), {"weight": getattr(module, "weight", None), "eps": eps})
