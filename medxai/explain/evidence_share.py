"""How much of a decision rests on each modality: exact Shapley values over which of them are seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.modes import evaluation
from medxai.explain.shapley import coalitions, pair_synergy, shapley_values


@dataclass(frozen=True, eq=False)
class EvidenceShare:
    """Evidence of one subject by modality.

    Attributes:
        modalities: those that there are, in order; a missing one has no share.
        values: ``[n]`` Shapley values of the logit; they sum to `whole` less `nothing`.
        whole: logit with all of them.
        nothing: logit with none.
        synergy: ``[n, n]`` gain of two together less that of each alone.
    """

    modalities: tuple[str, ...]
    values: npt.NDArray[np.float64]
    whole: float
    nothing: float
    synergy: npt.NDArray[np.float64]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the sum of magnitudes; all 0 where nothing counts."""
        total = float(np.abs(self.values).sum())
        sizes = np.abs(self.values) / total if total else np.zeros(len(self.values))
        return dict(zip(self.modalities, sizes.tolist(), strict=True))


def evidence_share(
    network: nn.Module, inputs: Mapping[str, Tensor], target: int, baseline: Mapping[str, Tensor] | None = None
) -> EvidenceShare:
    """Shares of one subject; 16 coalitions of four modalities cost one encoding and one batch of the fusion.

    Args:
        network: a `medxai.explain.synergistic.FusionNetwork`.
        inputs: ``[1, C, *S]`` by modality.
        target: class.
        baseline: embedding ``[1, F]`` by modality that stands for not seeing it, such as the mean over the training
            subjects; what the network has for a missing modality if None, which it has learned only if some were
            missing in training.

    Raises:
        ExplainError: none or more than one subject, or no such class.
    """
    names = tuple(name for name in network.modalities if name in inputs)  # type: ignore[union-attr]
    if not names or any(len(inputs[name]) != 1 for name in names):
        raise ExplainError("shares are of one subject: inputs are [1, C, *S], at least one of them")
    with torch.inference_mode(), evaluation(network):
        seen = network.embed({name: inputs[name] for name in names})  # type: ignore[operator]
        unseen = {name: network.absent[name][None] for name in names} if baseline is None else baseline  # type: ignore[index]
        who = coalitions(len(names))
        embeddings = {name: value.expand(len(who), -1) for name, value in seen.items()}
        for column, name in enumerate(names):
            chosen = torch.as_tensor(who[:, column], device=seen[name].device)[:, None]
            embeddings[name] = torch.where(chosen, seen[name], unseen[name].to(seen[name]))
        logits = network.classify(embeddings)  # type: ignore[operator]
    if not 0 <= target < logits.shape[1]:
        raise ExplainError(f"there is no class {target} among {logits.shape[1]}")
    worth = logits[:, target].double().cpu().numpy()
    return EvidenceShare(names, shapley_values(worth), float(worth[-1]), float(worth[0]), pair_synergy(worth))
