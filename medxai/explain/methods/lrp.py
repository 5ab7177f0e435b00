"""Layer-wise relevance propagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medxai.explain.method import MethodInfo
from medxai.explain.modes import evaluation
from medxai.explain.relevance_mode import RelevanceMode, passed
from medxai.explain.relevance_rules import COMPOSITES, make_composite
from medxai.explain.target import select_output

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="lrp",
    title="LRP",
    family="relevance",
    reference="Bach et al. 2015; Montavon et al. 2019",
    passes="1F+1BB",
    graph="none",
    layer="none",
    tokens=False,
    needs="a convolutional network of layers with known rules",
    caveat="signed; what biases absorb is missing and reported as conservation",
)


@dataclass(frozen=True)
class Options:
    """Options of relevance propagation.

    Attributes:
        composite: rules of the layers, see `medxai.explain.relevance_rules.COMPOSITES`.
        eps: added to denominators.
        gamma: factor of the gamma rule.
        low: smallest possible pixel of the prepared image, for the box rule; None takes the sample's.
        high: largest possible pixel.
    """

    composite: str = "epsilon_plus_flat"
    eps: float = 1e-6
    gamma: float = 0.25
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Check the composite."""
        if self.composite not in COMPOSITES:
            raise ValueError(f"composite is one of {', '.join(COMPOSITES)}")
        if self.eps <= 0 or self.gamma < 0:
            raise ValueError("eps is positive and gamma not negative")


def attribute(run: Run, options: Options) -> Tensor:
    """Relevance of every voxel for the score, summed over channels.

    ``conservation [B]`` is the sum of the relevance over the score; what is missing from 1 went to biases.

    Raises:
        ExplainError: a function of the network has no rule.
    """
    if options.composite == "epsilon_gamma_box" and None in (options.low, options.high) and len(run.x) > 1:
        parts = [_relevance(run, options, slice(b, b + 1)) for b in range(len(run.x))]  # bounds of each sample
        relevance = torch.cat(parts)
    else:
        relevance = _relevance(run, options, slice(None))
    run.report["conservation"] = relevance.flatten(1).sum(1) / run.score
    return relevance.sum(1)


def _relevance(run: Run, options: Options, samples: slice) -> Tensor:
    """``[B, C, *S]``."""
    network = run.network
    rows = torch.arange(len(run.x), device=run.x.device)[samples]
    leaf = run.x[samples].detach().clone().requires_grad_()
    low = float(leaf.detach().amin()) if options.low is None else options.low
    high = float(leaf.detach().amax()) if options.high is None else options.high
    composite = make_composite(options.composite, eps=options.eps, factor=options.gamma, low=low, high=high)

    def swish(_module: nn.Module, given: Any, output: Tensor) -> Tensor:
        return passed(output, given[0])

    # Activations that are autograd functions of their own are out of the mode's sight.
    own = [module for module in network.modules() if "swish" in type(module).__name__.lower()]
    handles = [module.register_forward_hook(swish) for module in own]
    frozen = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with evaluation(network), torch.enable_grad(), RelevanceMode(composite):
            raw = run.shared.inputs.replace(leaf.clone(), rows).call(network)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()
    output = select_output(raw, run.shared.forward.output)
    with torch.enable_grad():
        top = output.detach().requires_grad_()
        (slope,) = torch.autograd.grad(run.target(top, rows).sum(), top)
    (relevance,) = torch.autograd.grad(output, leaf, top.detach() * slope)
    return relevance.float()
