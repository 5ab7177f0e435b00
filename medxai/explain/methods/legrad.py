"""LeGrad: how a block's own class score reacts to its attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from medxai.errors import ExplainError
from medxai.explain.attention import attend, head_reads
from medxai.explain.method import MethodInfo
from medxai.explain.modes import evaluation
from medxai.explain.target import select_output

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="legrad",
    title="LeGrad",
    family="attention",
    reference="Bousselham et al. 2024",
    passes="1F+LB",
    graph="none",
    layer="none",
    needs="a transformer with attention between all patches (ViT, the encoder of UNETR)",
    caveat="reads the head at blocks it was not trained on; keeps positive evidence only",
)


@dataclass(frozen=True)
class Options:
    """Options of LeGrad.

    Attributes:
        blocks: how many of the last blocks take part; 0 takes all.
        pool: ``mean`` gives the head the mean of a block's tokens, as published; ``native`` its tokens as they are.
    """

    blocks: int = 0
    pool: str = "mean"

    def __post_init__(self) -> None:
        """Check the words."""
        if self.blocks < 0 or self.pool not in ("mean", "native"):
            raise ValueError("blocks is not negative, and pool is mean or native")


def attribute(run: Run, options: Options) -> Tensor:
    """Mean over blocks, heads and queries of ``relu(d s_l / d A_l)``; ``s_l`` is the head's score of block l."""
    attended = attend(run, graph=True, isolate=True)
    steps, blocks = attended.steps[-options.blocks :], [step.block for step in attended.steps]
    if not all(blocks):
        msg = "LeGrad reads the head at every block; the blocks of a hierarchical transformer have no common head"
        raise ExplainError(msg)
    total = torch.zeros(len(run.x), steps[0].matrix.shape[-1], device=run.x.device)
    for step in steps:
        tokens, matrix = cast("Tensor", step.tokens), step.matrix
        with torch.enable_grad(), evaluation(run.network):
            if options.pool == "mean":
                tokens = tokens.mean(1, keepdim=True).expand_as(tokens)
            with head_reads(run.network, blocks, tokens):
                output = select_output(run.shared.inputs.call(run.network), run.shared.forward.output)
            score = run.target(output).float().sum()
        (gradient,) = torch.autograd.grad(score, matrix, retain_graph=True)
        total += gradient.float().clamp_min(0).mean((1, 2)) / len(steps)
    return attended.image(total)
