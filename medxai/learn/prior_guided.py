"""A loss term that makes the evidence of a classifier lie where an expert expects it, in training only.

After Belharbi et al. 2024 (FG, arXiv:2402.00281): ``L = CE + weight * R`` where R compares one layer's map ``T`` of a
sample with a prior map ``A`` that the label and the image imply. Nothing is added to the network and nothing is
computed after training. A map that was trained to agree with a prior agrees with it: this is no sign that it is right
(`medxai.learn.agreement` says what is).

Layouts: images ``[B, C, H, W]``, volumes ``[B, C, D, H, W]``, tokens ``[B, N, C]`` with the grid that they lie on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from medxai.errors import SettingsError
from medxai.learn.loop import Batch

Mode = Literal["attention", "cam", "outside"]
MODES: tuple[Mode, ...] = ("attention", "cam", "outside")
#: ``priors(batch)`` -> per sample of the batch a map ``[*S]`` >= 0, or None where there is none.
Priors = Callable[[Batch], Sequence[torch.Tensor | None]]
#: Epochs in which the weight of the term rises from 0.
WARM_UP = 2


class PriorGuidedLoss:
    """The term ``weight * R``, for the parameter ``extra`` of `medxai.learn.loop.fit`.

    A context manager: the layer is watched between entering and leaving. ``R`` is the mean over the samples that have
    a prior:

    - ``attention``: 1 - cosine of the mean of the layer over its channels and the prior;
    - ``cam``: 1 - cosine of the class activation map of the true class, cut at 0, and the prior;
    - ``outside``: share of the layer's mean that lies outside the prior, ``sum T (1 - A) / sum T``. It says where
      evidence may lie, and asks for no shape. It is never taken of a class activation map: that can become 0
      everywhere, which lies outside of nothing, while the other classes' maps decide by being negative.

    Args:
        layer: its output, not negative, is guided; the last feature map is the one to take.
        mode: see above.
        weight: of the term, 4 to 9 in the publication. To be chosen by validation accuracy.
        priors: of the samples of a batch, on any grid; a map that is not finite or all 0 counts as none.
        head: linear layer ``[K, C]`` behind the mean over all positions; `cam` needs it.
        grid: of the positions when the layer puts out tokens; tokens before them (class token) are left out.
        warm_up: epochs in which the weight rises linearly, from 0 in the first.
        outside_only: which samples of a batch are judged as by ``outside`` whatever the mode: those whose prior says
            where evidence may lie and not what it looks like.

    Raises:
        SettingsError: unknown mode, a weight below 0, or `cam` without a head.
    """

    def __init__(
        self,
        layer: nn.Module,
        mode: Mode,
        weight: float,
        priors: Priors,
        *,
        head: nn.Linear | None = None,
        grid: Sequence[int] | None = None,
        warm_up: int = WARM_UP,
        outside_only: Callable[[Batch], Sequence[bool]] | None = None,
    ) -> None:
        if mode not in MODES or not weight >= 0:
            msg = f"mode {mode!r} with weight {weight}: the mode is one of {list(MODES)}, the weight 0 or more"
            raise SettingsError(msg)
        if mode == "cam" and head is None:
            msg = "mode 'cam' needs the linear layer behind the mean over positions; take 'attention' without one"
            raise SettingsError(msg)
        self.layer, self.mode, self.weight, self.priors = layer, mode, weight, priors
        self.head, self.grid, self.warm_up, self.outside_only = head, grid, warm_up, outside_only
        #: R of every batch, by epoch.
        self.history: dict[int, list[float]] = {}
        self._features: torch.Tensor | None = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> PriorGuidedLoss:
        self._handle = self.layer.register_forward_hook(self._keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._features = None

    def _keep(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            self._features = output

    def means(self) -> dict[int, float]:
        """Mean of R over the batches of each epoch, from 1, that this object has seen with a weight above 0."""
        return {epoch + 1: round(sum(values) / len(values), 4) for epoch, values in sorted(self.history.items())}

    def weight_at(self, epoch: int) -> float:
        """Weight in an epoch counted from 0."""
        return self.weight * min(1.0, epoch / self.warm_up) if self.warm_up else self.weight

    def __call__(self, batch: Batch) -> torch.Tensor | None:
        """Return ``weight * R`` of the batch that went through the layer last; None while the weight is 0.

        Raises:
            SettingsError: the layer was not watched, or the batch is a mix of samples (mixup), which has no prior.
        """
        weight, features = self.weight_at(batch.epoch), self._features
        self._features = None
        if not weight:
            return None
        if features is None:
            msg = "the guided layer put nothing out; enter the loss with 'with' and guide a layer of this network"
            raise SettingsError(msg)
        if batch.share < 1:
            msg = "mixup blends two samples and their priors; set mixup=0 for a guided training"
            raise SettingsError(msg)
        layer = spatial(features, self.grid)
        flags = [self.mode == "outside"] * len(layer)
        if self.outside_only is not None and self.mode != "outside":
            flags = list(self.outside_only(batch))
        maps = mean_map(layer)
        if self.head is not None and self.mode == "cam":
            alone = torch.tensor(flags, device=maps.device).view(-1, *[1] * (maps.ndim - 1))
            maps = torch.where(alone, maps, class_map(layer, self.head.weight, batch.labels))
        term = misalignment(maps, self.priors(batch), flags)
        self.history.setdefault(batch.epoch, []).append(float(term.detach()))
        return weight * term


def spatial(features: torch.Tensor, grid: Sequence[int] | None = None) -> torch.Tensor:
    """Bring features to ``[B, C, *S]``.

    Args:
        features: ``[B, C, *S]``, or tokens ``[B, N, C]`` when `grid` is given.
        grid: of the last ``prod(grid)`` tokens, in row-major order.

    Raises:
        SettingsError: fewer tokens than the grid has places.
    """
    if grid is None:
        return features
    places = int(torch.Size(grid).numel())
    if features.ndim != 3 or features.shape[1] < places:
        msg = f"features {list(features.shape)} are no tokens [B, N, C] on the grid {list(grid)}"
        raise SettingsError(msg)
    return features[:, -places:].transpose(1, 2).reshape(features.shape[0], -1, *grid)


def mean_map(features: torch.Tensor) -> torch.Tensor:
    """Mean ``[B, *S]`` of the features over their channels."""
    return features.mean(dim=1)


def class_map(features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Class activation map ``[B, *S]`` of each sample's class, its positive part (Zhou et al. 2016).

    Args:
        features: ``[B, C, *S]`` before the mean over positions.
        weight: ``[K, C]`` of the linear layer; a single row stands for class 1, its negative for class 0.
        labels: ``[B]`` class index.
    """
    rows = torch.cat([-weight, weight]) if len(weight) == 1 else weight
    return torch.einsum("bc...,bc->b...", features, rows[labels]).clamp(min=0)


