"""Rules of layer-wise relevance propagation for layers that are linear in their input, in any dimension.

Bach et al. 2015; Montavon et al. 2017, 2019. A rule takes the relevance of the output and gives that of the
input. ``apply(x, weight, bias)`` is the layer as a function; all rules run it and its transpose only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
#: ``(apply, x, weight, bias, relevance of the output) -> relevance of the input``.
Rule = Callable[[Apply, Tensor, Tensor, Tensor | None, Tensor], Tensor]


def stabilised(z: Tensor, eps: float) -> Tensor:
    """``z + eps sign(z)``, with a positive sign for zero."""
    return z + torch.where(z >= 0, eps, -eps).to(z)


def _back(apply: Apply, weight: Tensor, x: Tensor, share: Tensor) -> Tensor:
    """The layer's transpose with other weights."""
    return transposed(lambda a: apply(a, weight, None), x, share)


def transposed(apply: Callable[[Tensor], Tensor], x: Tensor, values: Tensor) -> Tensor:
    """The transpose of a linear function at work on `values`."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (result,) = torch.autograd.grad(apply(leaf), leaf, values)
    return result


def epsilon(apply: Apply, x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, *, eps: float) -> Tensor:
    """In proportion to each contribution; what the bias contributes is lost."""
    share = relevance / stabilised(apply(x, weight, bias), eps)
    return x * _back(apply, weight, x, share)


def alpha_beta(
    apply: Apply,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    *,
    alpha: float,
    beta: float,
    eps: float,
) -> Tensor:
    """Positive contributions share ``alpha R``, negative ones ``-beta R``; z+ is ``alpha = 1, beta = 0``."""
    high, low = x.clamp_min(0), x.clamp_max(0)
    result = torch.zeros_like(x)
    for factor, bound in ((alpha, partial(Tensor.clamp, min=0)), (-beta, partial(Tensor.clamp, max=0))):
        if factor == 0:
            continue
        same, other = bound(weight), weight - bound(weight)
        part = None if bias is None else bound(bias)
        share = relevance / stabilised(apply(high, same, part) + apply(low, other, None), eps)
        result = result + factor * (high * _back(apply, same, x, share) + low * _back(apply, other, x, share))
    return result


def gamma(
    apply: Apply, x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, *, factor: float, eps: float
) -> Tensor:
    """Contributions of the sign of the output count ``1 + factor`` times; inputs of either sign."""
    high, low = x.clamp_min(0), x.clamp_max(0)
    z = apply(x, weight, bias)
    up, down = weight + factor * weight.clamp_min(0), weight + factor * weight.clamp_max(0)
    result = torch.zeros_like(x)
    for where, same, other, bound in ((z > 0, up, down, {"min": 0.0}), (z < 0, down, up, {"max": 0.0})):
        part = None if bias is None else bias + factor * bias.clamp(**bound)
        share = where * relevance / stabilised(apply(high, same, part) + apply(low, other, None), eps)
        result = result + high * _back(apply, same, x, share)
        result = result + low * _back(apply, other, x, share)
    return result


def zbox(
    apply: Apply,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    *,
    low: float,
    high: float,
    eps: float,
) -> Tensor:
    """For pixels within bounds: contributions relative to the lowest and highest possible ones."""
    bottom, top = torch.full_like(x, low), torch.full_like(x, high)
    up, down = weight.clamp_min(0), weight.clamp_max(0)
    biases = (None, None) if bias is None else (bias.clamp_min(0), bias.clamp_max(0))
    z = apply(x, weight, bias) - apply(bottom, up, biases[0]) - apply(top, down, biases[1])
    share = relevance / stabilised(z, eps)
    return x * _back(apply, weight, x, share) - bottom * _back(apply, up, x, share) - top * _back(apply, down, x, share)


def wsquare(apply: Apply, x: Tensor, weight: Tensor, _bias: Tensor | None, relevance: Tensor, *, eps: float) -> Tensor:
    """In proportion to squared weights, whatever the input."""
    return flat(apply, x, weight**2, None, relevance, eps=eps, keep=True)


def flat(
    apply: Apply, x: Tensor, weight: Tensor, _bias: Tensor | None, relevance: Tensor, *, eps: float, keep: bool = False
) -> Tensor:
    """Equal shares for all inputs of a window; `keep` shares by the weights as they are."""
    ones = torch.ones_like(x)
    equal = weight if keep else torch.ones_like(weight)
    share = relevance / stabilised(apply(ones, equal, None), eps)
    return _back(apply, equal, x, share)


@dataclass(frozen=True)
class Composite:
    """Which rule for which layer.

    Attributes:
        first: for the first convolution.
        convolution: for the others.
        linear: for fully connected layers, and for normalisations that no convolution can take in.
        eps: added to denominators.
    """

    first: Rule
    convolution: Rule
    linear: Rule
    eps: float


COMPOSITES = ("epsilon", "gamma", "zplus", "alpha2beta1", "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box",
              "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat", "epsilon_plus_wsquare")  # fmt: skip


def make_composite(name: str, *, eps: float, factor: float, low: float, high: float) -> Composite:
    """A composite by name.

    Args:
        name: one of `COMPOSITES`; names of two parts give the rule of linear layers first.
        eps: added to denominators.
        factor: of the gamma rule.
        low: smallest possible pixel of the prepared image, for the box rule.
        high: largest possible pixel.
    """
    proportional: Rule = partial(epsilon, eps=eps)
    plus: Rule = partial(alpha_beta, alpha=1.0, beta=0.0, eps=eps)
    both: Rule = partial(alpha_beta, alpha=2.0, beta=1.0, eps=eps)
    strong: Rule = partial(gamma, factor=factor, eps=eps)
    even: Rule = partial(flat, eps=eps)
    box: Rule = partial(zbox, low=low, high=high, eps=eps)
    squares: Rule = partial(wsquare, eps=eps)
    first, convolution, linear = {
        "epsilon": (proportional, proportional, proportional),
        "gamma": (strong, strong, strong),
        "zplus": (plus, plus, plus),
        "alpha2beta1": (both, both, both),
        "epsilon_plus": (plus, plus, proportional),
        "epsilon_plus_flat": (even, plus, proportional),
        "epsilon_gamma_box": (box, strong, proportional),
        "epsilon_alpha2_beta1": (both, both, proportional),
        "epsilon_alpha2_beta1_flat": (even, both, proportional),
        "epsilon_plus_wsquare": (squares, plus, proportional),
    }[name]
    return Composite(first, convolution, linear, eps)
