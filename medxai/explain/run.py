"""What a method sees: one batch, one target, one layer, and the network behind a few questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.chunk import plan_chunk
from medxai.explain.enlarge import enlarging
from medxai.explain.inputs import Inputs
from medxai.explain.progress import Meter
from medxai.explain.split import INPUT, Captured, Forward, forward_split, infer_versions
from medxai.predict.blends import Pair

if TYPE_CHECKING:
    from medxai.explain.masking.operator import Blend
    from medxai.explain.target import Target
    from medxai.predict.blends import Sums
    from medxai.predict.local_changes import Boxes, Known


@dataclass(eq=False)
class Shared:
    """What the runs of one call to `explain` have in common: the forward pass and what was derived from it.

    Attributes:
        forward: network and how to run it.
        inputs: the batch.
        captured: the one forward pass.
        seed: of every random draw.
        chunk: samples per forward of repeating methods; None measures.
        several: layers of methods that combine several, shallow to deep.
        masking: operator that replaces what a perturbation removes, unless a method's own option names another.
    """

    forward: Forward
    inputs: Inputs
    captured: Captured
    seed: int = 0
    chunk: int | None = None
    masking: str = "zero"
    several: tuple[str, ...] = ()
    gradients: dict[Target, dict[str, Tensor]] = field(default_factory=dict)
    memo: dict[Any, Tensor] = field(default_factory=dict)
    known: dict[int, Known] = field(default_factory=dict)
    mixing: dict[Any, Pair | Sums] = field(default_factory=dict)

    @cached_property
    def samples_at_once(self) -> int:
        """Samples per forward."""
        return self.chunk or plan_chunk(self.forward, self.inputs)


class Run:
    """One target of one batch at one layer, as a method's `attribute` receives it.

    Tensors are float32 and detached unless said otherwise. `report` takes figures worth keeping with the map
    (a completeness residual, a standard error): numbers, or ``[B]`` tensors with one for each sample.
    """

    def __init__(self, shared: Shared, target: Target, layer: str, meter: Meter | None = None) -> None:
        self.shared, self.target, self.layer = shared, target, layer
        self.meter = meter or Meter("", None)
        self.report: dict[str, Any] = {}
        self.flags: dict[str, Tensor] = {}

    @property
    def network(self) -> nn.Module:
        """The network; treat it as read-only."""
        return self.shared.forward.network

    @property
    def x(self) -> Tensor:
        """The image ``[B, C, *S]`` in its own precision."""
        return self.shared.inputs.x

    @property
    def spatial(self) -> tuple[int, ...]:
        """``S``."""
        return self.shared.inputs.spatial

    @property
    def logits(self) -> Tensor:
        """Output ``[B, K]`` or ``[B, K, *S]`` for the clean image."""
        return self.shared.captured.logits.detach().float()

    @property
    def score(self) -> Tensor:
        """Score ``[B]`` of the clean image."""
        return self.target(self.shared.captured.logits.detach()).float()

    @property
    def classes(self) -> Tensor:
        """Explained class ``[B]``.

        Raises:
            ExplainError: the target is a function of the output and has no class.
        """
        if self.target.classes is None:
            msg = f"this method compares classes; target {self.target.label} is a function of the output"
            raise ExplainError(msg)
        return self.target.classes

    @property
    def activation(self) -> Tensor:
        """Activation ``A [B, K, *s]`` of the layer."""
        return self.shared.captured.activation(self.layer)

    @property
    def gradient(self) -> Tensor:
        """Gradient ``G [B, K, *s]`` of the score with respect to the activation, shared between methods."""
        known = self.shared.gradients.setdefault(self.target, {})
        if self.layer not in known:
            with torch.inference_mode(False), torch.enable_grad():
                score = self.target(self.shared.captured.logits)
            captured = self.shared.captured
            known.update(captured.gradients(score, list(captured.outputs), required=self.layer))
        return known[self.layer]

    def flag(self, name: str, where: Tensor, reason: str) -> None:
        """Flag the maps of samples ``where [B]`` (bool), with a reason in words."""
        if bool(where.any()):
            before = self.flags.get(name, torch.zeros_like(where))
            self.flags[name] = before | where
            self.report[f"{name}_reason"] = reason

    def with_target(self, target: Target) -> Run:
        """The same run with another question; it reports into this one."""
        other = Run(self.shared, target, self.layer, self.meter)
        other.report, other.flags = self.report, self.flags
        return other

    def at(self, layer: str) -> Run:
        """The same run at another captured layer."""
        other = Run(self.shared, self.target, layer, self.meter)
        other.report, other.flags = self.report, self.flags
        return other

    def expect(self, samples: int) -> None:
        """Announce how many samples will be sent through the network."""
        self.meter.expect(samples)

    def chunks(self, x: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and their rows, `samples_at_once` at a time."""
        step = self.samples_at_once
        for start in range(0, len(x), step):
            yield x[start : start + step], rows[start : start + step]

    def outputs(self, x: Tensor, rows: Tensor) -> Tensor:
        """Output ``[N, ...]`` float32 for other images ``x [N, C, *S]``; row i is a version of sample ``rows[i]``.

        Runs in chunks, without a graph.
        """
        parts = []
        for piece, which in self.chunks(x, rows):
            parts.append(
                infer_versions(self.shared.forward, self.shared.inputs, piece, which, self.shared.known).float()
            )
            self.meter.advance(len(piece))
        return torch.cat(parts)

    def mixtures(self, name: str, blend: Blend, maps: Tensor, rows: Tensor, totals: Tensor) -> Tensor | None:
        """Output ``[N, K]`` float32 for images blended by enlarged maps, or None where they must be made one by one.

        Args:
            name: of the operator.
            blend: operator.
            maps: ``[N, *s]``, masks before they are enlarged.
            rows: ``[N]``, of which sample each is a version.
            totals: ``[B]`` versions that will be asked for of each sample.
        """
        forward, inputs = self.shared.forward, self.shared.inputs
        prepared = forward.prepared_for(inputs)
        if prepared is None or inputs.x.dtype != torch.float32:
            return None
        parts, (order, counts) = [], torch.unique_consecutive(rows, return_counts=True)
        for row, piece in zip(order.tolist(), torch.split(maps, counts.tolist()), strict=True):
            key = (row, name, tuple(maps.shape[1:]))
            if key not in self.shared.mixing:
                weights = enlarging(maps.shape[1:], self.spatial)
                pair = Pair(inputs.x[row].detach(), blend.baseline(row).detach(), weights)
                self.shared.mixing[key] = prepared.mixing(pair, int(totals[row]))
            found = prepared.mixed(self.shared.mixing[key], piece)
            if found is None:
                return None
            parts.append(found)
        self.meter.advance(len(maps))
        return torch.cat(parts)

    def replaced(self, blend: Blend, boxes: Boxes, rows: Tensor) -> Tensor | None:
        """Output ``[N, K]`` float32 for images with a box removed, or None where they must be made one by one.

        Args:
            blend: operator that removes.
            boxes: ``[N, axes, 2]`` first and last position of each box, included.
            rows: ``[N]``, of which sample each is a version.
        """
        forward, inputs = self.shared.forward, self.shared.inputs
        prepared = forward.prepared_for(inputs)
        if prepared is None:
            return None
        parts, start, (order, counts) = [], 0, torch.unique_consecutive(rows, return_counts=True)
        for row, count in zip(order.tolist(), counts.tolist(), strict=True):
            known = self.shared.known.setdefault(row, {})
            found = prepared.replaced(inputs.x[row], blend.baseline(row), boxes[start : start + count], known)
            if found is None:
                return None
            parts.append(found)
            start += count
        self.meter.advance(len(boxes))
        return torch.cat(parts)

    def scores(self, x: Tensor, rows: Tensor) -> Tensor:
        """Score ``[N]`` of other images, see `outputs`."""
        return self.target(self.outputs(x, rows), rows)

    def capture(self, x: Tensor, rows: Tensor, layers: Sequence[str] | None = None) -> tuple[Captured, Tensor]:
        """Forward of other images with a graph from the layer on, and their scores ``[N]`` with a graph.

        The caller keeps ``len(x)`` within `samples_at_once`.
        """
        inputs = self.shared.inputs.replace(x, rows)
        captured = forward_split(self.shared.forward, inputs, layers or [self.layer])
        self.meter.advance(len(x))
        with torch.inference_mode(False), torch.enable_grad():
            return captured, self.target(captured.logits, rows)

    def input_gradient(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``[N, C, *S]`` of the score with respect to images, and the scores ``[N]``; in chunks."""
        gradients, scores = [], []
        for piece, which in self.chunks(x, rows):
            captured, score = self.capture(piece, which, [INPUT])
            gradients.append(captured.gradients(score, [INPUT])[INPUT])
            scores.append(score.detach().float())
        return torch.cat(gradients), torch.cat(scores)

    @property
    def samples_at_once(self) -> int:
        """Samples per forward of repeated runs."""
        return self.shared.samples_at_once

    def generator(self) -> torch.Generator:
        """A fresh source of random numbers; the same one for every call, method and target."""
        return torch.Generator().manual_seed(self.shared.seed)

    def noise(self, count: int) -> Tensor:
        """Standard normal ``[count, C, *S]``, the same for every sample of a batch."""
        shape = (count, *self.x.shape[1:])
        return torch.randn(shape, generator=self.generator()).to(self.x)
