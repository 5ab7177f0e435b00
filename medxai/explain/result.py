"""What `explain` returns: maps of a batch as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, overload

import torch
from torch import Tensor

from medxai.explain.resize import resize

_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class TensorExplanation:
    """One method's maps for one target at one layer, for every sample of a batch; more is always more evidence.

    Attributes:
        method: registry name.
        layer: target layer, ``a+b`` for a method over several, ``input`` for one that needs none.
        target: what was asked, in words.
        classes: ``[B]`` explained class, None for a callable target.
        score: ``[B]`` explained score.
        raw: ``[B, *s]`` float32 signed map on the layer's own grid, never normalised.
        spatial: ``S`` of the input.
        flags: for each sample, out of ``empty`` (no position speaks for the target), ``unstable``,
            ``class_agnostic``, ``baseline_dependent`` (another masking operator gives another map).
        parameters: options of the method and the seed, JSON-serialisable.
        report: figures of the method, such as a completeness residual.
        input_affine: affine of the input when it was a MetaTensor.
    """

    method: str
    layer: str
    target: str
    classes: Tensor | None
    score: Tensor
    raw: Tensor
    spatial: tuple[int, ...]
    flags: tuple[frozenset[str], ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    input_affine: Tensor | None = None

    @cached_property
    def map(self) -> Tensor:
        """Evidence for the target on the input's grid, ``[B, *S]``, non-negative, not normalised.

        A MetaTensor with the input's affine when the input was one.
        """
        return self._placed(self.raw.clamp_min(0))

    @cached_property
    def negative(self) -> Tensor:
        """Evidence against the target on the input's grid, ``[B, *S]``, non-negative."""
        return self._placed((-self.raw).clamp_min(0))

    @property
    def cell(self) -> tuple[float, ...]:
        """Size of one cell of the layer's grid in voxels of the input, per axis."""
        return tuple(s / r for s, r in zip(self.spatial, self.raw.shape[1:], strict=True))

    @property
    def raw_affine(self) -> Tensor | None:
        """Affine of `raw`: cells are `cell` voxels wide and begin where the image begins."""
        if self.input_affine is None:
            return None
        affine = self.input_affine.double()
        dims = len(self.spatial)
        step = torch.eye(4, dtype=torch.float64)
        for axis, cell in enumerate(self.cell):
            step[axis, axis] = cell
            step[axis, 3] = (cell - 1) / 2
        return affine @ step if affine.shape[-1] == 4 and dims <= 3 else None

    def normalised(
        self, scope: Literal["sample", "frame"] | tuple[float, float] = "sample", *, signed: bool = False
    ) -> Tensor:
        """Map ``[B, *S]`` scaled for display.

        Args:
            scope: ``sample`` scales by minimum and maximum over all positions; ``frame`` each plane of the
                first axis by its own, for showing video only, since it hides when; a pair of constants makes
                patients comparable.
            signed: keep the sign and divide by the largest magnitude instead.
        """
        if signed:
            values = resize(self.raw, self.spatial)
            top = values.abs().flatten(1).amax(1).clamp_min(_EPS)
            return values / top.view(-1, *[1] * len(self.spatial))
        values = self.map
        if isinstance(scope, tuple):
            low, high = scope
            return ((values - low) / (high - low)).clamp(0, 1)
        start = 2 if scope == "frame" else 1
        flat = values.flatten(start)
        shape = (*values.shape[:start], *[1] * (values.ndim - start))
        low_, high_ = flat.amin(-1).view(shape), flat.amax(-1).view(shape)
        return (values - low_) / (high_ - low_ + _EPS)

    def _placed(self, maps: Tensor) -> Tensor:
        result = resize(maps, self.spatial)
        if self.input_affine is None:
            return result
        from monai.data.meta_tensor import MetaTensor

        placed: Tensor = MetaTensor(result, affine=self.input_affine)
        return placed


class Explanations(Sequence[TensorExplanation]):
    """All maps of one call, in the order method, layer, target of the request.

    Attributes:
        logits: ``[B, K]`` (or ``[B, K, *S]``) float32 output of the network.
        layers: names of the target layers.
    """

    def __init__(self, items: Sequence[TensorExplanation], logits: Tensor, layers: tuple[str, ...]) -> None:
        self._items, self.logits, self.layers = tuple(items), logits, layers

    @overload
    def __getitem__(self, index: int) -> TensorExplanation: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TensorExplanation, ...]: ...
    def __getitem__(self, index: int | slice) -> TensorExplanation | tuple[TensorExplanation, ...]:
        """By position."""
        return self._items[index]

    def __len__(self) -> int:
        """How many maps."""
        return len(self._items)

    def __iter__(self) -> Iterator[TensorExplanation]:
        """In order."""
        return iter(self._items)

    def get(self, method: str, target: str | int | None = None, layer: str | None = None) -> TensorExplanation:
        """The first map of a method, and of a target and layer where these are given.

        Raises:
            KeyError: there is none.
        """
        for item in self._items:
            if (
                item.method == method
                and (target is None or item.target == str(target))
                and (layer is None or item.layer == layer)
            ):
                return item
        msg = f"no map of {method} for target {target} at layer {layer}"
        raise KeyError(msg)
