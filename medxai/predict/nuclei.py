"""Nuclei of a field of stained tissue as objects, with what speaks for each (DoNuSeg, sections 6 and 9).

A field larger than the network's tile is looked at in overlapping tiles whose answers are blended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from medxai.errors import MismatchError
from medxai.networks.nuclei_unet import STRIDES, NucleiUNet
from medxai.predict.nuclei_blocks import THRESHOLD, agreement, best_block, discs
from medxai.predict.nuclei_bundle import load_nuclei
from medxai.predict.nuclei_evidence import block_cams, nearest_point, scaled_by_cell
from medxai.predict.nuclei_objects import detection_seeds, distance_map, doubts, separate
from medxai.predict.windows import plan_windows
from medxai.prepare.spec import PreparationSpec, WindowIntensity

__all__ = ["NucleiField", "load_nuclei", "segment_field"]

#: Micrometres per pixel that differ by more than this share are resampled.
SAME_SCALE = 0.1


@dataclass(frozen=True, eq=False)
class NucleiField:
    """Nuclei of one field; maps lie on its pixels, axes run down and to the right.

    Attributes:
        labels: ``[H, W]`` instances 1..n, 0 background.
        seeds: ``[n, 2]`` row and column of the detection peak of each instance; NaN where unseeded.
        probability: ``[H, W]`` of foreground.
        detection: ``[H, W]`` 0..1; without a trained detection branch the depth in the foreground.
        evidence: ``[H, W]`` LayerCAM of the chosen block, 0..1 about every seed (`scaled_by_cell`).
        block: 1..4, whose map agrees best with discs about the seeds.
        agreement: of that block, 0..1.
        flags: per instance: ``""`` or words of ``unseeded``, ``uncertain`` (evidence and mask disagree), ``merged?``,
            ``split?``.
    """

    labels: npt.NDArray[np.int32]
    seeds: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float32]
    detection: npt.NDArray[np.float32]
    evidence: npt.NDArray[np.float32]
    block: int
    agreement: float
    flags: tuple[str, ...]


def segment_field(network: NucleiUNet, pixels: npt.NDArray[np.float32], *, mpp: float | None = None) -> NucleiField:
    """Segment and explain a field.

    Args:
        network: used in eval mode and left as it was.
        pixels: ``[3, H, W]`` RGB in 0..1.
        mpp: micrometres per pixel; a field of another scale than the network's is resampled and its result put back.
            None takes it for the network's scale.

    Raises:
        MismatchError: not of this shape or range, or `mpp` is no positive number.
        MedxaiError: scikit-image is not installed.
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        msg = f"a field has the shape [3, H, W], not {list(pixels.shape)}"
        raise MismatchError(msg)
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        raise MismatchError("colours of a field lie between 0 and 1; divide stored values by 255")
    if mpp is not None and not mpp > 0:
        msg = f"micrometres per pixel are {mpp}; they must be positive"
        raise MismatchError(msg)
    x = torch.from_numpy(np.ascontiguousarray(pixels, np.float32))
    if mpp is None or abs(mpp / network.mpp - 1) <= SAME_SCALE:
        return _segmented(network, x)
    height, width = pixels.shape[1:]
    size = [max(1, round(n * mpp / network.mpp)) for n in (height, width)]
    scaled = functional.interpolate(x[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    return _put_back(_segmented(network, scaled.clamp(0, 1)), (height, width))


def _segmented(network: NucleiUNet, x: Tensor) -> NucleiField:
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            seen = _tiled(network, x, lambda tile, _box: _answers(network, tile), 2)
        probability, detection = (part.numpy() for part in seen)
        foreground = probability > 0.5
        depth = distance_map(foreground, network.radius).astype(np.float32)
        if not network.detects:
            detection = depth
        # Detection tells touching nuclei apart, depth holds one together in which detection has two peaks.
        heights = (detection + depth) / 2
        peaks = detection_seeds(heights, foreground, network.radius)
        labels, seeds = separate(foreground, peaks, heights, network.radius)
        cams = _tiled(network, x, lambda tile, box: block_cams(network, tile, peaks - np.array(box)), len(STRIDES))
    finally:
        network.train(training)
    maps = scaled_by_cell(cams.numpy(), nearest_point(foreground.shape, peaks))
    known = discs(foreground.shape, peaks, network.radius).astype(np.int8)
    alpha = agreement(maps > THRESHOLD, known)
    chosen = best_block(alpha)
    flags = doubts(labels, seeds, maps[chosen] > THRESHOLD)
    return NucleiField(labels, seeds, probability, detection, maps[chosen], chosen + 1, float(alpha[chosen]), flags)


def _answers(network: NucleiUNet, tile: Tensor) -> Tensor:
    out = network.outputs(tile[None])
    return torch.stack([out.segmentation.softmax(1)[0, 1], out.detection[0]])


def _tiled(network: NucleiUNet, x: Tensor, ask: Callable[[Tensor, tuple[int, int]], Tensor], channels: int) -> Tensor:
    """Answers ``[channels, H, W]`` for ``x [3, H, W]``, mirrored beyond its borders where a tile needs more."""
    height, width = x.shape[1:]
    step = STRIDES[-1]
    padded = _mirrored(x, [-(-n // step) * step for n in (height, width)])
    size = tuple(min(n, network.tile) for n in padded.shape[1:])
    spec = PreparationSpec(
        axes="HW", window=size, channels=3, intensity=WindowIntensity(low=0.0, high=1.0), overlap=0.25
    )
    windows = plan_windows(padded.shape[1:], spec)
    weights = torch.from_numpy(windows.importance)
    total, share = torch.zeros(channels, *padded.shape[1:]), torch.zeros(padded.shape[1:])
    for top, left in windows.offsets.tolist():
        box = (slice(top, top + size[0]), slice(left, left + size[1]))
        total[:, box[0], box[1]] += ask(padded[:, box[0], box[1]], (top, left)) * weights
        share[box] += weights
    return (total / share)[:, :height, :width]


def _mirrored(x: Tensor, size: list[int]) -> Tensor:
    """``[C, H, W]`` continued to `size` by its mirror image, again and again for very small ones."""
    rows, columns = (_bounce(n, wanted) for n, wanted in zip(x.shape[1:], size, strict=True))
    return x[:, rows][:, :, columns]


def _bounce(length: int, wanted: int) -> Tensor:
    at = torch.arange(wanted) % max(1, 2 * length - 2)
    return torch.where(at < length, at, 2 * length - 2 - at)


def _put_back(found: NucleiField, size: tuple[int, int]) -> NucleiField:
    """The same on pixels of another size, of the same field."""
    maps = torch.from_numpy(np.stack([found.probability, found.detection, found.evidence]))[None]
    large = functional.interpolate(maps, size, mode="bilinear", align_corners=False)[0].numpy()
    labels = torch.from_numpy(found.labels)[None, None].double()
    ratio = np.array(size) / np.array(found.labels.shape)
    return NucleiField(
        labels=functional.interpolate(labels, size, mode="nearest-exact")[0, 0].numpy().astype(np.int32),
        seeds=(found.seeds + 0.5) * ratio - 0.5,
        probability=large[0],
        detection=large[1],
        evidence=large[2],
        block=found.block,
        agreement=found.agreement,
        flags=found.flags,
    )
