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
    needs="a transformer with attention between all patches (ViT, the encoder of UNETR)",
    caveat="keeps positive evidence only",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """``R <- R + mean_heads(relu(dA A)) R`` from the first block to the last; row of the class token."""
    attended = attend(run, graph=True)
    with torch.enable_grad():
        score = run.target(attended.output).float().sum()
    gradients = torch.autograd.grad(score, list(attended.matrices))
    size = attended.matrices[0].shape[-1]
    relevance = torch.eye(size, device=run.x.device).expand(len(run.x), size, size)
    for matrix, gradient in zip(attended.matrices, gradients, strict=True):
        change = (gradient.float() * matrix.detach().float()).clamp_min(0).mean(1)
        relevance = relevance + change @ relevance
    identity = torch.eye(size, device=run.x.device)
    return attended.image(attended.readout(relevance - identity))
