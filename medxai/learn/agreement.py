"""How far a map agrees with a prior, and what to make of it when the network was trained to agree.

Figures of Belharbi et al. 2024 (arXiv:2402.00281) and the shares of `medxai.trust.localisation`. Agreement that was a
training target says nothing on its own; `suspicions` sets it against accuracy and the deletion test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from medxai.errors import SettingsError
from medxai.explain.resize import resize
from medxai.learn.metrics import Interval, bootstrap
from medxai.trust.localisation import pointing_game

FloatArray = npt.NDArray[np.floating]

#: Percentile of training cases below which the share of evidence inside the prior is called unexpected.
UNEXPECTED_BELOW = 0.05
#: A rise of the mean cosine that counts as agreement gained.
_GAIN = 0.05


@dataclass(frozen=True)
class Agreement:
    """One map against its prior, at the prior's size.

    Attributes:
        cosine: between the map, shifted to be at least 0, and the prior.
        uniform: cosine of a map that is the same everywhere: what knowing nothing gives.
        inside: share of the positive evidence inside the prior; NaN without evidence.
        area: the same of a map that is the same everywhere.
        pointing: share of the map's maxima where the prior is at least half of its maximum; NaN without evidence.
    """

    cosine: float
    uniform: float
    inside: float
    area: float
    pointing: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a network did on the same cases as another.

    Attributes:
        cosine: ``[N]`` of its maps with the prior that guided (or would have guided) it.
        correct: ``[N]`` whether it decided right.
        deletion: ``[N]`` area under the deletion curve of its maps, relative to the score of the image itself; smaller
            is better.
    """

    cosine: FloatArray
    correct: npt.NDArray[np.bool_]
    deletion: FloatArray


def uniform_cosine(prior: FloatArray) -> float:
    """Cosine of a uniform map and a prior: mean over root mean square; NaN for a prior of zeros."""
    values = np.asarray(prior, np.float64)
    size = float(np.sqrt(np.mean(values**2)))
    return float(values.mean() / size) if size > 0 else float("nan")


def agreement(values: FloatArray, prior: FloatArray) -> Agreement:
    """Compare a map with a prior.

    Args:
        values: map ``[*s]`` on the layer's grid or any other; enlarged linearly.
        prior: ``[*S]`` in 0..1.

    Raises:
        SettingsError: a prior that is not finite, outside 0..1 or 0 everywhere, or a map that is not finite.
    """
    a = np.asarray(prior, np.float64)
    if not np.isfinite(a).all() or a.min() < 0 or a.max() > 1 or not a.any() or not np.isfinite(values).all():
        msg = "agreement needs a finite map and a prior in 0..1 that is not 0 everywhere; leave out cases without one"
        raise SettingsError(msg)
    large = resize(torch.as_tensor(np.asarray(values, np.float64))[None], a.shape)[0].numpy()
    shifted = large - min(0.0, float(large.min()))
    size = float(np.linalg.norm(shifted) * np.linalg.norm(a))
    evidence = np.maximum(large, 0)
    total = float(evidence.sum())
    return Agreement(
        cosine=float((shifted * a).sum() / size) if size > 0 else 0.0,
        uniform=uniform_cosine(a),
        inside=float((evidence * a).sum() / total) if total > 0 else float("nan"),
        area=float(a.mean()),
        pointing=float(pointing_game(large[None], (a >= a.max() / 2)[None]).values[0]),
    )


def by_class(values: Sequence[float], labels: Sequence[int]) -> float:
    """Mean over the classes of the mean of their cases, as published; NaN values are left out."""
    y, v = np.asarray(labels), np.asarray(values, np.float64)
    means = [v[(y == k) & np.isfinite(v)].mean() for k in np.unique(y) if (np.isfinite(v) & (y == k)).any()]
    return float(np.mean(means)) if means else float("nan")


def percentile(value: float, training: Sequence[float]) -> float:
    """Share of training cases that are not above `value`; NaN without any.

    With the `inside` of a case, a share below `UNEXPECTED_BELOW` means: evidence outside the expected anatomy.
    """
    known = np.asarray(training, np.float64)
    known = known[np.isfinite(known)]
    return float((known <= value).mean()) if known.size and np.isfinite(value) else float("nan")


def difference(guided: npt.ArrayLike, plain: npt.ArrayLike, groups: Sequence[str] | None = None) -> Interval:
    """Mean paired difference with its interval by bootstrap over groups (over cases without any).

    Args:
        guided: ``[N]``; cases in which either value is not finite are left out.
        plain: ``[N]`` of the same cases.
        groups: ``[N]`` patients, or seeds where cases share a network.
    """
    gap = np.asarray(guided, np.float64) - np.asarray(plain, np.float64)
    known = np.flatnonzero(np.isfinite(gap))
    if groups is not None:
        mean = lambda _labels, v: float(v.astype(float).mean())  # noqa: E731
        return bootstrap(mean, np.zeros(len(known)), gap[known, None], [groups[i] for i in known.tolist()])
    values, n = gap[known], len(known)
    if not n:
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
    drawn = values[np.random.default_rng(0).integers(0, n, (2000, n))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), n, n)


def suspicions(plain: Outcome, guided: Outcome) -> tuple[str, ...]:
    """Say why the agreement of a guided network must not be taken for evidence; empty when nothing speaks against it.

    It is suspect when agreement rose while accuracy did not, and either accuracy fell or what the maps point at matters
    less to the decision than before (deletion test). That is what a wrong prior does.

    Args:
        plain: trained without guidance.
        guided: same cases, same order.
    """
    gained = difference(guided.cosine, plain.cosine)
    if not gained.low > 0 or gained.value < _GAIN:
        return ()
    accuracy = difference(guided.correct.astype(float), plain.correct.astype(float))
    deletion = difference(guided.deletion, plain.deletion)
    if accuracy.low > 0 or not (accuracy.high < 0 or deletion.low > 0):
        return ()
    found = [f"agreement with the prior rose by {gained}, but accuracy did not: {accuracy}"]
    if accuracy.high < 0:
        found.append("accuracy fell")
    if deletion.low > 0:
        found.append(f"removing what the maps point at matters less than before: deletion area by {deletion}")
    return (*found, "the maps follow the prior and not the evidence: the prior may be wrong or its weight too large")
