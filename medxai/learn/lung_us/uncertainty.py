"""How sure a network is of a picture: test-time augmentation, Monte-Carlo dropout, confidence, rejection.

Born et al. 2021 (arXiv:2009.06116), section 3.4, after Ayhan and Berens 2018 (augmentation, aleatoric) and Gal and
Ghahramani 2016 (arXiv:1506.02142; dropout, epistemic). Probabilities are averaged over passes, never logits or
logarithms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import pearsonr
from torch import nn

from medxai.errors import SettingsError
from medxai.learn.augment import Augmentation, augment
from medxai.learn.metrics import Interval, bootstrap

FloatArray = npt.NDArray[np.float64]

#: Passes of both kinds in the publication.
PASSES = 10
#: Changes of the publication in training and at test time, without its vertical flip: depth has a direction.
AUGMENTATION = Augmentation(flip_axes=(1,), rotate_degrees=10, shift=0.1)
#: Below this confidence the publication's notebook rejects a frame.
REJECT_BELOW = 0.5
#: Largest standard deviation of a variable between 0 and 1.
_LARGEST_SD = 0.5
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True, eq=False)
class Belief:
    """What several passes say of each sample.

    Attributes:
        mean: ``[N, K]`` mean probabilities.
        sd: ``[N]`` standard deviation over passes (divisor n) of the probability of the class with the largest mean.
        decided: ``[N]`` that class.
        confidence: ``[N]`` ``1 - min(sd, 0.5) / 0.5``: 1 when all passes agree, 0 when half say 0 and half 1.
    """

    mean: FloatArray
    sd: FloatArray
    decided: npt.NDArray[np.int64]
    confidence: FloatArray


@dataclass(frozen=True, eq=False)
class RejectionCurve:
    """Accuracy of what is kept when the least confident samples are put aside.

    Attributes:
        kept: share that is kept, ascending to 1.
        accuracy: of the kept.
        threshold: confidence at or above which a sample is kept.
    """

    kept: FloatArray
    accuracy: FloatArray
    threshold: FloatArray


def augmented_passes(
    network: nn.Module,
    inputs: torch.Tensor,
    *,
    fill: float,
    passes: int = PASSES,
    plan: Augmentation = AUGMENTATION,
    seed: int = 0,
) -> FloatArray:
    """Return probabilities ``[passes, N, K]`` of randomly changed copies of `inputs`, without dropout.

    Args:
        network: gives logits ``[N, K]``; it ends in the modes that it had.
        inputs: prepared ``[N, C, *S]``.
        fill: prepared value of what comes in from outside.
        passes: copies of each sample.
        plan: ranges of the changes.
        seed: of the changes.
    """
    generator = torch.Generator().manual_seed(seed)
    with _modes(network, dropout=False), torch.inference_mode():
        rows = [network(augment(inputs, plan, generator, fill=fill)).softmax(dim=1) for _ in range(passes)]
    return torch.stack(rows).double().numpy()


def dropout_passes(network: nn.Module, inputs: torch.Tensor, *, passes: int = PASSES, seed: int = 0) -> FloatArray:
    """Return probabilities ``[passes, N, K]`` with dropout on and everything else as at inference.

    The features may be those of a frozen trunk, with the part behind it as `network`. torch's global generator, from
    which dropout draws, is put back afterwards.

    Args:
        network: gives logits ``[N, K]``; it ends in the modes that it had.
        inputs: prepared ``[N, C, *S]``.
        passes: number of passes.
        seed: of the dropout.

    Raises:
        SettingsError: the network has no dropout, so that every pass would say the same.
    """
    if not any(isinstance(module, _DROPOUTS) and module.p > 0 for module in network.modules()):
        msg = "the network has no dropout layer with a probability above 0: Monte-Carlo dropout cannot say anything"
        raise SettingsError(msg)
    with _modes(network, dropout=True), torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        rows = [network(inputs).softmax(dim=1) for _ in range(passes)]
    return torch.stack(rows).double().numpy()


def believe(passes: npt.ArrayLike) -> Belief:
    """Summarise probabilities ``[passes, N, K]``.

    Raises:
        SettingsError: not of that shape, or a single pass.
    """
    p = np.asarray(passes, dtype=np.float64)
    if p.ndim != 3 or len(p) < 2:
        msg = f"confidence needs probabilities [passes, N, K] of at least two passes, got {p.shape}"
        raise SettingsError(msg)
    mean = p.mean(axis=0)
    decided = mean.argmax(axis=1)
    sd = p.std(axis=0)[np.arange(p.shape[1]), decided]
    return Belief(mean, sd, decided, confidence_of(sd))


def confidence_of(sd: npt.ArrayLike) -> FloatArray:
    """Return ``1 - min(sd, 0.5) / 0.5`` for standard deviations of a probability."""
    return 1 - np.clip(np.asarray(sd, dtype=np.float64), 0, _LARGEST_SD) / _LARGEST_SD


def combined_confidence(aleatoric: Belief, epistemic: Belief) -> FloatArray:
    """Return the mean of both confidences ``[N]``."""
    return (aleatoric.confidence + epistemic.confidence) / 2


def rejection_curve(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> RejectionCurve:
    """Return the accuracy of what is kept at every threshold; samples of equal confidence go together.

    Args:
        confidence: ``[N]``.
        correct: ``[N]`` whether the decision is right.
    """
    c, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    order = np.argsort(-c, kind="stable")
    last = np.flatnonzero(np.append(np.diff(c[order]) != 0, True))
    hits = np.cumsum(right[order])[last]
    return RejectionCurve((last + 1) / len(c), hits / (last + 1), c[order][last])


def correctness_correlation(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, patients: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return Pearson's r of confidence with being right, with its interval over patients; nan without variation.

    Args:
        confidence: ``[N]``.
        correct: ``[N]`` whether the decision is right.
        patients: who each sample is of.
        resamples: of the bootstrap.
        seed: of its draws.
    """
    right = np.asarray(correct, dtype=np.float64)
    return bootstrap(_correlation, right, np.asarray(confidence, dtype=np.float64), patients, n=resamples, seed=seed)


def _correlation(correct: npt.NDArray[np.generic], confidence: npt.NDArray[np.generic]) -> float:
    if len(np.unique(correct)) < 2 or len(np.unique(confidence)) < 2:
        return float("nan")
    return float(pearsonr(confidence, correct).statistic)


@contextmanager
def _modes(network: nn.Module, *, dropout: bool) -> Iterator[None]:
    """Inference mode of every module, dropout layers training if wanted; the modes before come back."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    if dropout:
        for module in network.modules():
            if isinstance(module, _DROPOUTS):
                module.train()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
