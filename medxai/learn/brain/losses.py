"""Losses of hierarchical fusion: cross-entropy, and contrastive alignment of what belongs to the same subject.

Shen et al. 2024, arXiv:2401.06780, with InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) over the subjects of a
batch. The published code flattens a batch's features and contrasts single numbers, with labels that are wrong for more
than one subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from medxai.networks.resnet10_3d import EMBEDDING
from medxai.prepare.brain.subject import MODALITIES

#: Published weights of cross-entropy, functional-structural and dynamic-static alignment.
WEIGHTS = (0.8, 0.1, 0.1)
#: Published temperature of the alignment.
TEMPERATURE = 0.07
#: Published class weights: normal against mild impairment, and three classes.
CLASS_WEIGHTS = {2: (0.5, 0.5), 3: (0.45, 0.1, 0.55)}
#: The alignment contrasts subjects of a batch: fewer than this say little.
SMALL_BATCH = 8


def info_nce(x: Tensor, y: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean of both cross-entropies between ``x y^T / temperature`` and the identity.

    ``ln B`` where views say nothing of each other; 0 for equal, distinct views as the temperature goes to 0.

    Args:
        x: ``[B, F]``, row by row the same subjects as `y`; scaled to length 1 here.
        y: ``[B, F]``.
        temperature: of the softmax over subjects.
    """
    cosines = functional.normalize(x, dim=1) @ functional.normalize(y, dim=1).T / temperature
    own = torch.arange(len(x), device=x.device)
    return (functional.cross_entropy(cosines, own) + functional.cross_entropy(cosines.T, own)) / 2


class Projection(nn.Sequential):
    """Perceptron in front of a contrast (Chen et al. 2020, arXiv:2002.05709): ``[B, 512]`` -> ``[B, width]``."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(EMBEDDING, width), nn.ReLU(), nn.Linear(width, width))


@dataclass(frozen=True, eq=False)
class LossParts:
    """What a training step minimises, and of what it consists.

    Attributes:
        total: weighted sum, with gradient.
        classes: cross-entropy.
        functional_structural: alignment of ALFF and FA, 0 where fewer than two subjects have both.
        dynamic_static: alignment of dynamic and static connectivity, likewise.
    """

    total: Tensor
    classes: Tensor
    functional_structural: Tensor
    dynamic_static: Tensor


class FusionLoss(nn.Module):
    """``0.8 CE + 0.1 L_fs + 0.1 L_ds``. Its perceptrons are trained with the network and not shipped with it.

    ``L_fs`` contrasts ``a * f`` with ``a + f`` of the embeddings of ALFF and FA, ``L_ds`` those of dynamic and static
    connectivity. A subject without one of both has no part in an alignment.

    Args:
        class_weights: of the cross-entropy, one a class; all equal if None.
        weights: of the three losses; 0 leaves one out.
        temperature: see `info_nce`.
        width: of the projections.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        class_weights: tuple[float, ...] | None = None,
        weights: tuple[float, float, float] = WEIGHTS,
        temperature: float = TEMPERATURE,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", None if class_weights is None else torch.tensor(class_weights))
        self.projections = nn.ModuleDict({name: Projection(width) for name in ("product", "sum", "dfc", "sfc")})
        self._weights, self._temperature = weights, temperature

    def forward(
        self, logits: Tensor, labels: Tensor, embeddings: Mapping[str, Tensor], present: Tensor | None = None
    ) -> LossParts:
        """Loss of a batch.

        Args:
            logits: ``[B, K]``.
            labels: ``[B]`` class.
            embeddings: ``[B, 512]`` by modality; without one of a pair that alignment is 0.
            present: ``[B, 4]`` bool in the order of `MODALITIES`; all if None.
        """
        classes = functional.cross_entropy(logits, labels, self.class_weights)
        structure = self._aligned(("alff", "fa"), embeddings, present, logits)
        dynamics = self._aligned(("dfc", "sfc"), embeddings, present, logits)
        total = self._weights[0] * classes + self._weights[1] * structure + self._weights[2] * dynamics
        return LossParts(total, classes, structure, dynamics)

    def _aligned(
        self, pair: tuple[str, str], embeddings: Mapping[str, Tensor], present: Tensor | None, logits: Tensor
    ) -> Tensor:
        if not set(pair) <= set(embeddings):
            return logits.new_zeros(())
        one, two = (embeddings[name] for name in pair)
        if present is not None:
            both = present[:, [MODALITIES.index(name) for name in pair]].to(logits.device).bool().all(1)
            one, two = one[both], two[both]
        if len(one) < 2:
            return logits.new_zeros(())
        if pair == ("alff", "fa"):
            views = self.projections["product"](one * two), self.projections["sum"](one + two)
        else:
            views = self.projections["dfc"](one), self.projections["sfc"](two)
        return info_nce(*views, self._temperature)
