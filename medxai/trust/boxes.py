"""Bounding boxes and lesions: MaxBoxAccV2 and the free-response curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medxai.trust.localisation import TAUS, Maps, Masks, why_not
from medxai.trust.scores import Scores, scored

Boxes = npt.NDArray[np.int64]


def boxes_of(region: Masks) -> Boxes:
    """Bounding boxes ``[n, axes, 2]`` (first, end) of the connected components (faces touch) of ``region [*S]``."""
    labels, _ = ndimage.label(region)
    found = ndimage.find_objects(labels)
    return np.array([[[s.start, s.stop] for s in box] for box in found], np.int64).reshape(-1, region.ndim, 2)


def box_iou(a: Boxes, b: Boxes) -> npt.NDArray[np.float64]:
    """Intersection over union ``[n, m]`` of boxes ``[n, axes, 2]`` and ``[m, axes, 2]``."""
    first = np.maximum(a[:, None, :, 0], b[None, :, :, 0])
    end = np.minimum(a[:, None, :, 1], b[None, :, :, 1])
    common = np.clip(end - first, 0, None).prod(-1).astype(np.float64)
    one, other = ((x[..., 1] - x[..., 0]).prod(-1) for x in (a, b))
    overlap: npt.NDArray[np.float64] = common / (one[:, None] + other[None] - common)
    return overlap


@dataclass(frozen=True, eq=False)
class BoxAccuracy:
    """MaxBoxAccV2 (Choe et al. 2022).

    Attributes:
        value: mean over the IoU limits of the share of hits at each limit's best threshold.
        by_limit: share of hits at the best threshold, by IoU limit.
        hits: for each sample the mean over the limits, at those thresholds.
    """

    value: float
    by_limit: dict[float, float]
    hits: Scores


def max_box_accuracy(
    maps: Maps, masks: Masks, limits: Sequence[float] | None = None, taus: Sequence[float] = TAUS
) -> BoxAccuracy:
    """Does a box around a component of the map fit one around a lesion, at one threshold for all samples?

    The threshold is the best one for these very samples, as the measure is defined: optimistic.

    Args:
        maps: ``[B, *S]``.
        masks: ``[B, *S]`` bool.
        limits: IoU that counts as a hit; None for 0.3, 0.5 and 0.7, and for 0.1, 0.3 and 0.5 in a volume.
        taus: thresholds on the map over its maximum.
    """
    volume = sum(s > 1 for s in maps.shape[1:]) > 2
    wanted = tuple(limits or ((0.1, 0.3, 0.5) if volume else (0.3, 0.5, 0.7)))
    reasons = why_not(maps, masks)
    best = np.full((len(maps), len(taus)), np.nan)
    for i, reason in enumerate(reasons):
        if reason:
            continue
        truth = boxes_of(np.asarray(masks[i], bool))
        scaled = np.maximum(maps[i], 0) / maps[i].max()
        for j, tau in enumerate(taus):
            best[i, j] = box_iou(boxes_of(scaled >= tau if tau > 0 else scaled > 0), truth).max(initial=0.0)
    kept = ~np.isnan(best).any(1)
    if not kept.any():
        return BoxAccuracy(float("nan"), dict.fromkeys(wanted, float("nan")), scored("max_box", best[:, 0], reasons))
    by_limit, hits = {}, np.zeros(len(maps))
    for limit in wanted:
        share = (best[kept] >= limit).mean(0)
        at = int(share.argmax())
        by_limit[limit] = float(share[at])
        hits += np.nan_to_num(best[:, at] >= limit) / len(wanted)
    return BoxAccuracy(float(np.mean(list(by_limit.values()))), by_limit, scored("max_box", hits, reasons))


@dataclass(frozen=True, eq=False)
class FreeResponse:
    """Free-response curve: lesions found against false findings.

    Attributes:
        taus: thresholds.
        sensitivity: ``[taus]`` share of all lesions a finding touches.
        false_positives: ``[taus]`` findings that touch no lesion, per image.
        images: how many counted, those without a lesion among them.
        lesions: how many there are.
        skipped: images left out because their map holds NaN or infinite values.
    """

    taus: tuple[float, ...]
    sensitivity: npt.NDArray[np.float64]
    false_positives: npt.NDArray[np.float64]
    images: int
    lesions: int
    skipped: int = 0

    def at(self, false_positives: float) -> float:
        """Best sensitivity with at most so many false findings per image; NaN when no threshold has so few."""
        good = self.false_positives <= false_positives
        return float(self.sensitivity[good].max()) if good.any() else float("nan")


def free_response(maps: Maps, masks: Masks, taus: Sequence[float] = TAUS, smallest: int = 1) -> FreeResponse:
    """Components of ``map >= tau * max`` against lesions (components of the mask; faces, edges and corners touch).

    Images without a lesion count for false findings; maps without evidence find nothing.

    Args:
        maps: ``[B, *S]``.
        masks: ``[B, *S]`` bool.
        taus: thresholds.
        smallest: voxels a finding needs.

    Raises:
        ValueError: the shapes differ.
    """
    if maps.shape != masks.shape:
        msg = f"maps {list(maps.shape)} and masks {list(masks.shape)} lie on different grids"
        raise ValueError(msg)
    good = [bool(np.isfinite(values).all()) for values in maps]
    maps, masks = maps[good], masks[good]
    touch = np.ones((3,) * (maps.ndim - 1))
    found, false = np.zeros(len(taus)), np.zeros(len(taus))
    lesions = 0
    for values, inside in zip(maps, masks, strict=True):
        truth, count = ndimage.label(inside, touch)
        lesions += count
        top = float(values.max())
        if top <= 0:
            continue
        scaled = np.maximum(values, 0) / top
        for j, tau in enumerate(taus):
            region = scaled >= tau if tau > 0 else scaled > 0
            parts, number = ndimage.label(region, touch)
            large = np.flatnonzero(np.bincount(parts.ravel(), minlength=number + 1)[1:] >= smallest) + 1
            kept = np.isin(parts, large)
            found[j] += len(np.setdiff1d(np.unique(truth[kept]), [0]))
            touching = np.setdiff1d(np.unique(parts[kept & (truth > 0)]), [0])
            false[j] += len(large) - len(touching)
    share = found / lesions if lesions else np.full(len(taus), np.nan)
    return FreeResponse(tuple(taus), share, false / max(len(maps), 1), len(maps), lesions, good.count(False))
