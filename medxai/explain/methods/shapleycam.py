"""ShapleyCAM with the ReST utility."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from medxai.errors import ExplainError
from medxai.explain.channels import mean_over_positions, weighted_sum
from medxai.explain.method import MethodInfo
from medxai.explain.target import Target

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="shapleycam",
    title="ShapleyCAM",
    family="gradient_cam",
    reference="Cai 2025",
    passes="1F+2B",
    caveat="fused attention kernels have no second derivative; networks with them need their plain form",
)


@dataclass(frozen=True)
class Options:
    """Options of ShapleyCAM.

    Attributes:
        utility: ``rest`` explains logit plus log-probability, ``logit`` the score itself.
        form: ``gradcam`` weights channels, ``hirescam`` positions.
    """

    utility: str = "rest"
    form: str = "gradcam"

    def __post_init__(self) -> None:
        """Check the words."""
        if self.utility not in ("rest", "logit"):
            raise ValueError("utility is rest or logit")
        if self.form not in ("gradcam", "hirescam"):
            raise ValueError("form is gradcam or hirescam")


def attribute(run: Run, options: Options) -> Tensor:
    """``Q = G - H A / 2``, the second-order Taylor value of removing A, in the place of the gradient.

    One Hessian-vector product; with a piecewise linear tail and the plain logit H is zero and the map is
    Grad-CAM's.

    Raises:
        ExplainError: a layer behind the target has no second derivative.
    """
    captured, layer = run.shared.captured, run.layer
    with torch.inference_mode(False), torch.enable_grad():
        score = utility(run.target, captured.logits, options.utility)
        leaf = captured.outputs[layer]
        (gradient,) = torch.autograd.grad(score.sum(), leaf, create_graph=True)
        product = torch.zeros_like(leaf)
        if gradient.requires_grad:
            try:
                (found,) = torch.autograd.grad(
                    (gradient * leaf.detach()).sum(), leaf, retain_graph=True, allow_unused=True
                )
            except RuntimeError as error:
                msg = f"a layer behind {layer!r} has no second derivative: {str(error).splitlines()[0]}"
                raise ExplainError(msg) from error
            product = product if found is None else found
    value = captured.layouts[layer].to_grid((gradient - 0.5 * product).detach()).float()
    if options.form == "hirescam":
        return (value * run.activation).sum(1)
    return weighted_sum(mean_over_positions(value), run.activation)


def utility(target: Target, output: Tensor, kind: str) -> Tensor:
    """Score ``[B]``, with ReST ``z_c + log softmax(z)_c``; two classes of a single logit z have logits z/2 and -z/2."""
    score = target(output).float()
    if kind == "logit" or target.classes is None or target.region is not None:
        return score
    if output.shape[1] == 1:
        return score + nn.functional.logsigmoid(score)
    return 2 * score - output.float().logsumexp(1)
