"""Layer-wise relevance propagation through any convolutional network: its backward carries relevance.

While the mode is entered every function that torch computes is replaced by one with the same result whose
backward takes the relevance of its output and returns that of its inputs. Batch normalisation behind a
convolution is folded into it on the fly; elsewhere, as before the convolutions of a DenseNet, it is a linear
layer of its own. A function without a rule is an error, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from medxai.errors import ExplainError
from medxai.explain.relevance_rules import Apply, Composite, Rule, stabilised, transposed

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
#: Elementwise functions hand relevance through.
_POINTWISE = {
    "relu", "relu_", "relu6", "silu", "gelu", "elu", "celu", "selu", "leaky_relu", "leaky_relu_", "prelu", "sigmoid",
    "hardswish", "hardsigmoid", "hardtanh", "mish", "tanh", "softplus", "clamp", "clamp_min", "clamp_max",
}  # fmt: skip
#: Sums and averages give in proportion.
_AVERAGES = {
    "mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "interpolate", "upsample",
}  # fmt: skip
#: What only moves values about, where the gradient moves relevance the same way; a maximum is its winner, a soft one
#: shares by its weights, which sum to one.
_MOVES = {
    "view", "reshape", "flatten", "permute", "transpose", "movedim", "squeeze", "unsqueeze", "cat", "concat", "stack",
    "contiguous", "clone", "__getitem__", "expand", "expand_as", "pad", "chunk", "split", "unflatten", "to", "float",
    "roll", "narrow", "index_select", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "max_pool1d",
    "max_pool2d", "max_pool3d", "_max_pool1d", "_max_pool2d", "_max_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "pixel_shuffle", "__get__", "view_as", "reshape_as", "type",
    "requires_grad_", "unbind", "logsumexp", "amax", "max", "squeeze_", "unsqueeze_", "channel_shuffle", "as_subclass",
}  # fmt: skip
_ADD = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_SUBTRACT = {"sub", "sub_", "__sub__", "__isub__"}
_MULTIPLY = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"}
_DIVIDE = {"div", "div_", "__truediv__", "__itruediv__", "true_divide"}


class _Relevance(torch.autograd.Function):
    """`value` forward; backward ``rule(relevance)``, one result for each input."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rule: Callable[[Tensor], tuple[Tensor, ...]], *inputs: Tensor) -> Tensor:
        """Return the value; inputs only link the graph."""
        ctx.rule = rule
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *relevance: Any) -> Any:
        """Relevance of the inputs."""
        return (None, None, *ctx.rule(relevance[0]))


def propagated(value: Tensor, rule: Callable[[Tensor], tuple[Tensor, ...]], *inputs: Tensor) -> Tensor:
    """A result whose backward is a rule."""
    result: Tensor = _Relevance.apply(value.detach(), rule, *inputs)  # type: ignore[no-untyped-call]
    return result


def passed(value: Tensor, x: Tensor) -> Tensor:
    """A result that hands its relevance through."""
    return propagated(value, lambda relevance: (relevance,), x)


