"""A fusion network trained anew without some regions, in folds: the ablation as Wang et al. 2024 publish it.

arXiv:2411.07121: the regions are taken from the subjects who are learnt from and from those who are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medxai.prepare.brain.subject import SubjectFeatures
from medxai.trust.fusion_ablation import score_rows
from medxai.trust.network_removal import Array, Mask, Removal

if TYPE_CHECKING:
    from medxai.networks.hierarchical_fusion import HierarchicalFusion


class FusionRetraining:
    """Score of `medxai.trust.network_ablation.NetworkAblation`: ``removed [N]`` -> rows as of `FusionAblation`.

    Scaling is that of the fold's training subjects; a region that is taken out has their mean. Weights, order and
    noise of a fold are the same for every set.

    Args:
        build: a network with random weights.
        subjects: all over the same regions.
        matrices: that regions are taken from; other modalities stay as they are.
        truth: index of the true class of each.
        positive: index of the explained class.
        folds: ``[S]`` in which each is tested.
        epochs: of each training.
        seed: of weights, order and noise.
    """

    def __init__(
        self, build: Callable[[], HierarchicalFusion], subjects: Sequence[SubjectFeatures], matrices: Sequence[str],
        truth: Sequence[int], positive: int, folds: npt.ArrayLike, epochs: int = 10, seed: int = 0,
    ) -> None:  # fmt: skip
        self._build, self._subjects, self._matrices = build, subjects, matrices
        self._truth, self._positive, self._folds = np.asarray(truth), positive, np.asarray(folds)
        self._epochs, self._seed = epochs, seed

    def __call__(self, removed: Mask) -> Array:
        """See the class."""
        rows = np.empty((len(self._truth), 3))
        for fold in range(int(self._folds.max()) + 1):
            tested = np.flatnonzero(self._folds == fold)
            known = self._log_probabilities(removed, tested, self._seed + fold)
            rows[tested] = score_rows(known, self._truth[tested], self._positive)
        return rows

    def _log_probabilities(self, removed: Mask, tested: npt.NDArray[np.intp], seed: int) -> Array:
        """``[tested, K]`` of a network trained on all others."""
        import torch

        from medxai.learn.brain.train import Cases, FusionRecipe, fit_fusion, predict
        from medxai.prepare.brain.scaling import Scaling

        learnt = np.setdiff1d(np.arange(len(self._truth)), tested)
        scaling = Scaling.fit([self._subjects[i] for i in learnt])
        inputs, present = scaling.inputs(self._subjects)
        where = torch.from_numpy(Removal("zero", "connectivity").where(removed, 4)[:, None])
        inputs = {n: a.masked_fill(where, 0.0) if n in self._matrices else a for n, a in inputs.items()}
        cases = Cases(inputs, present, torch.from_numpy(self._truth.astype(np.int64)))
        torch.manual_seed(seed)
        recipe = FusionRecipe(epochs=self._epochs, seed=seed)
        network = fit_fusion(self._build(), cases.some(learnt.tolist()), None, recipe)
        logits = torch.from_numpy(predict(network, cases.some(tested.tolist())))
        found: Array = logits.double().log_softmax(1).numpy()
        return found
