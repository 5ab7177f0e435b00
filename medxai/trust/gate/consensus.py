"""Consensus: do methods that work in different ways point at the same places of the same case?

Families are independent in what they compute from: gradients of the class at the target layer, activations alone
whatever the class, gradients of the class at the image, scores of masked images, relevance, attention. They are not
independent in what they look at: one network, one image, one decision. Agreement says that a map is no artefact of
its method; it says nothing about whether the network is right, and families agree on a shortcut as well. Activations
alone agree with a class's map only where the class is what the layer is most active about.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medxai.trust.robustness import families

#: Positions along an axis at most: an input gradient has no finer agreement with a map of a coarse layer.
_FINEST = 24

#: Family -> what its methods compute from, in words.
WORDS = {
    "gradient_cam": "gradients of the class at the layer",
    "activation_cam": "activations of the layer",
    "gradient": "gradients of the class at the image",
    "score_cam": "scores of the image behind its channels",
    "perturbation": "scores of masked images",
    "relevance": "relevance",
    "attention": "attention",
}


def consensus(own: Tensor, family: str, others: Mapping[str, Tensor], grid: tuple[int, ...]) -> dict[str, float]:
    """Spearman correlation of a map with one of each other family; NaN where a map is constant.

    Positive evidence, averaged over the positions of a coarse grid.

    Args:
        own: ``[*s]``.
        family: of the method that made it; a map of this family says nothing independent and is left out.
        others: ``[*s']`` by family, each on a grid of its own.
        grid: positions along each axis to compare on.
    """
    coarse = [max(1, min(size, _FINEST)) for size in grid]
    found = {}
    for name, values in others.items():
        if name != family:
            pair = {"own": _evidence(own), name: _evidence(values)}
            found[name] = float(families(pair, coarse)[0])
    return found


def _evidence(values: Tensor) -> Tensor:
    return torch.as_tensor(values).detach().float().clamp_min(0)[None]
