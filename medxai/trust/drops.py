"""The image seen through its map: average drop and increase, ADCC, ARCC, sufficiency and necessity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from medxai.trust.curves import unanswered, without_order
from medxai.trust.probe import Probe
from medxai.trust.scores import Scores, scored

#: ``images [B, C, *S]`` -> maps ``[B, *S]`` of the same question.
Explainer = Callable[[Tensor], Tensor]


def scaled(maps: Tensor) -> Tensor:
    """Maps ``[B, *S]`` without their negative part, from 0 to 1; an empty one stays zero."""
    positive = maps.clamp_min(0)
    top = positive.flatten(1).amax(1).view(-1, *[1] * (maps.ndim - 1))
    return torch.where(top > 0, positive / top.clamp_min(1e-30), 0)


def _through(probe: Probe, maps: Tensor) -> Tensor:
    """Scores ``[B]`` of the images of which only as much is left as the map says."""
    soft = scaled(maps.nan_to_num(0, 0, 0)).float()
    return probe.each(1, lambda rows, _which: soft[rows])[:, 0]


def _drop(probe: Probe, maps: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    after = _through(probe, maps)
    reasons = tuple(
        reason or ("the clean score is not positive" if score <= 0 else "")
        for reason, score in zip(unanswered(without_order(maps), after[:, None]), probe.clean.tolist(), strict=True)
    )
    return (probe.clean - after).clamp_min(0) / probe.clean.clamp_min(1e-30), reasons


def average_drop(probe: Probe, maps: Tensor) -> Scores:
    """Share of the score that is lost in ``b + (x - b) N(map)``; an all-ones map loses nothing.

    Args:
        probe: asked for probabilities; its operator gives ``b``.
        maps: ``[B, *S]``.
    """
    drop, reasons = _drop(probe, maps)
    return scored("average_drop", drop.numpy(), reasons, "lower")


def increase(probe: Probe, maps: Tensor) -> Scores:
    """1 where the score rises in the same image, else 0; arguments as in `average_drop`."""
    after = _through(probe, maps)
    reasons = unanswered(without_order(maps), after[:, None])
    return scored("increase", (after > probe.clean).double().numpy(), reasons)


def adcc(probe: Probe, maps: Tensor, explain: Explainer) -> Scores:
    """Harmonic mean of coherency, lack of complexity and lack of drop (Poppi et al. 2021).

    Args:
        probe: asked for probabilities; its operator must work on images.
        maps: ``[B, *S]``.
        explain: makes the map of the masked image.
    """
    drop, reasons = _drop(probe, maps)
    return _harmonic("adcc", probe, maps, explain, 1 - drop, reasons)


def arcc(probe: Probe, maps: Tensor, explain: Explainer, road: Scores) -> Scores:
    """ADCC with ROAD in place of the drop (2026).

    Args:
        probe: as in `adcc`.
        maps: ``[B, *S]``.
        explain: as in `adcc`.
        road: of the same maps.
    """
    term = torch.from_numpy(np.clip(2 * road.values, 0, 1))
    reasons = tuple(first or second for first, second in zip(without_order(maps), road.reasons, strict=True))
    return _harmonic("arcc", probe, maps, explain, term, reasons)


def _harmonic(
    name: str, probe: Probe, maps: Tensor, explain: Explainer, third: Tensor, reasons: Sequence[str]
) -> Scores:
    soft = scaled(maps.nan_to_num(0, 0, 0)).float()
    rows = torch.arange(len(soft))
    again = scaled(explain(probe.images(soft, rows)))
    coherency = (1 + _correlation(soft, again)) / 2
    simplicity = 1 - soft.flatten(1).double().mean(1)
    parts = torch.stack([coherency, simplicity, third])
    found = torch.where((parts > 0).all(0), 3 / (1 / parts.clamp_min(1e-30)).sum(0), 0)
    return scored(name, found.numpy(), reasons)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson ``[B]``; -1 where one side is constant, which makes the coherency zero."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 1e-20, (a * b).sum(1) / norm.clamp_min(1e-300), -1.0)


def sufficiency(probe: Probe, masks: Tensor) -> Scores:
    """Score with only the lesion kept, over the clean one.

    Args:
        probe: asked for probabilities.
        masks: ``[B, *S]`` bool, the lesion.

    Raises:
        ValueError: the masks lie on another grid than the images (`medxai.trust.truth` brings them there).
    """
    return _kept("sufficiency", probe, masks, masks.float())


def necessity(probe: Probe, masks: Tensor) -> Scores:
    """Share of the score that is lost when the lesion is removed; arguments as in `sufficiency`."""
    kept = _kept("necessity", probe, masks, 1 - masks.float())
    return Scores("necessity", 1 - kept.values, kept.reasons)


def _kept(name: str, probe: Probe, masks: Tensor, keep: Tensor) -> Scores:
    if tuple(masks.shape) != (len(probe), *probe.spatial):
        msg = f"masks {list(masks.shape)} and images {[len(probe), *probe.spatial]} lie on different grids"
        raise ValueError(msg)
    reasons = tuple(
        "the mask is empty" if not some else "the clean score is not positive" if score <= 0 else ""
        for some, score in zip(masks.flatten(1).any(1).tolist(), probe.clean.tolist(), strict=True)
    )
    after = probe.each(1, lambda rows, _which: keep[rows])
    return scored(name, (after[:, 0] / probe.clean.clamp_min(1e-30)).numpy(), unanswered(reasons, after))
