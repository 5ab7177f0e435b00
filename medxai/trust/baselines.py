"""The same measure with several ways of removing: what depends on the way says nothing about the maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from torch import Tensor

from medxai.explain.gaussian import smooth
from medxai.explain.run import Run
from medxai.trust.curves import agreement
from medxai.trust.probe import Baseline, Probe
from medxai.trust.scores import Scores

#: Kendall's tau-b of the ranks of methods below which no method may be called the best.
AGREE = 0.5


def blur_mm(x: Tensor, spacing: Sequence[float], sigma_mm: float = 10.0) -> Baseline:
    """The images smoothed by a Gaussian whose width is stated in the patient: the same for every voxel size.

    Args:
        x: ``[B, C, *S]``.
        spacing: of the voxels in mm along each axis.
        sigma_mm: standard deviation; 10 mm takes lesions away and leaves organs.
    """
    return Baseline(f"blur {sigma_mm:g} mm", smooth(x.float(), [sigma_mm / step for step in spacing]))


@dataclass(frozen=True, eq=False)
class Comparison:
    """One measure of several methods with several baselines.

    Attributes:
        scores: by method and baseline.
        agreement: by pair of baselines, Kendall's tau-b of the ranks they give the methods; NaN with fewer than two
            methods or where all are equal.
    """

    scores: Mapping[str, Mapping[str, Scores]]
    agreement: Mapping[tuple[str, str], float]

    @property
    def best(self) -> str | None:
        """The method with the best mean over the baselines; None where any two of them disagree about the ranks."""
        if not all(value >= AGREE for value in self.agreement.values()):
            return None
        means = {name: np.mean([s.mean for s in row.values()]) for name, row in self.scores.items()}
        lower = next(iter(next(iter(self.scores.values())).values())).better == "lower"
        return (min if lower else max)(means, key=lambda name: float(means[name]))


def compare(
    run: Run,
    measure: Callable[[Probe, Tensor], Scores],
    maps: Mapping[str, Tensor],
    baselines: Sequence[str | Baseline] = ("blur", "mean"),
    score: str = "prob",
) -> Comparison:
    """Measure the maps of several methods with at least two baselines.

    Args:
        run: of the batch with its target.
        measure: ``(probe, maps [B, *S])`` -> one value for each sample.
        maps: ``[B, *S]`` by method.
        baselines: operators of the engine, or baselines of one's own such as `blur_mm`.
        score: what probes are asked for.

    Raises:
        ValueError: fewer than two different baselines.
    """
    probes = [Probe(run, baseline, score) for baseline in baselines]
    names = [probe.name for probe in probes]
    if len(set(names)) < 2:
        msg = f"{names} is one way of removing; a measure needs at least two"
        raise ValueError(msg)
    scores = {
        method: {probe.name: measure(probe, values) for probe in probes} for method, values in maps.items()
    }  # fmt: skip
    means = {name: np.array([row[name].mean for row in scores.values()]) for name in names}
    found = {(a, b): agreement(means[a], means[b]) for a, b in combinations(names, 2)}
    return Comparison(scores, found)
