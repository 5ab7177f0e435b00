"""Many versions of one image that differ from it in a region: only what the region reaches is computed again.

Behind a convolution a local change is still local, a few positions wider. Between two waists of the network
(tensors everything behind depends on alone) a crop around the change is run and put into what the unchanged image
gives there; where the change has spread over most of the tensor, the whole of it is run to the end. The results
are those of the whole network up to rounding: crops end where the image ends or far enough outside the region
that their borders are not seen. The first result of every kind is compared with the whole network's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medxai.predict.arithmetic import Arithmetic
from medxai.predict.openvino_engine import TOLERANCE, build, cut, fix
from medxai.predict.reach import Reach, Waist, between, waists

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]
#: ``[N, axes, 2]`` first and last position of every region, included.
Boxes = NDArray[np.int64]
Places = NDArray[np.int64]
#: By the names of tensors, what one image gives there.
Known = dict[str, Array]

#: Less is saved than what is lost by running in pieces.
_LEAST_SAVED = 0.1
#: Multiplications that moving a value is worth.
_MOVE = 100.0
#: Share of all multiplications that a further step is worth.
_STEP = 0.03
#: Kinds of regions that are compiled; more of them are run through the whole network.
_KINDS = 4
#: Plans kept; and strides of a network that are told apart when it is planned for regions of one size.
_PLANS, _STRIDES = 64, 64


@dataclass(frozen=True)
class Step:
    """From one waist to the next on crops of one size.

    Attributes:
        source: waist the crops are cut from.
        target: waist they are put into; None for the end of the network, without crops.
        crop: size of the crops.
    """

    source: Waist
    target: Waist | None
    crop: tuple[int, ...]


class LocalChanges:
    """A network for images that differ from a given one in a region.

    Args:
        read: the network as a model of any batch size.
        shape: ``(C, *S)`` of the input.
        batch: samples run at once.
        arithmetic: precision of each layer.
    """

    def __init__(self, read: Callable[[], Any], shape: Sequence[int], batch: int, arithmetic: Arithmetic) -> None:
        self._read, self._shape, self._batch, self._arithmetic = read, tuple(shape), batch, arithmetic
        self._tolerance = TOLERANCE[arithmetic.precision]
        found, self._work = self._find()
        self._waists = useful(found, self._work)
        self._plans: dict[tuple[int, ...], list[Step]] = {}
        self._compiled: dict[Any, Callable[[Tensor], list[Tensor]]] = {}
        self._trusted: dict[tuple[Step, ...], bool] = {}
        self._lock = threading.Lock()

    def __call__(
        self, clean: Tensor, images: Tensor, whole: Callable[[Tensor], Tensor], known: Known | None = None
    ) -> Tensor | None:
        """Logits ``[N, K]``, or None where running the whole network is the better way.

        Args:
            clean: ``[C, *S]``.
            images: ``[N, C, *S]`` float32.
            whole: the whole network, for comparison.
            known: what the network makes of `clean`, kept here from call to call; empty at first.
        """
        with self._lock:
            if len(self._plan(regions(clean, images[:1]))) < 2:  # the others will be alike
                return None
            values = images.numpy()
            return self._logits(clean, values, regions(clean, images), lambda: whole(images[:1]), known)

    def replaced(
        self,
        clean: Tensor,
        base: Tensor,
        boxes: Boxes,
        whole: Callable[[Tensor], Tensor],
        known: Known | None = None,
    ) -> Tensor | None:
        """As a call, for versions that show another image in a box; they need not be made.

        Args:
            clean: ``[C, *S]`` float32.
            base: ``[C, *S]`` float32, what the boxes show.
            boxes: ``[N, axes, 2]`` first and last position, included.
            whole: see above.
            known: see above.
        """

        def first() -> Tensor:
            image, where = clean.clone(), tuple(slice(low, high + 1) for low, high in boxes[0].tolist())
            image[(slice(None), *where)] = base[(slice(None), *where)]
            return whole(image[None])

        with self._lock:
            values = np.broadcast_to(base.numpy(), (len(boxes), *base.shape))
            return self._logits(clean, values, boxes, first, known)

    def _logits(
        self, clean: Tensor, values: Array, boxes: Boxes, first: Callable[[], Tensor], known: Known | None
    ) -> Tensor | None:
        """Logits of versions with `values` in their boxes, None as in a call; `first` runs the first one whole."""
        steps = self._plan(boxes)
        if len(steps) < 2 or not self._admit(tuple(steps)):
            return None
        known = {} if known is None else known
        if not known:
            self._values(clean, known)
        parts = []
        for start in range(0, len(boxes), self._batch):
            some = slice(start, start + self._batch)
            parts.append(self._run(steps, known, values[some], boxes[some]))
        logits = torch.from_numpy(np.concatenate(parts))
        if tuple(steps) not in self._trusted:
            self._compare(tuple(steps), logits[:1], first())
        return logits if self._trusted[tuple(steps)] else None

    def clean(self, image: Tensor, known: Known) -> Tensor:
        """Logits ``[1, K]`` of an image, in the pass that finds what its versions will need.

        Args:
            image: ``[C, *S]`` float32.
            known: takes what is kept.
        """
        with self._lock:
            return torch.from_numpy(self._values(image, known))

    def _find(self) -> tuple[list[Waist], float]:
        return waists(fix(self._read(), [1, *self._shape]))

    def _plan(self, boxes: Boxes) -> list[Step]:
        key = tuple((boxes[..., 1] - boxes[..., 0] + 1).max(0).tolist())
        if key not in self._plans:
            if len(self._plans) > _PLANS:
                self._plans.clear()
            self._plans[key] = plan_steps(self._waists, self._work, anywhere(key, self._shape[1:]))
        return self._plans[key]

    def _admit(self, steps: tuple[Step, ...]) -> bool:
        if steps in self._trusted:
            return self._trusted[steps]
        return len(self._trusted) < _KINDS

    def _compare(self, steps: tuple[Step, ...], logits: Tensor, expected: Tensor) -> None:
        difference = float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        self._trusted[steps] = difference <= self._tolerance
        if not self._trusted[steps]:
            logger.warning("local changes differ from the whole network by %.1e: it is run as a whole", difference)

    def _values(self, image: Tensor, known: Known) -> Array:
        """Run an image, keep what it gives at the waists, and return its logits."""
        names = [waist.name for waist in self._waists[1:]]

        def make(model: Any) -> Any:
            ends = [result.input_value(0).get_node().get_friendly_name() for result in model.get_results()]
            return cut(model, None, [*names, *ends], [1, *self._shape])

        values = [value.numpy() for value in self._model(("clean",), 1, make)(image[None])]
        known[self._waists[0].name] = image.numpy()
        known |= {name: value[0] for name, value in zip(names, values, strict=False)}
        return values[-1]

    def _run(self, steps: list[Step], known: dict[str, Array], images: Array, boxes: Boxes) -> Array:
        """Logits of at most one batch."""
        count = len(images)
        # Changed values at the waist, and where they lie in it: at first those of the images themselves.
        values, changed = images, boxes
        nowhere: Places = np.zeros(boxes.shape[:2], np.int64)
        origin = nowhere
        for step in steps:
            starts = nowhere if step.target is None else crops(step.source, step.target, changed, step.crop)[0]
            base = known[step.source.name]
            given = np.empty((self._batch, len(base), *step.crop), np.float32)
            given[count:] = 0
            for i in range(count):
                given[i] = base[(slice(None), *_slices(starts[i], step.crop))]
                self._put(given[i], starts[i], values[i], origin[i], changed[i])
            out = self._step(step)(torch.from_numpy(given))[0].numpy()
            if step.target is None:
                return out[:count]
            reach = between(step.source, step.target)
            changed = spread(changed, reach, step.target.shape[1:])
            origin = starts // np.array([span.stride for span in reach], np.int64)
            values = out
        raise AssertionError("the last step has no target")

    @staticmethod
    def _put(given: Array, start: Places, values: Array, origin: Places, changed: Places) -> None:
        """Copy the changed positions of `values` into a crop."""
        into, taken = [slice(None)], [slice(None)]
        for axis, (first, last) in enumerate(changed):
            low = max(int(first), int(start[axis]))
            high = min(int(last) + 1, int(start[axis]) + given.shape[axis + 1])
            if high <= low:  # a stride may skip all of it
                return
            into.append(slice(low - int(start[axis]), high - int(start[axis])))
            taken.append(slice(low - int(origin[axis]), high - int(origin[axis])))
        given[tuple(into)] = values[tuple(taken)]

    def _step(self, step: Step) -> Callable[[Tensor], list[Tensor]]:
        source = None if step.source is self._waists[0] else step.source.name
        outputs = None if step.target is None else (step.target.name,)
        shape = [self._batch, step.source.shape[0], *step.crop]
        return self._model((source, outputs, step.crop), self._batch, lambda model: cut(model, source, outputs, shape))

    def _model(self, key: Any, batch: int, make: Callable[[Any], Any]) -> Callable[[Tensor], list[Tensor]]:
        key = (*key, torch.get_num_threads())
        if key not in self._compiled:
            model = make(fix(self._read(), [batch, *self._shape]))
            self._compiled[key] = build(model, self._arithmetic, key[-1])
        return self._compiled[key]


def regions(clean: Tensor, images: Tensor) -> Boxes:
    """First and last position ``[N, axes, 2]`` that differs; position 0 alone where nothing does."""
    # NumPy, since PyTorch's threads go on spinning for a while and would hold up the network.
    differs = (images.numpy() != clean.numpy()).any(1)
    boxes = np.zeros((len(images), differs.ndim - 1, 2), np.int64)
    for axis in range(boxes.shape[1]):
        line = differs.reshape(*differs.shape[:2], -1).any(2)
        found = line.any(1)
        boxes[:, axis, 0] = np.where(found, line.argmax(1), 0)
        boxes[:, axis, 1] = np.where(found, line.shape[1] - 1 - line[:, ::-1].argmax(1), 0)
        differs = differs.any(1)
    return boxes


def anywhere(size: Sequence[int], whole: Sequence[int]) -> Boxes:
    """Regions of one size at the left border, at the right one, and at all distances from a multiple of the strides.

    What is planned for them serves every region of that size: one compiled kind, wherever a window lies.
    """
    boxes = np.zeros((_STRIDES + 1, len(size), 2), np.int64)
    for axis, (length, full) in enumerate(zip(size, whole, strict=True)):
        boxes[:-1, axis, 0] = np.minimum(np.arange(_STRIDES), full - length)
        boxes[-1, axis, 0] = full - length
        boxes[:, axis, 1] = boxes[:, axis, 0] + length - 1
    return boxes


def spread(boxes: Boxes, reach: Reach, size: Sequence[int]) -> Boxes:
    """Regions one waist further, clipped to its `size`."""
    result = np.empty_like(boxes)
    for axis, span in enumerate(reach):
        first, last = span.changed(boxes[:, axis, 0], boxes[:, axis, 1])  # type: ignore[arg-type]
        result[:, axis, 0] = np.clip(first, 0, size[axis] - 1)
        result[:, axis, 1] = np.clip(last, result[:, axis, 0], size[axis] - 1)
    return result


def crops(source: Waist, target: Waist, changed: Boxes, size: Sequence[int] | None) -> tuple[Boxes, tuple[int, ...]]:
    """First positions ``[N, axes]`` of crops of `source` around changed regions, and the size of the crops.

    Starts are multiples of the stride, so that crops see the same positions as the whole tensor. A crop that does
    not reach a border is longer than its region by what the borders of the crop disturb.

    Args:
        source: the crops are cut from it.
        target: they are put into it.
        changed: regions at the source.
        size: of the crops; None for the least that serves all regions.
    """
    reach = between(source, target)
    after = spread(changed, reach, target.shape[1:])
    starts, lengths = np.zeros(changed.shape[:2], np.int64), []
    for axis, span in enumerate(reach):
        whole = source.shape[axis + 1]
        first, last = span.needed(after[:, axis, 0], after[:, axis, 1])  # type: ignore[arg-type]
        first, end = np.maximum(first, 0) // span.stride * span.stride, np.minimum(np.asarray(last) + 1, whole)
        length = int((end - first).max()) if size is None else size[axis]
        length = min(whole, length + (whole - length) % span.stride)
        starts[:, axis] = np.minimum(first, whole - length)
        lengths.append(length)
    return starts, tuple(lengths)


def useful(found: Sequence[Waist], work: float) -> list[Waist]:
    """The waists that serve regions of a half, a quarter or an eighth of the axes, the input first.

    Which they are depends on the network alone, so that one pass of an image finds all that its versions may need.

    Args:
        found: waists from the input on.
        work: multiplications of the whole network.
    """
    names = {found[0].name}
    for share in (2, 4, 8):
        box = [[(size - size // share) // 2, (size + size // share) // 2 - 1] for size in found[0].shape[1:]]
        if all(first <= last for first, last in box):
            names |= {step.source.name for step in plan_steps(found, work, np.array([box], np.int64))}
    return [waist for waist in found if waist.name in names]


def plan_steps(found: Sequence[Waist], work: float, boxes: Boxes) -> list[Step]:
    """The cheapest way through the waists; a single step where nothing worth it is saved.

    Args:
        found: waists from the input on.
        work: multiplications of the whole network.
        boxes: regions in the image.
    """
    at = [spread(boxes, waist.reach, waist.shape[1:]) for waist in found]
    sizes = [(at[i][..., 1] - at[i][..., 0] + 1).max(0) / np.array(found[i].shape[1:]) for i in range(len(found))]
    local = [i for i in range(len(found)) if prod(sizes[i]) < 0.9]
    best: dict[int, tuple[float, list[Step]]] = {0: (0.0, [])}
    for end in local:
        for start in local:
            if start >= end or start not in best:
                continue
            source, target = found[start], found[end]
            _, size = crops(source, target, at[start], None)
            share = prod(size) / prod(source.shape[1:])
            moved = _MOVE * (share * prod(source.shape) if start else 0) + _STEP * work
            cost = best[start][0] + share * (target.work - source.work) + moved
            if end not in best or cost < best[end][0]:
                best[end] = (cost, [*best[start][1], Step(source, target, size)])

    def total(i: int) -> float:
        return best[i][0] + work - found[i].work + (_MOVE * prod(found[i].shape) if i else 0)

    last = min(best, key=total)
    if total(last) > (1 - _LEAST_SAVED) * work:
        last = 0
    return [*best[last][1], Step(found[last], None, found[last].shape[1:])]


def _slices(start: Boxes, size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(int(first), int(first) + length) for first, length in zip(start, size, strict=True))