def misalignment(
    maps: torch.Tensor, priors: Sequence[torch.Tensor | None], outside: Sequence[bool] | bool = False
) -> torch.Tensor:
    """Return R, the mean over samples with a prior; 0 (with gradient 0) when no sample has one.

    Args:
        maps: ``[B, *S]``, not negative.
        priors: per sample ``[*P]`` >= 0, brought to the grid ``S`` here; None or not finite or all 0 is left out.
        outside: per sample, whether the share outside the prior is taken in place of 1 - cosine. The prior then is a
            membership in 0..1.
    """
    flags = [outside] * len(maps) if isinstance(outside, bool) else list(outside)
    known = [(i, prior.to(maps)) for i, prior in enumerate(priors) if prior is not None and _usable(prior)]
    if not known:
        return maps.new_zeros(())
    rows = [i for i, _ in known]
    values, size = maps[rows], maps.shape[1:]
    if len({prior.shape for _, prior in known}) == 1:
        target = to_grid(torch.stack([prior for _, prior in known]), size)
    else:
        target = torch.stack([to_grid(prior, size) for _, prior in known])
    values, target = values.flatten(1), target.flatten(1)
    beyond = (values * (1 - target)).sum(1) / values.sum(1).clamp(min=1e-12)
    # Scaled first: cosine_similarity has an absolute floor, by which a faint map would seem to disagree.
    scaled = values / values.detach().amax(1, keepdim=True).clamp(min=1e-12)
    unlike = 1 - functional.cosine_similarity(scaled, target, dim=1)
    return torch.where(torch.tensor([flags[i] for i in rows], device=maps.device), beyond, unlike).mean()


def _usable(prior: torch.Tensor) -> bool:
    return bool(torch.isfinite(prior).all()) and bool((prior > 0).any())


def to_grid(prior: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize one map ``[*P]`` or several ``[n, *P]`` to `size`, linear per axis, within their old range.

    Antialiased where they shrink. Cell centres stay where they are (``align_corners=False``). In two dimensions this is
    PyTorch's ``interpolate(mode="bilinear", antialias=True)``, which has no counterpart in three.
    """
    out, axes = prior, tuple(range(-len(size), 0))
    for axis, length in zip(axes, size, strict=True):
        if out.shape[axis] != length:
            weights = _triangles(out.shape[axis], int(length)).to(out)
            out = torch.movedim(torch.tensordot(out, weights, dims=([axis], [1])), -1, axis)
    return torch.minimum(torch.maximum(out, prior.amin(axes, keepdim=True)), prior.amax(axes, keepdim=True))


def _triangles(before: int, after: int) -> torch.Tensor:
    """Weights ``[after, before]`` of linear resizing; a triangle covers a new cell and half of its neighbours."""
    step = before / after
    centres = (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * step
    places = torch.arange(before, dtype=torch.float64)[None] + 0.5
    weights = (1 - (places - centres).abs() / max(step, 1.0)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)
