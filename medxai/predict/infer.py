"""Windows through the network, logits fused, and the decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax

from medxai.errors import BundleError, MismatchError
from medxai.predict.chest_ct import misfits
from medxai.predict.colour_flow import colour_flow
from medxai.predict.stain_fit import foreign_colours
from medxai.predict.windows import plan_windows
from medxai.study import FloatArray, Prediction, Volume

if TYPE_CHECKING:
    import torch
    from torch import nn

    from medxai.predict.bundle import Bundle
    from medxai.predict.bundle_spec import MedxaiBlock
    from medxai.prepare.prepare import Prepared


def check_fit(bundle: Bundle, volume: Volume, *, force: bool = False) -> None:
    """Refuse a study that the model was not made for.

    An unknown modality (``OT``) and an unknown body part (empty) pass: NIfTI and pictures state neither.

    Args:
        bundle: the model.
        volume: the study's image.
        force: accept another body part, coloured Doppler, foreign colours and whatever `medxai.predict.chest_ct`
            objects to; never another modality or dimension.

    Raises:
        MismatchError: naming what the study is and what the model reads.
    """
    spec = bundle.spec
    wants_volume = spec.preparation.axes == "DHW"
    if wants_volume != (volume.axes == "DHW"):
        kind = {"HW": "a single image", "THW": "a cine", "DHW": "a volume"}[volume.axes]
        msg = f"{bundle.name} reads {'volumes' if wants_volume else 'images and cines'}, the study is {kind}"
        raise MismatchError(msg)
    if volume.modality not in {*spec.modalities, "OT", ""}:
        msg = f"{bundle.name} reads {', '.join(spec.modalities)}, the study is {volume.modality}"
        raise MismatchError(msg)
    if not force and not spec.colour_flow and (shown := colour_flow(volume)) is not None:
        msg = f"{bundle.name} reads grey ultrasound, {shown}; --force goes on"
        raise MismatchError(msg)
    known = spec.slide.colours if spec.slide is not None else None
    if not force and known is not None and (said := foreign_colours(volume, known)) is not None:
        msg = f"{bundle.name} reads stained tissue, {said}; --force goes on"
        raise MismatchError(msg)
    if not force and volume.body_part and volume.body_part.upper() not in spec.body_parts:
        msg = f"{bundle.name} is for {', '.join(spec.body_parts)}, the study shows {volume.body_part}; --force goes on"
        raise MismatchError(msg)
    if not force and spec.chest is not None and (wrong := next(misfits(spec.chest, volume), None)) is not None:
        msg = f"{bundle.name} {wrong}; --force goes on"
        raise MismatchError(msg)


def check_answer(bundle: Bundle, prediction: Prediction, *, force: bool = False) -> None:
    """Refuse a study that the network itself calls none of its own.

    Args:
        bundle: the model.
        prediction: its decision.
        force: accept it.

    Raises:
        MismatchError: with the share of pictures that were declined.
    """
    if force or prediction.reject is None or prediction.label != prediction.reject:
        return
    each = prediction.window_probabilities
    count = 1 if each is None else len(each)
    declined = count if each is None else int((each.argmax(axis=1) == prediction.index).sum())
    msg = (
        f"{bundle.name} finds nothing here that it was made for: it calls {declined} of {count} pictures "
        f"{prediction.label} (mean probability {prediction.probability:.2f}); --force goes on"
    )
    raise MismatchError(msg)


def fuse_logits(window_logits: FloatArray, spec: MedxaiBlock) -> tuple[FloatArray, FloatArray]:
    """Fuse the logits of windows or frames; a single logit ``z`` becomes two, ``-z`` and ``z``.

    ``mean`` averages. ``lse`` is ``t * log(mean(exp(z / t)))`` per class, between the mean and the maximum.
    For a single logit both classes follow the fused ``z``, so that one window with a finding decides.
    ``probability`` gives the logarithm of the mean softmax probability, whose softmax is that mean; the weight of a
    frame is its share of it.

    Args:
        window_logits: ``[N, K]`` finite.
        spec: fusion, temperature and labels.

    Returns:
        Fused logits ``[n_classes]`` and ``[N, n_classes]`` weights: the derivative of each class's fused
        logit by the logit of the window, for ``probability`` by its log probability. Weights sum to 1 over windows.

    Raises:
        BundleError: the number of logits does not fit the labels.
    """
    z = np.asarray(window_logits, dtype=np.float64)
    single = z.ndim == 2 and z.shape[1] == 1 and len(spec.labels) == 2
    if z.ndim != 2 or not len(z) or (z.shape[1] != len(spec.labels) and not single):
        msg = f"the network gives logits {z.shape}, the bundle has {len(spec.labels)} labels"
        raise BundleError(msg)
    if spec.fusion == "mean":
        fused, weights = z.mean(axis=0), np.full_like(z, 1 / len(z))
    elif spec.fusion == "probability":
        p = np.maximum(softmax(z / spec.temperature, axis=1), np.finfo(np.float64).tiny)
        fused, weights = np.log(p.mean(axis=0)), p / p.sum(axis=0)
    else:
        top = z.max(axis=0)
        grown = np.exp((z - top) / spec.temperature)
        weights = grown / grown.sum(axis=0)
        fused = top + spec.temperature * np.log(grown.mean(axis=0))
    if single:
        fused, weights = np.concatenate([-fused, fused]), np.repeat(weights, 2, axis=1)
    return fused.astype(np.float32), weights.astype(np.float32)


def activate(logits: FloatArray, spec: MedxaiBlock) -> FloatArray:
    """Fused logits ``[n_classes]`` -> probabilities.

    ``softmax`` over the classes. ``sigmoid`` per class; with two labels from a single logit that is
    ``1 - p`` and ``p``.
    """
    z = np.asarray(logits, dtype=np.float64)
    if spec.activation == "sigmoid":
        p = 0.5 * (1 + np.tanh(z / 2))
    else:
        grown = np.exp(z - z.max())
        p = grown / grown.sum()
    probabilities: FloatArray = p.astype(np.float32)
    return probabilities


def make_prediction(bundle: Bundle, window_logits: FloatArray) -> Prediction:
    """Fuse, activate and decide; the decision is the class with the largest fused logit.

    Args:
        bundle: model and its metadata.
        window_logits: ``[N, K]`` as the network gave them.
    """
    logits, _ = fuse_logits(window_logits, bundle.spec)
    raw = np.asarray(window_logits, dtype=np.float32)
    each = np.concatenate([-raw, raw], axis=1) if raw.shape[1] == 1 else raw
    divisor = bundle.spec.temperature if bundle.spec.fusion == "probability" else 1.0
    return Prediction(
        labels=bundle.spec.labels,
        logits=logits,
        probabilities=activate(logits, bundle.spec),
        index=int(np.argmax(logits)),
        model=f"{bundle.name} {bundle.version}",
        model_sha256=bundle.sha256,
        window_logits=each,
        window_probabilities=np.stack([activate(row / divisor, bundle.spec) for row in each]),
        reject=bundle.spec.reject,
    )


def predict(
    bundle: Bundle,
    network: nn.Module,
    prepared: Prepared,
    *,
    batch_size: int = 4,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
) -> Prediction:
    """Classify one prepared study without gradients.

    Args:
        bundle: model and its metadata.
        network: the bundle's network on `device`, in eval mode.
        prepared: network input.
        batch_size: windows per forward.
        device: torch device.
        autocast: lower precision of the forward pass; logits are float32.

    Raises:
        MismatchError: the prepared grid does not fit the windows.
        BundleError: the number of logits does not fit the labels, or they are not finite.
    """
    import torch

    windows = plan_windows(prepared.pixels.shape[1:], bundle.spec.preparation)
    rows = []
    with torch.inference_mode(), torch.autocast(torch.device(device).type, autocast, enabled=autocast is not None):
        for start in range(0, len(windows), batch_size):
            chosen = range(start, min(start + batch_size, len(windows)))
            batch = torch.from_numpy(windows.extract(prepared.pixels, chosen)).to(device)
            rows.append(network(batch).float().cpu().numpy())
    logits = np.concatenate(rows)
    if not np.isfinite(logits).all():
        msg = f"{bundle.name} produced NaN or infinite logits for this study"
        raise BundleError(msg)
    return make_prediction(bundle, logits)
