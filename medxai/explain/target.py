"""What is explained: a score per sample, read from the network's output.

A request (a class, ``top1``, a callable) is resolved once against the clean output; the resolved `Target` is
then a fixed question that may also be put to noisy, masked and cut-down versions of the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medxai.errors import ExplainError

#: What a caller may ask for: a class, one class per sample, ``top1`` .. ``topK``, or a function of the output
#: that returns one number per sample.
Request = int | str | Sequence[int] | Callable[[Tensor], Tensor] | Tensor


@dataclass(frozen=True, eq=False)
class Target:
    """A resolved question.

    Attributes:
        label: what the caller asked for, in words (``2``, ``top1``, name of the callable).
        classes: ``[B]`` explained class per sample; None for a callable.
        function: score of the output for callables.
        region: ``[B, *S]`` weights of the voxels of a dense output, summing to one per sample, or all zero
            when the class was not found.
    """

    label: str
    classes: Tensor | None = None
    function: Callable[[Tensor], Tensor] | None = None
    region: Tensor | None = None

    def __call__(self, output: Tensor, rows: Tensor | None = None) -> Tensor:
        """Score ``[N]`` of ``output [N, ...]``; `rows [N]` says of which sample each is a version."""
        if self.function is not None:
            score = self.function(output)
            if not isinstance(score, Tensor) or score.shape != output.shape[:1]:
                shape = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
                msg = f"target {self.label} returned {shape}; one number per sample is needed, [{len(output)}]"
                raise ExplainError(msg)
            return score
        assert self.classes is not None  # noqa: S101
        chosen = self.classes if rows is None else self.classes[rows.to(self.classes.device)]
        if self.region is not None:
            weights = self.region if rows is None else self.region[rows.to(self.region.device)]
            picked = _pick(output, chosen)
            return (picked * weights.to(picked)).flatten(1).sum(1)
        return _pick(output, chosen)

    def probability(self, output: Tensor, rows: Tensor | None = None) -> Tensor:
        """Probability ``[N]`` of the explained class of a classifier.

        Raises:
            ExplainError: the target is a callable or the output is dense.
        """
        if self.classes is None or self.region is not None:
            msg = f"target {self.label} has no class probability; use the score itself"
            raise ExplainError(msg)
        chosen = self.classes if rows is None else self.classes[rows.to(self.classes.device)]
        if output.shape[1] == 1:
            return _pick(output.float(), chosen).sigmoid()
        return _pick(output.float().softmax(1), chosen)


def _pick(output: Tensor, classes: Tensor) -> Tensor:
    """Channel `classes[b]` of sample b; a single channel ``z`` stands for two classes, ``-z`` and ``+z``."""
    if output.shape[1] == 1:
        sign = torch.where(classes == 1, 1.0, -1.0).to(output)
        return output[:, 0] * sign.view(-1, *[1] * (output.ndim - 2))
    return output[torch.arange(len(output), device=output.device), classes.to(output.device)]


def class_score(logits: Tensor, class_index: int) -> Tensor:
    """Per-sample score ``[B]`` of a class; a single logit ``z`` stands for two classes, ``-z`` and ``+z``.

    Raises:
        ExplainError: there is no such class.
    """
    return resolve(class_index, logits)(logits)


def decided(logits: Tensor) -> Tensor:
    """Decided class ``[B]``: the largest logit, or the sign of a single one."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def resolve(request: Request, output: Tensor) -> Target:
    """Fix a request against the clean output ``[B, K]`` of a classifier or ``[B, K, *S]`` of a dense network.

    For a dense output a class means the mean logit over the voxels decided for it (Seg-Grad-CAM).

    Raises:
        ExplainError: there is no such class, or the request is not understood.
    """
    output = output.detach()
    if callable(request) and not isinstance(request, Tensor):
        bind = getattr(request, "bind", None)
        if bind is not None:
            bound: Target = bind(output)
            return bound
        return Target(getattr(request, "__name__", type(request).__name__), function=request)
    check_request(request, output.shape[1] if output.ndim > 1 else 1, len(output))
    classes, label = _classes(request, output)
    target = Target(label, classes)
    return replace(target, region=_region(output, classes)) if output.ndim > 2 else target


def check_request(request: Request, channels: int, batch: int) -> None:
    """Reject what cannot be answered by a network with `channels` outputs.

    Raises:
        ExplainError: there is no such class or rank, or the request is not understood.
    """
    count = 2 if channels == 1 else channels
    if isinstance(request, str):
        rank = request.removeprefix("top")
        if not (request.startswith("top") and rank.isdigit() and 1 <= int(rank) <= count):
            msg = f"class {request!r} is not understood; use a number below {count} or top1 to top{count}"
            raise ExplainError(msg)
        return
    values = request.tolist() if isinstance(request, Tensor) else request
    several = isinstance(values, (list, tuple))
    for value in values if isinstance(values, (list, tuple)) else [values]:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            msg = f"there is no class {value}; the network has {count}"
            raise ExplainError(msg)
    if several and len(values) != batch:  # type: ignore[arg-type]
        msg = f"{len(values)} classes were given for a batch of {batch}: one for each sample is needed"  # type: ignore[arg-type]
        raise ExplainError(msg)


