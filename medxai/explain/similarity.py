"""Targets that compare an output with the clean one: a detected box, a segmented lesion (D-RISE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medxai.errors import ExplainError
from medxai.explain.target import Target, check_request, decided

_BOXES = ("boxes", "box")
_LABELS = ("labels", "label")
_SCORES = ("scores", "labels_scores", "label_scores")


def pack_detections(classes: int, limit: int = 100) -> Callable[[Sequence[Mapping[str, Tensor]]], Tensor]:
    """Make the ``output`` argument of `explain` for detectors that return a mapping for each image.

    Args:
        classes: labels lie in ``0 .. classes - 1``.
        limit: most detections per image that are kept, by score.

    Returns:
        a function from mappings with ``boxes [n, 2 dims]`` (lower corner, then upper), ``labels [n]`` and
        ``scores [n]`` (torchvision), or ``box``, ``label``, ``label_scores`` (MONAI), optionally
        ``class_probabilities [n, classes]``, to ``[N, limit, 2 dims + 1 + classes]``; unused places are zero.
    """

    def pack(detections: Sequence[Mapping[str, Tensor]]) -> Tensor:
        if not isinstance(detections, (list, tuple)) or not all(isinstance(d, Mapping) for d in detections):
            msg = f"a detector returns one mapping for each image; got {type(detections).__name__}"
            raise ExplainError(msg)
        boxes = [_find(found, _BOXES) for found in detections]
        width = max((b.shape[-1] for b in boxes if b.ndim == 2), default=4)
        packed = torch.zeros(len(boxes), limit, width + 1 + classes)
        for row, (found, box) in enumerate(zip(detections, boxes, strict=True)):
            scores = _find(found, _SCORES).float()
            order = scores.argsort(descending=True, stable=True)[:limit]
            kind = found.get("class_probabilities")
            if kind is None:
                kind = functional.one_hot(_find(found, _LABELS).long(), classes)
            values = torch.cat((box.float().view(len(scores), width), scores[:, None], kind.float()), 1)
            packed[row, : len(order)] = values[order]
        return packed

    return pack


@dataclass(frozen=True, eq=False)
class BoxTarget(Target):
    """Similarity to one detection for each sample, see `DetectedBox`.

    Attributes:
        found: ``[B, F]`` the detections, packed.
        dims: axes of the boxes.
    """

    found: Tensor | None = None
    dims: int = 2

    def __call__(self, output: Tensor, rows: Tensor | None = None) -> Tensor:
        """Score ``[N]`` of packed detections ``[N, limit, F]``."""
        assert self.found is not None  # noqa: S101
        wanted = (self.found if rows is None else self.found[rows]).to(output)[:, None]
        corners = 2 * self.dims
        overlap = box_iou(wanted[..., :corners], output[..., :corners])
        kind = functional.cosine_similarity(wanted[..., corners + 1 :], output[..., corners + 1 :], dim=-1)
        return (overlap * kind * output[..., corners]).amax(1)


@dataclass(frozen=True, eq=False)
class DetectedBox:
    """Request for a detector whose output went through `pack_detections`: similarity to a detection.

    ``max_j IoU(L, L_j) cos(P, P_j) O_j`` over the detections j of an image (D-RISE, Petsiuk et al. 2021), with
    box L, class probabilities P and score O.

    Attributes:
        dims: axes of the image.
        rank: which detection of the clean image, 0 for the one with the largest score.
        box: ``[2 dims]`` or ``[B, 2 dims]``: a box in its place, such as a radiologist's.
        label: class of that box.
    """

    dims: int
    rank: int = 0
    box: Tensor | None = None
    label: int = 0

    def __call__(self, output: Tensor) -> Tensor:
        """Score ``[B]`` of the output itself."""
        return self.bind(output)(output)

    def bind(self, output: Tensor) -> BoxTarget:
        """Fix the detections.

        Raises:
            ExplainError: the output is not packed, or an image has too few detections.
        """
        corners = 2 * self.dims
        if output.ndim != 3 or output.shape[2] < corners + 2:
            msg = (
                f"a detection target needs output=pack_detections(...) with {corners} corners; got {list(output.shape)}"
            )
            raise ExplainError(msg)
        if self.box is not None:
            found = output.new_zeros(len(output), output.shape[2])
            found[:, :corners] = self.box.to(output)
            found[:, corners] = 1
            found[:, corners + 1 + self.label] = 1
        else:
            if self.rank >= output.shape[1] or bool((output[:, self.rank, corners] <= 0).any()):
                msg = f"not every image has {self.rank + 1} detection(s); give a box"
                raise ExplainError(msg)
            found = output[:, self.rank]
        return BoxTarget(f"detection {self.rank}", found=found.detach().clone(), dims=self.dims)


@dataclass(frozen=True, eq=False)
class DiceTarget(Target):
    """Dice coefficient with a lesion for each sample, see `LesionDice`; `region` is the lesion.

    Attributes:
        box: ``[B, *S]`` bool, where the output is read.
    """

    box: Tensor | None = None

    def __call__(self, output: Tensor, rows: Tensor | None = None) -> Tensor:
        """Score ``[N]`` of outputs ``[N, K, *S]``."""
        assert self.box is not None  # noqa: S101
        assert self.region is not None  # noqa: S101
        assert self.classes is not None  # noqa: S101
        lesion, box, classes = (
            (value if rows is None else value[rows.to(value.device)]).to(output.device)
            for value in (self.region, self.box, self.classes)
        )
        found = (decided(output) == classes.view(-1, *[1] * (output.ndim - 2))) & box
        both = (found & (lesion > 0)).flatten(1).sum(1)
        size = found.flatten(1).sum(1) + (lesion > 0).flatten(1).sum(1)
        return 2 * both / size.clamp_min(1)


@dataclass(frozen=True, eq=False)
class LesionDice:
    """Request for a segmentation network: Dice coefficient with a lesion, within its box and a margin.

    Attributes:
        index: class of the lesion.
        mask: ``[B, *S]`` or ``[*S]``, the lesion; None for all that the clean output decides for the class.
        dilate: margin of the box as a share of its size along each axis.
    """

    index: int
    mask: Tensor | None = None
    dilate: float = 0.25

    def __call__(self, output: Tensor) -> Tensor:
        """Score ``[B]`` of the output itself."""
        return self.bind(output)(output)

    def bind(self, output: Tensor) -> DiceTarget:
        """Fix lesion and box.

        Raises:
            ExplainError: the output is not dense, the class does not exist or the mask does not fit.
        """
        if output.ndim < 3:
            msg = f"a lesion target needs an output [batch, classes, *spatial]; got {list(output.shape)}"
            raise ExplainError(msg)
        check_request(self.index, output.shape[1], len(output))
        return dice_target(output, torch.full((len(output),), self.index), self.mask, self.dilate)


def dice_target(output: Tensor, classes: Tensor, mask: Tensor | None, dilate: float) -> DiceTarget:
    """Target for lesions of given classes ``[B]``; see `LesionDice`.

    Raises:
        ExplainError: the mask does not fit the output.
    """
    classes = classes.to(output.device)
    lesion = decided(output) == classes.view(-1, *[1] * (output.ndim - 2))
    if mask is not None:
        if mask.shape not in (lesion.shape, lesion.shape[1:]):
            msg = f"the mask has shape {list(mask.shape)}; the output needs {list(lesion.shape)}"
            raise ExplainError(msg)
        lesion = (mask.to(output.device) != 0).expand(lesion.shape)
    box = torch.ones_like(lesion)
    for axis in range(1, lesion.ndim):
        line = lesion.movedim(axis, 1).flatten(2).any(-1) if lesion.ndim > 2 else lesion
        size = line.shape[1]
        place = torch.arange(size, device=line.device)
        low = torch.where(line, place, size).amin(1)
        high = torch.where(line, place, -1).amax(1)
        margin = ((high - low + 1).clamp_min(0) * dilate).ceil()
        inside = (place >= (low - margin)[:, None]) & (place <= (high + margin)[:, None])
        box = box & inside.view(-1, *[size if a == axis else 1 for a in range(1, lesion.ndim)])
    return DiceTarget("Dice with the lesion", classes, region=lesion.float(), box=box)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes ``[..., 2 dims]`` (lower corner, then upper); 0 for empty ones."""
    dims = a.shape[-1] // 2
    low = torch.maximum(a[..., :dims], b[..., :dims])
    high = torch.minimum(a[..., dims:], b[..., dims:])
    both = (high - low).clamp_min(0).prod(-1)
    each = [(v[..., dims:] - v[..., :dims]).clamp_min(0).prod(-1) for v in (a, b)]
    union = each[0] + each[1] - both
    return torch.where(union > 0, both / union.clamp_min(1e-12), 0)


def _find(found: Mapping[str, Any], names: Sequence[str]) -> Tensor:
    for name in names:
        if name in found:
            value: Tensor = found[name]
            return value
    msg = f"a detection has no {names[0]!r}; it has {', '.join(map(str, found))}"
    raise ExplainError(msg)
