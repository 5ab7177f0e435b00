"""Finer-CAM: what speaks for a class rather than for the classes like it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from medxai.errors import ExplainError
from medxai.explain.method import MethodInfo
from medxai.explain.registry import get_method

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="finercam",
    title="Finer-CAM",
    family="gradient_cam",
    reference="Zhang et al. 2025",
    passes="1F+1B",
    needs="a classifier with two or more logits",
    caveat="shows the difference to the most similar classes, not all evidence for the class",
)

_BASES = ("gradcam", "hirescam", "layercam", "xgradcam", "gradcampp", "gradcam_elementwise")


@dataclass(frozen=True)
class Options:
    """Options of Finer-CAM.

    Attributes:
        alpha: weight of the similar classes; 0 is the base method.
        similar: how many of them, by closeness of the logit.
        base: gradient method that makes the map.
    """

    alpha: float = 1.0
    similar: int = 3
    base: str = "gradcam"

    def __post_init__(self) -> None:
        """Check the base."""
        if self.base not in _BASES:
            raise ValueError(f"base is one of {', '.join(_BASES)}")
        if self.similar < 1:
            raise ValueError("similar is at least 1")


def attribute(run: Run, options: Options) -> Tensor:
    """Base method on ``z_c - alpha sum_d p_d z_d / sum_d p_d``.

    ``d`` are the classes with the closest logits and ``p`` their softmax probabilities, held constant: a
    gradient through them would mix in the derivative of the softmax.

    Raises:
        ExplainError: fewer than two logits.
    """
    logits, classes = run.logits, run.classes
    if logits.ndim != 2 or logits.shape[1] < 2:
        msg = "Finer-CAM compares classes: two or more logits are needed"
        raise ExplainError(msg)
    own = logits.gather(1, classes[:, None])
    distance = (logits - own).abs().scatter(1, classes[:, None], float("inf"))
    count = min(options.similar, logits.shape[1] - 1)
    near = distance.topk(count, dim=1, largest=False).indices
    probability = logits.softmax(1).gather(1, near)
    share = probability / probability.sum(1, keepdim=True).clamp_min(torch.finfo(probability.dtype).tiny)
    run.report["similar_classes"] = near.tolist()

    def score(output: Tensor) -> Tensor:
        z = output.float()
        return z.gather(1, classes[:, None])[:, 0] - options.alpha * (share * z.gather(1, near)).sum(1)

    target = replace(run.target, classes=None, function=score, label=f"{run.target.label} against the classes like it")
    base = get_method(options.base)
    return base.attribute(run.with_target(target), base.Options())
