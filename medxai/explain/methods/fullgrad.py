"""FullGrad: the gradient at the input and at every bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medxai.explain.bias_terms import BiasTerms
from medxai.explain.method import MethodInfo
from medxai.explain.resize import resize
from medxai.explain.split import INPUT

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="fullgrad",
    title="FullGrad",
    family="gradient",
    reference="Srinivas and Fleuret 2019",
    passes="1F+1BB",
    graph="none",
    layer="none",
    tokens=False,
    needs="a network of convolutions, linear and normalisation layers with ReLU",
    caveat="complete for piecewise linear networks; the residual is reported",
)

#: Largest share of the score that may be missing before the map is flagged.
_COMPLETE = 1e-3


@dataclass(frozen=True)
class Options:
    """Options of FullGrad.

    Attributes:
        psi: ``abs`` is the published map, each term scaled to 0..1; ``none`` keeps signed terms, which sum to the
            score but for the biases of linear layers (Simple FullGrad).
    """

    psi: str = "abs"

    def __post_init__(self) -> None:
        """Check the word."""
        if self.psi not in ("abs", "none"):
            raise ValueError("psi is abs or none")


def attribute(run: Run, options: Options) -> Tensor:
    """``psi(x dy/dx) + sum over layers and channels of psi(bias dy/dz)``, enlarged to the input's grid.

    ``completeness_residual [B]`` is ``|y - all terms| / |y|``, with the biases of linear layers counted.
    Statistics of instance, group and layer norms are held constant.
    """
    rows = torch.arange(len(run.x), device=run.x.device)
    maps: list[Tensor] = []

    def add(term: Tensor) -> None:
        """One term ``[B, K, *s]``, into one map at once: the gradients of all layers would not fit."""
        signed = term if options.psi == "none" else _unit(term.abs())
        maps.append(resize(signed.sum(1), run.spatial))
        if len(maps) > 1:
            maps[:] = [maps[0] + maps[1]]

    with BiasTerms(run.network, add) as terms:
        captured, score = run.capture(run.x, rows, [INPUT])
        gradient = captured.gradients(score, [INPUT])[INPUT]
    at_input = gradient * run.x.float()
    add(at_input)
    total = at_input.flatten(1).sum(1) + terms.total(len(run.x)).to(at_input)
    value = score.detach().float()
    residual = (value - total).abs() / value.abs().clamp_min(1e-8)
    run.report["completeness_residual"] = residual
    run.flag("unstable", residual > _COMPLETE, f"more than {_COMPLETE:g} of the score is in none of the terms")
    return maps[0]


def _unit(term: Tensor) -> Tensor:
    """Minimum and maximum of the whole term of a sample to 0 and 1."""
    flat = term.flatten(1)
    shape = (-1, *[1] * (term.ndim - 1))
    low, high = flat.amin(1).view(shape), flat.amax(1).view(shape)
    span = high - low
    return torch.where(
        span > 0, (term - low) / torch.where(span > 0, span, torch.ones_like(span)), torch.zeros_like(term)
    )
