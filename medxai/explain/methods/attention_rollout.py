"""Attention rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medxai.explain.attention import attend
from medxai.explain.method import MethodInfo, NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="attention_rollout",
    title="Attention rollout",
    family="attention",
    reference="Abnar and Zuidema 2020",
    passes="1F",
    graph="none",
    layer="none",
    class_agnostic=True,
    needs="a transformer with attention between all patches (ViT, the encoder of UNETR)",
    caveat="the same map for every class: where information flows, not what speaks for the class",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """Product over blocks of head-averaged attention plus identity, rows scaled to one; row of the class token.

    Without a class token the mean of all rows.
    """
    attended = attend(run, graph=False)
    size = attended.matrices[0].shape[-1]
    identity = torch.eye(size, device=run.x.device)
    rolled = identity.expand(len(run.x), size, size)
    for matrix in attended.matrices:
        mixed = matrix.float().mean(1) + identity
        rolled = (mixed / mixed.sum(-1, keepdim=True)) @ rolled
    return attended.image(attended.readout(rolled))
