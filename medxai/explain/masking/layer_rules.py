"""What each step of a network does to a masked feature map (Balasubramanian and Feizi 2022, made N-dimensional).

A rule takes the torch function and its arguments, at least one of which is a `MaskedTensor`. A position is valid
after a convolution or a pooling if its window saw a valid one; everything that is not valid is zero. Rules for
concatenation, normalisation layers, resizing and transposed convolutions go beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medxai.explain.masking import pool_rules
from medxai.explain.masking.masked_tensor import MaskedTensor, unknown
from medxai.explain.masking.neighbour_fill import neighbour_fill

Rule = Callable[..., Any]

#: Questions about shape and kind, answered as for any tensor.
METADATA = frozenset((
    "shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_cpu", "is_leaf", "is_sparse",
    "is_quantized", "is_mkldnn", "is_meta", "size", "dim", "numel", "nelement", "element_size", "is_floating_point",
    "is_complex", "is_inference", "get_device", "grad_fn", "names", "is_contiguous",
))  # fmt: skip
_SAME = ("contiguous", "clone", "detach", "data", "to", "float", "double", "half", "type_as", "requires_grad",
         "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout")  # fmt: skip
_POINTWISE = ("relu", "relu6", "silu", "sigmoid", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu",
              "celu", "selu", "gelu", "mish", "tanh", "softplus", "softsign", "prelu", "clamp", "clamp_min",
              "clamp_max", "clip", "abs", "neg", "exp", "sqrt", "square", "pow", "logsigmoid", "threshold")  # fmt: skip
_BINARY = ("add", "sub", "rsub", "mul", "div", "truediv", "true_divide", "maximum", "minimum")


def find_rule(name: str, example: MaskedTensor) -> Rule:
    """Rule for a torch function by its name.

    Raises:
        ExplainError: there is none; the message names the module that called it.
    """
    if name not in RULES:
        raise unknown(name, example.context)
    if example.border is not None and name not in _TAKES_BORDER:
        raise unknown(f"{name} right after padding", example.context)
    return RULES[name]


def convolve(
    func: Rule,
    input: MaskedTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> MaskedTensor:
    """Convolution of the neighbour-filled map."""
    dims = weight.ndim - 2
    kernel, step = tuple(weight.shape[2:]), pool_rules.spread(dilation, dims)
    # So far must a window's valid value reach that nothing of the window stays empty.
    reach = [d * (k - 1) for d, k in zip(step, kernel, strict=True)]
    axes = [axis for axis, far in enumerate(reach) if far]
    filled = neighbour_fill(input.x, input.m, max(reach), axes)
    if padding in ("same", "valid"):
        pads = [(far // 2, far - far // 2) if padding == "same" else (0, 0) for far in reach]
    else:
        pads = [(p, p) for p in pool_rules.spread(padding, dims)]
    around = pool_rules.flat(pads)
    if input.border is not None:
        filled = functional.pad(filled, input.border[0], value=input.border[1])
        around = tuple(a + b for a, b in zip(around, input.border[0], strict=True))
    value = func(filled, weight, bias, stride, padding, dilation, groups)
    mask = pool_rules.any_valid(input.m, kernel, pool_rules.spread(stride, dims), around, step)
    return MaskedTensor(value, mask, input.context)


def convolve_transposed(func: Rule, input: MaskedTensor, weight: Tensor, *rest: Any, **named: Any) -> MaskedTensor:
    """Transposed convolution of the neighbour-filled map; valid where a valid position contributed."""
    names = ("bias", "stride", "padding", "output_padding", "groups", "dilation")
    given = {**dict(zip(names, rest, strict=False)), **named}
    filled = neighbour_fill(input.x, input.m, max(weight.shape[2:]) - 1)
    value = func(filled, weight, **given)
    ones = torch.ones(1, 1, *weight.shape[2:], dtype=weight.dtype, device=weight.device)
    mask = func(input.m, ones, **{**given, "bias": None, "groups": 1})
    return MaskedTensor(value, mask, input.context)


def pointwise(func: Rule, input: MaskedTensor, *rest: Any, **named: Any) -> MaskedTensor:
    """``f(x)`` where valid."""
    if "inplace" in named:
        named["inplace"] = False
    if getattr(func, "__name__", "").endswith("_"):  # in-place variant: its map may still be needed as it is
        return MaskedTensor(func(input.x.clone(), *rest, **named), input.m, input.context)
    return MaskedTensor(func(input.x, *rest, **named), input.m, input.context)


def unchanged(_func: Rule, input: MaskedTensor, *_rest: Any, **_named: Any) -> MaskedTensor:
    """What does nothing in evaluation mode."""
    return input


def binary(func: Rule, a: Any, b: Any, *, alpha: float = 1.0) -> MaskedTensor:
    """Arithmetic of two maps: valid where both are; a plain tensor is valid everywhere."""
    both = [value for value in (a, b) if isinstance(value, MaskedTensor)]
    mask = both[0].m if len(both) == 1 else both[0].m * both[1].m
    left, right = (value.x if isinstance(value, MaskedTensor) else value for value in (a, b))
    if getattr(func, "__name__", "") in ("__iadd__", "__imul__", "__isub__", "add_", "mul_", "sub_", "div_"):
        left = left.clone()
    named = {"alpha": alpha} if alpha != 1.0 else {}
    return MaskedTensor(func(left, right, **named), mask, both[0].context)


def batch_norm(func: Rule, input: MaskedTensor, *rest: Any, **named: Any) -> MaskedTensor:
    """Batch normalisation with stored statistics."""
    names = ("running_mean", "running_var", "weight", "bias", "training")
    given = {**dict(zip(names, rest, strict=False)), **named}
    if given.get("training") or given.get("running_mean") is None:
        raise unknown("batch normalisation without stored statistics", input.context)
    return MaskedTensor(func(input.x, *rest, **named), input.m, input.context)


def instance_norm(
    func: Rule,
    input: MaskedTensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> MaskedTensor:
    """Instance normalisation by the valid positions."""
    if not use_input_stats and running_mean is not None:
        value = func(input.x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return MaskedTensor(value, input.m, input.context)
    return group_norm(func, input, input.x.shape[1], weight, bias, eps)


def group_norm(
    _func: Rule,
    input: MaskedTensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> MaskedTensor:
    """Group normalisation by the valid positions."""
    grouped = input.x.reshape(len(input.x), num_groups, -1)
    mask = input.m.unsqueeze(1).expand(-1, num_groups, input.x.shape[1] // num_groups, *input.m.shape[2:]).flatten(2)
    count = mask.sum(2, keepdim=True).clamp_min(1)
    mean = grouped.sum(2, keepdim=True) / count
    centred = (grouped - mean) * mask
    scaled = (centred / (centred.square().sum(2, keepdim=True) / count + eps).sqrt()).view(input.x.shape)
    shape = (1, -1, *[1] * (input.x.ndim - 2))
    if weight is not None:
        scaled = scaled * weight.view(shape)
    if bias is not None:
        scaled = scaled + bias.view(shape)
    return MaskedTensor(scaled, input.m, input.context)


def layer_norm(
    func: Rule,
    input: MaskedTensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> MaskedTensor:
    """Layer normalisation over channels and positions, by the valid ones."""
    if tuple(normalized_shape) != tuple(input.x.shape[1:]):
        raise unknown(f"layer normalisation over {list(normalized_shape)}", input.context)
    value = group_norm(func, input, 1, eps=eps).x
    if weight is not None:
        value = value * weight
    if bias is not None:
        value = value + bias
    return MaskedTensor(value, input.m, input.context)


def concatenate(_func: Rule, tensors: Any, dim: int = 0, **named: Any) -> MaskedTensor:
    """Concatenation of channels: valid where all are; plain tensors are valid everywhere."""
    masked = [t for t in tensors if isinstance(t, MaskedTensor)]
    if named.get("axis", dim) not in (1, 1 - masked[0].ndim):
        raise unknown(f"concatenation along axis {named.get('axis', dim)}", masked[0].context)
    mask = masked[0].m
    for other in masked[1:]:
        mask = mask * other.m
    return MaskedTensor(
        torch.cat([t.x if isinstance(t, MaskedTensor) else t for t in tensors], 1), mask, masked[0].context
    )


def pad(func: Rule, input: MaskedTensor, pad: Any, mode: str = "constant", value: float | None = None) -> MaskedTensor:
    """Padding: a constant waits for the convolution it belongs to, copies of the edge bring their mask along."""
    pads = tuple(int(p) for p in pad)
    if mode != "constant":
        return MaskedTensor(func(input.x, pads, mode), func(input.m, pads, mode), input.context)
    pads += (0,) * (2 * (input.x.ndim - 2) - len(pads))
    if len(pads) > 2 * (input.x.ndim - 2):
        raise unknown("padding of channels", input.context)
    return MaskedTensor(input.x, input.m, input.context, (pads, float(value or 0.0)))


def reshape(func: Rule, input: MaskedTensor, *rest: Any, **named: Any) -> Tensor:
    """A vector for each sample is plain; positions in a row keep their mask; nothing else is known."""
    value: Tensor = func(input.x, *rest, **named)
    if value.shape == input.x.shape:
        return MaskedTensor(value, input.m, input.context)
    if value.ndim == 2 and len(value) == len(input.x):
        return value
    if value.ndim == 3 and value.shape[:2] == input.x.shape[:2]:
        return MaskedTensor(value, input.m.flatten(2), input.context)
    raise unknown(f"a change of shape from {list(input.x.shape)} to {list(value.shape)}", input.context)


def reduce(func: Rule, input: MaskedTensor, dim: Any = None, keepdim: bool = False, **named: Any) -> Tensor:
    """Reduction over all positions, as if the valid ones filled the map; zero where none is valid."""
    axes = {d % input.x.ndim for d in ((dim,) if isinstance(dim, int) else dim or ())}
    keep = named.pop("keepdim", keepdim)
    if axes != set(range(2, input.x.ndim)) or named:
        raise unknown(f"{getattr(func, '__name__', func)} over axes {dim}", input.context)
    over = tuple(sorted(axes))
    name = getattr(func, "__name__", "")
    size = prod(input.x.shape[2:])
    count = input.m.sum(over, keepdim=True)
    if name in ("mean", "sum"):
        share = count.clamp_min(1) if name == "mean" else count.clamp_min(1) / size
        value = input.x.sum(over, keepdim=True) / share
    elif name in ("amax", "logsumexp"):
        value = getattr(torch, name)(input.x.masked_fill(input.m == 0, -torch.inf), over, keepdim=True)
        if name == "logsumexp":
            value = value + torch.log(size / count.clamp_min(1))
        # What an all-zero map would give.
        value = torch.where(count > 0, value, torch.tensor(float(size)).log() if name == "logsumexp" else 0.0)
    else:
        raise unknown(name, input.context)
    return value if keep else value.flatten(2).squeeze(2)


def resize(func: Rule, input: MaskedTensor, *rest: Any, **named: Any) -> Tensor:
    """Resampling of the map filled until full; the mask by nearest neighbour."""
    value = func(neighbour_fill(input.x, input.m), *rest, **named)
    mask = functional.interpolate(input.m, size=tuple(value.shape[2:]), mode="nearest")
    return MaskedTensor(value, mask, input.context)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME, unchanged),
    **dict.fromkeys(_POINTWISE, pointwise),
    **dict.fromkeys(_BINARY, binary),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolve),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), convolve_transposed),
    **dict.fromkeys(("flatten", "view", "reshape"), reshape),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate),
    **dict.fromkeys(("mean", "sum", "amax", "logsumexp"), reduce),
    **{f"{kind}{n}d": rule for kind, rule in pool_rules.POOLS.items() for n in (1, 2, 3)},
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "pad": pad,
    "interpolate": resize,
}
_TAKES_BORDER = frozenset(f"{kind}{n}d" for kind in ("conv", "max_pool", "avg_pool") for n in (1, 2, 3))