def _classes(request: Any, output: Tensor) -> tuple[Tensor, str]:
    batch = len(output)
    if isinstance(request, str):
        rank = int(request.removeprefix("top")) - 1
        pooled = output.float().flatten(2).mean(-1) if output.ndim > 2 else output.float()
        if pooled.shape[1] == 1:
            pooled = torch.cat((-pooled, pooled), 1)
        return pooled.argsort(dim=1, descending=True, stable=True)[:, rank], request
    if isinstance(request, int):
        return torch.full((batch,), request, device=output.device), str(request)
    values = torch.as_tensor(request, device=output.device).long()
    return values, ",".join(str(v) for v in values.tolist())


def _region(output: Tensor, classes: Tensor) -> Tensor:
    decision = (output[:, 0] > 0).long() if output.shape[1] == 1 else output.argmax(1)
    mask = (decision == classes.view(-1, *[1] * (decision.ndim - 1))).float()
    size = mask.flatten(1).sum(1).clamp_min(1).view(-1, *[1] * (mask.ndim - 1))
    return mask / size


@dataclass(frozen=True, eq=False)
class Segment:
    """Request for a dense output: a class over a given region (Seg-Grad-CAM, Vinogradova et al. 2020).

    Attributes:
        index: the class.
        mask: ``[B, *S]`` or ``[*S]``, non-zero where the score is read: a voxel, a lesion; None for the voxels
            decided for the class.
        reduction: ``mean`` makes lesions of different size comparable; ``sum`` is the published form.
    """

    index: int
    mask: Tensor | None = None
    reduction: str = "mean"

    def __call__(self, output: Tensor) -> Tensor:
        """Score ``[B]`` of the output itself."""
        return self.bind(output)(output)

    def bind(self, output: Tensor) -> Target:
        """Fix the region.

        Raises:
            ExplainError: the output is not dense, the class does not exist or the mask does not fit.
        """
        if output.ndim < 3:
            msg = f"a segmentation target needs an output [batch, classes, *spatial]; got {list(output.shape)}"
            raise ExplainError(msg)
        check_request(self.index, output.shape[1], len(output))
        classes = torch.full((len(output),), self.index, device=output.device)
        region = _region(output.detach(), classes)
        if self.mask is not None:
            mask = (self.mask.to(output.device) != 0).float()
            if mask.shape not in (region.shape, region.shape[1:]):
                msg = f"the mask has shape {list(mask.shape)}; the output needs {list(region.shape)}"
                raise ExplainError(msg)
            region = mask.expand(region.shape) / mask.expand(region.shape).flatten(1).sum(1).clamp_min(1).view(
                -1, *[1] * (region.ndim - 1)
            )
        if self.reduction == "sum":
            region = (region > 0).float()
        return Target(f"{self.index} in region", classes, region=region)


@dataclass(frozen=True, eq=False)
class Similarity:
    """Request for an embedding ``[B, E]``: cosine with a query ``[E]``, for example another image's embedding."""

    query: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        """Cosine ``[B]``."""
        return functional.cosine_similarity(output, self.query.to(output).view(1, -1), dim=1)


def select_output(output: Any, key: int | str | Callable[[Any], Tensor] | None) -> Tensor:
    """Tensor with the scores out of what a network returns.

    Args:
        output: tensor, tuple, list or mapping.
        key: place in it, or a function; None takes a tensor as it is, the first tensor of a tuple, and the
            only tensor (or the one called ``logits``) of a mapping.

    Raises:
        ExplainError: nothing fits; the message says what the network returned.
    """
    if callable(key):
        chosen: Any = key(output)
    elif key is not None:
        try:
            chosen = output[key]
        except (KeyError, IndexError, TypeError) as error:
            msg = f"the network's output ({describe(output)}) has no item {key!r}"
            raise ExplainError(msg) from error
    elif isinstance(output, Mapping):
        tensors = {k: v for k, v in output.items() if isinstance(v, Tensor)}
        named = [k for k in ("logits", "pred", "out") if k in tensors]
        chosen = tensors[named[0]] if named else next(iter(tensors.values())) if len(tensors) == 1 else None
    elif isinstance(output, (tuple, list)):
        chosen = next((v for v in output if isinstance(v, Tensor)), None)
    else:
        chosen = output
    if hasattr(chosen, "as_tensor"):
        chosen = chosen.as_tensor()
    if not isinstance(chosen, Tensor) or chosen.ndim == 0:
        msg = f"the network returns {describe(output)}; say with output=... which tensor holds the scores"
        raise ExplainError(msg)
    return chosen[:, None] if chosen.ndim == 1 else chosen


def describe(output: Any) -> str:
    """What a network returned, in a few words."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    if isinstance(output, Mapping):
        return "a mapping with " + ", ".join(map(str, output))
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)}"
    return type(output).__name__
