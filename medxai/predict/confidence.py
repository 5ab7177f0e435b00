"""How sure a network is of a picture: test-time augmentation, Monte-Carlo dropout, and one confidence from both.

Born et al. 2021 (arXiv:2009.06116), section 3.4, after Ayhan and Berens 2018 (augmentation, aleatoric) and Gal and
Ghahramani 2016 (arXiv:1506.02142; dropout, epistemic). Probabilities are averaged over passes, never logits or
logarithms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medxai.errors import SettingsError
from medxai.predict.augment import Augmentation, augment
from medxai.predict.bundle_spec import MedxaiBlock
from medxai.prepare.intensity import map_intensity
from medxai.prepare.spec import PreparationSpec
from medxai.study import Confidence

FloatArray = npt.NDArray[np.float64]

#: Passes of both kinds in the publication.
PASSES = 10
#: Changes of the publication in training and at test time, without its vertical flip: depth has a direction.
AUGMENTATION = Augmentation(flip_axes=(1,), rotate_degrees=10, shift=0.1)
#: Largest standard deviation of a variable between 0 and 1.
_LARGEST_SD = 0.5
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True, eq=False)
class Belief:
    """What several passes say of each sample.

    Attributes:
        mean: ``[N, K]`` mean probabilities.
        class_sd: ``[N, K]`` standard deviation over passes (divisor n).
        sd: ``[N]`` that of the class with the largest mean.
        decided: ``[N]`` that class.
        confidence: ``[N]`` ``1 - min(sd, 0.5) / 0.5``: 1 when all passes agree, 0 when half say 0 and half 1.
    """

    mean: FloatArray
    class_sd: FloatArray
    sd: FloatArray
    decided: npt.NDArray[np.int64]
    confidence: FloatArray


def augmented_passes(
    network: nn.Module,
    inputs: torch.Tensor,
    *,
    fill: float,
    passes: int = PASSES,
    plan: Augmentation = AUGMENTATION,
    temperature: float = 1.0,
    seed: int = 0,
) -> FloatArray:
    """Return probabilities ``[passes, N, K]`` of randomly changed copies of `inputs`, without dropout.

    Args:
        network: gives logits ``[N, K]``; it ends in the modes that it had.
        inputs: prepared ``[N, C, *S]``.
        fill: prepared value of what comes in from outside.
        passes: copies of each sample.
        plan: ranges of the changes.
        temperature: by which logits are divided.
        seed: of the changes.
    """
    generator = torch.Generator().manual_seed(seed)
    with _modes(network, dropout=False), torch.inference_mode():
        changed = (augment(inputs, plan, generator, fill=fill) for _ in range(passes))
        rows = [(network(images) / temperature).softmax(dim=1) for images in changed]
    return torch.stack(rows).double().numpy()


def dropout_passes(
    network: nn.Module, inputs: torch.Tensor, *, passes: int = PASSES, temperature: float = 1.0, seed: int = 0
) -> FloatArray:
    """Return probabilities ``[passes, N, K]`` with dropout on and everything else as at inference.

    The features may be those of a frozen trunk, with the part behind it as `network`. torch's global generator, from
    which dropout draws, is put back afterwards.

    Args:
        network: gives logits ``[N, K]``; it ends in the modes that it had.
        inputs: prepared ``[N, C, *S]``.
        passes: number of passes.
        temperature: by which logits are divided.
        seed: of the dropout.

    Raises:
        SettingsError: the network has no dropout, so that every pass would say the same.
    """
    if not has_dropout(network):
        msg = "the network has no dropout layer with a probability above 0: Monte-Carlo dropout cannot say anything"
        raise SettingsError(msg)
    with _modes(network, dropout=True), torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        rows = [(network(inputs) / temperature).softmax(dim=1) for _ in range(passes)]
    return torch.stack(rows).double().numpy()


def has_dropout(network: nn.Module) -> bool:
    """Whether any layer drops something at random in training."""
    return any(isinstance(module, _DROPOUTS) and module.p > 0 for module in network.modules())


def ask_again(network: nn.Module, pictures: torch.Tensor, spec: MedxaiBlock, seed: int = 0) -> Confidence:
    """Measure how sure a network is of one study from a few of its pictures.

    Each picture is asked in `passes` changed versions and with dropout; deviations are averaged over pictures.

    Args:
        network: gives logits ``[N, K]``; a single logit is read as two.
        pictures: prepared ``[N, C, H, W]`` frames on the network's device.
        spec: with `confidence` settings.
        seed: of changes and dropout.

    Raises:
        SettingsError: the bundle has no such settings.
    """
    wanted = spec.confidence
    if wanted is None:
        msg = "the bundle's metadata has no block 'confidence'; add one to have confidences measured"
        raise SettingsError(msg)
    temperature = spec.temperature if spec.fusion == "probability" else 1.0
    plan = Augmentation((1,) if wanted.flip else (), wanted.rotate_degrees, shift=wanted.shift)
    fill = prepared_fill(spec.preparation)
    versions = believe(
        augmented_passes(
            network, pictures, fill=fill, passes=wanted.passes, plan=plan, temperature=temperature, seed=seed
        )
    )
    aleatoric = confidence_of(versions.class_sd.mean(axis=0))
    epistemic = np.full_like(aleatoric, np.nan)
    if has_dropout(network):
        dropped = believe(dropout_passes(network, pictures, passes=wanted.passes, temperature=temperature, seed=seed))
        epistemic = confidence_of(dropped.class_sd.mean(axis=0))
    return Confidence(
        aleatoric=tuple(aleatoric.tolist()),
        epistemic=tuple(epistemic.tolist()),
        passes=wanted.passes,
        pictures=len(pictures),
        low=wanted.low,
    )


def prepared_fill(spec: PreparationSpec) -> float:
    """Return the prepared value of what lies outside an image.

    Raises:
        SettingsError: it differs between channels.
    """
    outside = np.full((spec.channels, 1, 1), spec.fill, dtype=np.float32)
    values = np.unique(map_intensity(outside, spec.intensity))
    if len(values) > 1:
        msg = "channels with different intensities have no single value of what lies outside an image"
        raise SettingsError(msg)
    return float(values[0])


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
    class_sd = p.std(axis=0)
    sd = class_sd[np.arange(p.shape[1]), decided]
    return Belief(mean, class_sd, sd, decided, confidence_of(sd))


def confidence_of(sd: npt.ArrayLike) -> FloatArray:
    """Return ``1 - min(sd, 0.5) / 0.5`` for standard deviations of a probability."""
    return 1 - np.clip(np.asarray(sd, dtype=np.float64), 0, _LARGEST_SD) / _LARGEST_SD


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
