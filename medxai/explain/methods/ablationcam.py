"""Ablation-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medxai.explain.channels import mean_over_positions, weighted_sum
from medxai.explain.masking.masker import check_score, read_score
from medxai.explain.method import MethodInfo
from medxai.explain.tail import Tail

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="ablationcam",
    title="Ablation-CAM",
    family="score_cam",
    reference="Desai and Ramaswamy 2020",
    passes="1F + K F of the tail",
    repeats=True,
)


@dataclass(frozen=True)
class Options:
    """Options of Ablation-CAM.

    Attributes:
        ablate: a channel is set to ``zero`` or, for layers with signed features, to its ``mean`` over positions
            (which removes nothing where the head averages over positions).
        score: ``logit`` or ``prob``.
    """

    ablate: str = "zero"
    score: str = "logit"

    def __post_init__(self) -> None:
        """Check names."""
        if self.ablate not in ("zero", "mean"):
            raise ValueError(f"ablate is zero or mean, not {self.ablate!r}")
        check_score(self.score)


def attribute(run: Run, options: Options) -> Tensor:
    """``sum_k w_k A_k`` with ``w_k = (y - y_k) / |y|``, ``y_k`` the score without channel k.

    The magnitude in the denominator keeps the weights' meaning where the score is negative. Channels that already
    equal what they are set to are not run.
    """
    activation = run.activation
    level = mean_over_positions(activation) if options.ablate == "mean" else torch.zeros(activation.shape[:2])
    level = level.to(activation)
    flat = activation.flatten(2)
    rows, channels = torch.nonzero((flat != level[:, :, None]).any(-1), as_tuple=True)
    clean = read_score(run.target, run.logits, None, options.score).float()
    run.expect(len(rows))
    tail = Tail(run)
    run.report["tail_only"] = tail.replays
    weights = torch.zeros_like(level)
    size = run.samples_at_once
    for which, ablated in zip(torch.split(rows, size), torch.split(channels, size), strict=True):
        changed = activation[which]
        place = torch.arange(len(which), device=changed.device)
        changed[place, ablated] = level[which, ablated].view(-1, *[1] * (activation.ndim - 2))
        without = read_score(run.target, tail.outputs(changed, which), which, options.score).float()
        weights[which, ablated] = (clean[which] - without) / (clean[which].abs() + 1e-8)
    return weighted_sum(weights, activation)
