"""Where maps of the searched networks lie against synthetic truth, by layer and by strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medxai.explain.engine import explain
from medxai.learn.chest_ct.synthetic import Slabs
from medxai.trust.boxes import free_response
from medxai.trust.localisation import TAUS, best_tau, dice_at, mass_lift

#: Method and layer of what is compared: the exact map of the last features, and two finer stages.
VIEWS = (
    ("cam", "exact", "tail.relu"),
    ("gradcam", "stage 3", "stages.1"),
    ("layercam", "stage 3", "stages.1"),
    ("gradcam", "stage 2", "stages.0"),
    ("layercam", "stage 2", "stages.0"),
)
#: False positives a case at which the sensitivity of FROC is read.
FALSE_POSITIVES = 1.0


@dataclass(frozen=True, eq=False)
class Found:
    """Maps of one view, measured.

    Attributes:
        view: method and layer.
        cells: cells of a map ``(d, h, w)``.
        cell_mm: their size.
        dice: per case, at the threshold that is best on the other half of the cases.
        lift: per case, share of evidence in the finding over the finding's share of the volume.
        slice_mm: per case, from the slice with the most evidence to the nearest slice of the finding's main part.
        centre_mm: per case, from that slice to the slice with most of the finding.
        sensitivity: share of findings that are hit at `FALSE_POSITIVES` false positives a case.
        n: cases.
    """

    view: str
    cells: tuple[int, ...]
    cell_mm: tuple[float, ...]
    dice: npt.NDArray[np.float64]
    lift: npt.NDArray[np.float64]
    slice_mm: npt.NDArray[np.float64]
    centre_mm: npt.NDArray[np.float64]
    sensitivity: float
    n: int


def measure(network: nn.Module, cases: Slabs, spacing_mm: Sequence[float], chosen: Sequence[int]) -> list[Found]:
    """Explain the true class of the chosen cases in every view and measure the maps.

    Args:
        network: a trained CovidNet3d.
        cases: with truth.
        spacing_mm: of the voxels.
        chosen: cases with a finding.
    """
    sample, generator = cases.sampler(changed=False), torch.Generator()
    masks = np.stack([cases.truth[i] == cases.labels[i] for i in chosen])
    found = []
    for method, title, layer in VIEWS:
        maps: list[npt.NDArray[np.float32]] = []
        cells: tuple[int, ...] = ()
        for start in range(0, len(chosen), 8):
            part = list(chosen[start : start + 8])
            classes = torch.from_numpy(cases.labels[part])
            result = explain(network, sample(part, generator), methods=method, classes=classes, layers=layer)[0]
            cells = tuple(result.raw.shape[1:])
            maps.append(result.map.clamp_min(0).numpy())
        found.append(_measured(f"{method}, {title}", np.concatenate(maps), masks, cells, spacing_mm))
    return found


def _measured(
    view: str,
    maps: npt.NDArray[np.float32],
    masks: npt.NDArray[np.bool_],
    cells: tuple[int, ...],
    spacing_mm: Sequence[float],
) -> Found:
    n = len(maps)
    even, odd = np.arange(n) % 2 == 0, np.arange(n) % 2 == 1
    table = dice_at(maps, masks)
    dice = np.empty(n)
    for mine, other in ((even, odd), (odd, even)):
        known = np.isfinite(table[other]).any()  # a map without evidence has no threshold
        dice[mine] = table[mine, TAUS.index(best_tau(maps[other], masks[other]))] if known else np.nan
    along = np.maximum(maps, 0).sum(axis=(2, 3))
    truth = masks.sum(axis=(2, 3))
    peak, middle = along.argmax(1), truth.argmax(1)
    main = truth >= 0.5 * truth.max(1, keepdims=True)
    away = [np.abs(np.flatnonzero(m) - p).min() for m, p in zip(main, peak, strict=True)]
    return Found(
        view,
        cells,
        tuple(s * v / c for s, v, c in zip(maps.shape[1:], spacing_mm, cells, strict=True)),
        dice,
        mass_lift(maps, masks).values,
        np.array(away) * spacing_mm[0],
        np.abs(peak - middle) * spacing_mm[0],
        free_response(maps, masks, smallest=4).at(FALSE_POSITIVES),
        n,
    )
