"""Whether probabilities are what they claim: reliability diagram, expected calibration error, temperature.

Guo et al. 2017 (arXiv:1706.04599). The temperature is fitted on the inner validation set, never on the fold that is
reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from medxai.errors import SettingsError

FloatArray = npt.NDArray[np.float64]

#: Temperatures that are tried: beyond these the probabilities are one-hot or uniform.
_LOWEST, _HIGHEST = 0.02, 50.0


@dataclass(frozen=True)
class ReliabilityBin:
    """One bar of the reliability diagram.

    Attributes:
        low: lower edge of the confidence, exclusive (0 belongs to the first bin).
        high: upper edge, inclusive.
        n: samples inside.
        confidence: their mean confidence; nan when empty.
        accuracy: share that is right; nan when empty.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(probabilities: npt.ArrayLike, truth: npt.ArrayLike, bins: int = 15) -> tuple[ReliabilityBin, ...]:
    """Return the reliability diagram of the decided class in bins of equal width.

    Args:
        probabilities: ``[N, K]``.
        truth: ``[N]`` class indices.
        bins: number of bars.

    Raises:
        SettingsError: nothing to judge, or shapes that do not fit.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
    if p.ndim != 2 or len(p) != len(y) or not len(y):
        msg = f"calibration needs probabilities [N, K] and N classes, got {p.shape} and {y.shape}"
        raise SettingsError(msg)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    found = []
    for b in range(bins):
        inside = which == b
        n = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if n else (float("nan"), float("nan"))
        found.append(ReliabilityBin(float(edges[b]), float(edges[b + 1]), n, *means))
    return tuple(found)


def expected_calibration_error(probabilities: npt.ArrayLike, truth: npt.ArrayLike, bins: int = 15) -> float:
    """Return the mean distance of confidence and accuracy over the bins of `reliability`, weighted by their samples.

    The estimate is never negative, so that calibrated probabilities of few samples have a positive one.
    """
    bars = [bar for bar in reliability(probabilities, truth, bins) if bar.n]
    total = sum(bar.n for bar in bars)
    return sum(bar.n * abs(bar.confidence - bar.accuracy) for bar in bars) / total


def negative_log_likelihood(logits: npt.ArrayLike, truth: npt.ArrayLike, temperature: float = 1.0) -> float:
    """Return the mean of ``-log p(truth)`` in nats for logits ``[N, K]`` divided by `temperature`."""
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(truth)
    return float(-log_softmax(z / temperature, axis=1)[np.arange(len(y)), y].mean())


def fit_temperature(logits: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Return the temperature of the smallest negative log-likelihood, between 0.02 and 50.

    The likelihood is convex in the inverse temperature, so the search over its logarithm has one minimum. Decisions
    stay as they are, and the likelihood on these samples is never worse than without: then it is 1.

    Args:
        logits: ``[N, K]`` of validation samples.
        truth: ``[N]`` class indices.

    Raises:
        SettingsError: no samples, or logits that are not finite.
    """
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 2 or not len(z) or not np.isfinite(z).all():
        msg = "a temperature needs finite logits [N, K] of validation samples"
        raise SettingsError(msg)
    found = minimize_scalar(
        lambda logarithm: negative_log_likelihood(z, truth, float(np.exp(logarithm))),
        bounds=(np.log(_LOWEST), np.log(_HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    temperature = float(np.exp(found.x))
    better = negative_log_likelihood(z, truth, temperature) < negative_log_likelihood(z, truth)
    return temperature if better else 1.0


def tempered(logits: npt.ArrayLike, temperature: float) -> FloatArray:
    """Return the probabilities of logits ``[..., K]`` divided by `temperature`."""
    probabilities: FloatArray = softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)
    return probabilities
