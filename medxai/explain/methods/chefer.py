"""Generic attention relevance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medxai.explain.attention import attend
from medxai.explain.method import MethodInfo, NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="chefer",
    title="Chefer relevance",
    family="attention",
    reference="Chefer et al. 2021b",
    passes="1F+1BB",
    graph="none",
    layer="none",
    needs="a transformer: ViT, the encoder of UNETR, or MONAI's Swin",
    caveat="keeps positive evidence only",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """``R <- R + mean_heads(relu(dA A)) R`` from the first block to the last; row of the class token."""
    attended = attend(run, graph=True)
    with torch.enable_grad():
        score = run.target(attended.output).float().sum()
        gradients = torch.autograd.grad(score, [step.matrix for step in attended.steps])
    changes = [
        (gradient.float() * step.matrix.detach().float()).clamp_min(0).mean(1)
        for gradient, step in zip(gradients, attended.steps, strict=True)
    ]
    whole = attended.pulled(lambda number, step, v: v + step.pull(v, changes[number]))
    return attended.image(whole - attended.pulled(lambda _number, _step, v: v))
