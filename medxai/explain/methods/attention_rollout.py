"""Attention rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    needs="a transformer: ViT, the encoder of UNETR, or MONAI's Swin",
    caveat="the same map for every class: where information flows, not what speaks for the class",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """Product over blocks of head-averaged attention plus identity, rows scaled to one; row of the class token.

    Without a class token the mean of all rows. Only that row is computed, from the last block to the first; tokens
    that a hierarchical transformer merges share what their merged token has.
    """
    attended = attend(run, graph=False)
    pulled = attended.pulled(lambda _, step, v: (step.pull(v, step.matrix.float().mean(1)) + v) / 2)
    return attended.image(pulled)
