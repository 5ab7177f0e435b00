"""How well objects agree with the truth: pixels, objects, and what was found at all.

Panoptic quality is MONAI's. The aggregated Jaccard index, the object Dice and the detection F1 are in no maintained
library and are written here from their papers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

Labels = npt.NDArray[np.int32]
Floats = npt.NDArray[np.floating[Any]]
NAMES = ("dice", "iou", "aji", "object_dice", "pq", "dq", "sq", "detection_f1")


def score_field(found: Labels, truth: Labels, points: Floats, centroids: Floats, radius: float) -> dict[str, float]:
    """All of `NAMES` for one field.

    Args:
        found: ``[H, W]`` objects from 1 on, 0 background.
        truth: likewise.
        points: ``[n, 2]`` where nuclei were found.
        centroids: ``[m, 2]`` where they are.
        radius: pixels within which a point counts as found.
    """
    a, b = found > 0, truth > 0
    both, either = int((a & b).sum()), int((a | b).sum())
    quality = panoptic(found, truth)
    return {
        "dice": 2 * both / (int(a.sum()) + int(b.sum())) if either else 1.0,
        "iou": both / either if either else 1.0,
        "aji": aggregated_jaccard(found, truth),
        "object_dice": object_dice(found, truth),
        **quality,
        "detection_f1": detection_f1(points, centroids, radius),
    }


def panoptic(found: Labels, truth: Labels) -> dict[str, float]:
    """Panoptic, detection and segmentation quality (Kirillov et al. 2019) by MONAI, which calls the second RQ."""
    import torch
    from monai.metrics.panoptic_quality import compute_panoptic_quality

    if not found.any() or not truth.any():
        same = float(not found.any() and not truth.any())
        return {"pq": same, "dq": same, "sq": same}
    pair = torch.from_numpy(found.astype(np.int64)), torch.from_numpy(truth.astype(np.int64))
    return {
        name: float(compute_panoptic_quality(*pair, metric_name=theirs, remap=True, smooth_numerator=1e-12))
        for name, theirs in (("pq", "pq"), ("dq", "rq"), ("sq", "sq"))
    }


def aggregated_jaccard(found: Labels, truth: Labels) -> float:
    """AJI (Kumar et al., IEEE TMI 2017, algorithm 1).

    Every true object takes the found one with the greatest Jaccard index; intersections are added over unions, to
    which the areas of all found objects that nobody took are added. 1 when both are empty.
    """
    overlap, areas, true_areas = _overlaps(found, truth)
    if not len(true_areas) or not len(areas):
        return float(len(areas) == len(true_areas))
    union = true_areas[:, None] + areas[None] - overlap
    best = (overlap / union).argmax(1)
    rows = np.arange(len(best))
    met = overlap[rows, best] > 0
    shared = overlap[rows, best][met].sum()
    total = union[rows, best][met].sum() + true_areas[~met].sum()
    unused = np.setdiff1d(np.arange(len(areas)), best[met])
    return float(shared / (total + areas[unused].sum()))


def object_dice(found: Labels, truth: Labels) -> float:
    """Object-level Dice (Sirinukunwattana et al., Medical Image Analysis 2017), weighted by area from both sides."""
    overlap, areas, true_areas = _overlaps(found, truth)
    if not len(true_areas) or not len(areas):
        return float(len(areas) == len(true_areas))
    dice = 2 * overlap / (true_areas[:, None] + areas[None])
    # The partner is the one that overlaps most; without overlap its Dice is 0 whichever is taken.
    theirs = dice[np.arange(len(true_areas)), overlap.argmax(1)]
    ours = dice[overlap.argmax(0), np.arange(len(areas))]
    return float((theirs * true_areas).sum() / true_areas.sum() + (ours * areas).sum() / areas.sum()) / 2


def detection_f1(points: Floats, centroids: Floats, radius: float) -> float:
    """F1 of one-to-one pairs no farther apart than `radius`; 1 when both are empty."""
    if not len(points) or not len(centroids):
        return float(len(points) == len(centroids))
    distance = cdist(points, centroids)
    rows, columns = linear_sum_assignment(np.where(distance <= radius, distance, 1e6))
    hits = int((distance[rows, columns] <= radius).sum())
    return 2 * hits / (len(points) + len(centroids))


def middles(labels: Labels, seeds: Floats) -> Floats:
    """Where objects were found ``[n, 2]``: their seeds, or their centroids without."""
    from scipy import ndimage

    numbers = np.arange(1, len(seeds) + 1)
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, numbers)).reshape(-1, 2)
    return np.where(np.isnan(seeds), centres, seeds)


def _overlaps(
    found: Labels, truth: Labels
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Shared pixels ``[m, n]`` of true and found objects, and the areas of the found and of the true ones."""
    _, a = np.unique(np.append(found.ravel(), 0), return_inverse=True)
    _, b = np.unique(np.append(truth.ravel(), 0), return_inverse=True)
    a, b = a[:-1], b[:-1]
    table = np.zeros((int(b.max()) + 1, int(a.max()) + 1), np.int64)
    np.add.at(table, (b, a), 1)
    return table[1:, 1:], table[:, 1:].sum(0), table[1:].sum(1)
