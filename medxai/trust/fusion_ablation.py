"""A trained fusion network asked about subjects from whose matrices regions are taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medxai.explain.modes import evaluation
from medxai.predict.fusion_bundle import FusionBundle
from medxai.prepare.brain.subject import MODALITIES, SubjectFeatures
from medxai.trust.network_removal import Array, Mask, Removal
from medxai.trust.ranks import area_under_roc

if TYPE_CHECKING:
    from torch import Tensor

#: Columns of the rows that `FusionAblation` gives.
LOG_PROBABILITY, LOG_ODDS, LABEL = 0, 1, 2


class FusionAblation:
    """Score of `medxai.trust.network_ablation.NetworkAblation`: ``removed [N]`` -> one row a subject.

    A row is the log-probability of the true class, the log-odds of the explained one, and the true class as 0 or 1.
    ALFF, and matrices over another atlas, are encoded once: their embedding does not change. What stands in for
    regions is made once. `medxai.trust.remembered_score.Remembered` keeps the answers.

    Args:
        model: the bundle.
        subjects: all over the same regions.
        truth: index of the true class of each.
        operator: ``mean`` of the bundle's controls; ``permute`` takes another subject's regions; ``noise`` is normal
            with the mean of the controls and the deviation of these subjects.
        batch: subjects encoded at once.
        seed: of partners and noise.
    """

    def __init__(
        self, model: FusionBundle, subjects: Sequence[SubjectFeatures], truth: Sequence[int],
        operator: Literal["mean", "permute", "noise"] = "mean", batch: int = 16, seed: int = 0,
    ) -> None:  # fmt: skip
        import torch

        self._network, self._batch = model.network(), batch
        self._positive, self._truth = model.positive, np.asarray(truth)
        scaling = model.scaling()
        scaled = [scaling.scaled(subject) for subject in subjects]
        present = {name: np.array([name in row for row in scaled]) for name in MODALITIES}
        first = subjects[0]
        over = [name for name in ("sfc", "dfc") if name in self._network.modalities]
        #: Matrices that regions are taken from.
        self.matrices: tuple[str, ...] = tuple(over)
        if "fa" in self._network.modalities and first.fa_regions == first.regions:
            self.matrices = (*over, "fa")
        self._present = present
        self._data: dict[str, tuple[Any, Any, Removal]] = {}
        self._fixed: dict[str, Tensor] = {}
        with torch.inference_mode(), evaluation(self._network):
            for name in self._network.modalities:
                who = np.flatnonzero(present[name])
                arrays = np.stack([scaled[i][name] for i in who]) if len(who) else None
                if name in self.matrices and arrays is not None:
                    healthy = model.reference()[name][0, 0].double().numpy().reshape(arrays.shape[1:])
                    removal = _removal(operator, healthy, arrays.astype(float), seed)
                    instead = removal.instead(arrays.astype(float)).astype(np.float32)
                    self._data[name] = (arrays, instead, removal)
                else:
                    self._fixed[name] = self._embedded(name, arrays, who, len(subjects))

    def __call__(self, removed: Mask) -> Array:
        """See the class."""
        import torch

        count = len(self._truth)
        with torch.inference_mode(), evaluation(self._network):
            embeddings = dict(self._fixed)
            for name, (arrays, instead, removal) in self._data.items():
                who = np.flatnonzero(self._present[name])
                changed = np.where(removal.where(removed, arrays.ndim), instead, arrays)
                embeddings[name] = self._embedded(name, changed, who, count)
            logits = self._network.classify(embeddings).double()
        return score_rows(logits.log_softmax(1).numpy(), self._truth, self._positive)

    def _embedded(self, name: str, arrays: Any, who: Any, count: int) -> Tensor:
        """``[S, F]``; the learned embedding for those without the modality."""
        import torch

        from medxai.prepare.brain.scaling import spatial

        found: Tensor = self._network.absent[name].detach().expand(count, -1).clone()
        for start in range(0, len(who), self._batch):
            part = torch.from_numpy(np.ascontiguousarray(arrays[start : start + self._batch]))
            found[who[start : start + self._batch]] = self._network.encode(name, spatial(name, part))
        return found


def score_rows(known: Array, truth: npt.NDArray[np.intp], positive: int) -> Array:
    """Rows ``[S, 3]`` of `FusionAblation` from log-probabilities ``[S, K]``, true and explained class."""
    own = known[:, positive]
    others = np.log(np.maximum(-np.expm1(own), 1e-300))
    return np.stack([known[np.arange(len(truth)), truth], own - others, (truth == positive).astype(float)], 1)


def log_probability(rows: Array) -> float:
    """Mean log-probability of the true class."""
    return float(rows[:, LOG_PROBABILITY].mean())


def auroc(rows: Array) -> float:
    """Area under the ROC curve of the explained class; 0.5 where the subjects are of one class alone."""
    area = area_under_roc(rows[:, LABEL] > 0, rows[:, LOG_ODDS])
    return 0.5 if np.isnan(area) else area


def _removal(operator: Literal["mean", "permute", "noise"], healthy: Array, arrays: Array, seed: int) -> Removal:
    """`healthy` is the mean control, `arrays` are the subjects."""
    spread = arrays.std(0)
    return Removal(operator, "connectivity", np.stack([healthy - spread, healthy + spread]), seed)