class RelevanceMode(TorchFunctionMode):
    """See the module; the parameters of the network must not require gradients inside."""

    def __init__(self, composite: Composite) -> None:
        """Use a composite's rules."""
        super().__init__()
        self._composite = composite
        self._convolved = 0
        #: Convolutions by the id of their result; the result is kept so that the id stays its own.
        self._results: dict[int, tuple[Tensor, Apply, Tensor, Tensor, Tensor | None, Rule]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function while the mode is entered."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = [t for t in _flat((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad]
        if not tensors or name in _MOVES or name in ("__set__", "__setitem__"):
            return func(*args, **kwargs)
        if name in _CONVOLUTIONS or name == "linear":
            return self._linear_layer(name, func, args, kwargs)
        if name == "batch_norm":
            return self._batch_norm(args, kwargs)
        if name in ("instance_norm", "group_norm", "layer_norm"):
            return self._other_norm(func, args, kwargs)
        if name in _POINTWISE:
            kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
            x = args[0] if args else kwargs.pop("input")
            plain = {"relu_": functional.relu, "leaky_relu_": functional.leaky_relu}.get(name, func)
            rest = () if name in ("relu", "relu_", "relu6", "silu", "hardswish", "mish") else args[1:]
            return passed(plain(x.detach(), *rest, **kwargs), x)
        if name in _AVERAGES:
            return self._average(func, args, kwargs)
        if name in _ADD | _SUBTRACT | _MULTIPLY | _DIVIDE:
            return self._arithmetic(name, args, kwargs)
        value = func(*args, **kwargs)
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        hint = "; for transformers use attnlrp or cplrp" if name in ("softmax", "matmul", "einsum", "bmm") else ""
        msg = f"relevance propagation has no rule for {name}{hint}"
        raise ExplainError(msg)

    def _linear_layer(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | {
            key: kwargs[key] for key in ("input", "weight", "bias") if key in kwargs
        }
        x, weight, bias = given["input"], given["weight"].detach(), given.get("bias")
        bias = None if bias is None else bias.detach()
        extra, named = args[3:], {k: v for k, v in kwargs.items() if k not in ("input", "weight", "bias")}

        def apply(a: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            result: Tensor = func(a, w, b, *extra, **named)
            return result

        if name == "linear":
            rule = self._composite.linear
        else:
            rule = self._composite.convolution if self._convolved else self._composite.first
            self._convolved += 1
        result = _layer(apply, x, weight, bias, rule)
        if name in ("conv1d", "conv2d", "conv3d"):
            self._results[id(result)] = (result, apply, x, weight, bias, rule)
        return result

    def _batch_norm(self, args: Any, kwargs: Any) -> Tensor:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        x, mean, variance = given["input"], given["running_mean"], given["running_var"]
        if given.get("training") or mean is None or variance is None:
            msg = "relevance propagation needs batch normalisation with running statistics"
            raise ExplainError(msg)
        scale = (variance + given.get("eps", 1e-5)).rsqrt()
        scale = scale if given.get("weight") is None else scale * given["weight"].detach()
        shift = -mean * scale if given.get("bias") is None else given["bias"].detach() - mean * scale
        known = self._results.get(id(x))
        if known is not None:
            _, apply, source, weight, bias, rule = known
            folded = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            return _layer(apply, source, folded, shift if bias is None else bias * scale + shift, rule)
        view = (1, -1, *[1] * (x.ndim - 2))
        return _layer(_scaling, x, scale.view(view), shift.view(view), self._composite.linear)

    def _other_norm(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Statistics held constant: the relevance of the result passes in proportion to the centred input."""
        x = args[0] if args else kwargs["input"]
        return passed(func(*(a.detach() if isinstance(a, Tensor) else a for a in args), **kwargs), x)

    def _average(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        x, rest = args[0], args[1:]
        value = func(x.detach(), *rest, **kwargs)

        def rule(relevance: Tensor) -> tuple[Tensor, ...]:
            share = relevance / stabilised(value, self._composite.eps)
            return (x.detach() * transposed(lambda a: func(a, *rest, **kwargs), x, share),)

        return propagated(value, rule, x)

    def _arithmetic(self, name: str, args: Any, kwargs: Any) -> Tensor:
        a, b = args[0], args[1] if len(args) > 1 else kwargs.get("other")
        vary = [isinstance(t, Tensor) and t.requires_grad for t in (a, b)]
        plain = [t.detach() if isinstance(t, Tensor) else t for t in (a, b)]
        if name in _MULTIPLY | _DIVIDE:
            value = plain[0] * plain[1] if name in _MULTIPLY else plain[0] / plain[1]
            if all(vary):  # two factors share; a gate of one value for many positions collects its half
                return propagated(value, lambda r: (_sum_to(r / 2, a), _sum_to(r / 2, b)), a, b)
            return propagated(value, lambda r: (_sum_to(r, a if vary[0] else b),), a if vary[0] else b)
        sign = 1.0 if name in _ADD else -1.0
        value = plain[0] + sign * plain[1]
        eps = self._composite.eps

        def rule(relevance: Tensor) -> tuple[Tensor, ...]:
            share = relevance / stabilised(value, eps)
            parts = ((a, plain[0], 1.0), (b, plain[1], sign))
            return tuple(_sum_to(s * p * share, t) for (t, p, s), varies in zip(parts, vary, strict=True) if varies)

        return propagated(value, rule, *(t for t, varies in zip((a, b), vary, strict=True) if varies))


def _layer(apply: Apply, x: Tensor, weight: Tensor, bias: Tensor | None, rule: Rule) -> Tensor:
    source = x.detach()
    value = apply(source, weight, bias)
    return propagated(value, lambda relevance: (rule(apply, source, weight, bias, relevance),), x)


def _scaling(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x * weight if bias is None else x * weight + bias


def _sum_to(values: Tensor, like: Tensor) -> Tensor:
    """Undo broadcasting."""
    return values.sum_to_size(like.shape) if values.shape != like.shape else values


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [item for part in value for item in _flat(part)]
    if isinstance(value, dict):
        return _flat(tuple(value.values()))
    return [value]
