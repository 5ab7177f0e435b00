"""One window through the network once: maps of several method families come out of the same forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medxai.explain.engine import attribute, capture, load_methods
from medxai.explain.inputs import as_inputs
from medxai.explain.run import Run, Shared
from medxai.explain.split import INPUT, Captured, Forward, forward_split
from medxai.explain.target import resolve
from medxai.trust.gate.figures import NOISE

if TYPE_CHECKING:
    from medxai.explain.method import Method

#: What a graph down to the image may keep; larger networks go without the family of input gradients.
GRAPH_BYTES = 2 << 30
#: Family -> the method that speaks for it where nobody asked for one.
FAMILIES = {"gradient_cam": "gradcam", "activation_cam": "eigencam", "gradient": "inputxgradient"}


class _TooLarge(Exception):
    """The graph would keep more than it may."""


class Look:
    """Maps of one window; its forward is made once, that of the noisy window when it is needed.

    Args:
        forward: the network and how to run it.
        x: ``[1, C, *S]``.
        layer: target layer; None without one, and then no family reads it.
        needs: methods that will be asked for at the layer, where they read more than its gradient.
        families: keep a graph down to the image as well, within `GRAPH_BYTES`, for input gradients. A prepared
            network has none, so the plain one runs in its place.
        seed: of the noise.

    Attributes:
        forwards: images sent through the network so far.
    """

    def __init__(
        self,
        forward: Forward,
        x: Tensor,
        layer: str | None,
        needs: Sequence[Method] = (),
        *,
        families: bool = False,
        seed: int = 0,
    ) -> None:
        self._forward, self.x, self.layer, self.seed = forward, x, layer, seed
        # Families want the gradient at the layer, whatever the methods do.
        self._needs = (*needs, *(method for method, _ in load_methods([FAMILIES["gradient_cam"]])))
        self.forwards = 1
        names = [layer] if layer else []
        whole = None
        if families:
            try:
                with _at_most(GRAPH_BYTES):
                    whole = forward_split(replace(forward, prepared=None), as_inputs(x), [*names, INPUT])
            except _TooLarge:
                self.forwards += 1
        self._captured = whole or capture(forward, as_inputs(x), names, self._needs)

    @property
    def plain(self) -> bool:
        """The logits are those that a plain inference gives, without compiled layers or lower precision."""
        return self._forward.prepared_for(as_inputs(self.x)) is None and self._forward.autocast is None

    @cached_property
    def clean(self) -> Shared:
        """What maps at the layer read: the graph goes no further down than they need."""
        deep = any(method.INFO.graph == "input" for method in self._needs)
        return self._shared(self.x, self._captured if deep else _only(self._captured, self.layer))

    @cached_property
    def _noisy(self) -> Shared:
        self.forwards += 1
        noise = torch.randn(self.x.shape, generator=torch.Generator().manual_seed(self.seed)).to(self.x)
        x = self.x + noise * (NOISE * self.x.std())
        names = [self.layer] if self.layer else []
        return self._shared(x, capture(self._forward, as_inputs(x), names, self._needs))

    def map(self, method: Method, options: Any, index: int, *, noisy: bool = False) -> Tensor:
        """Map ``[*s]`` of a method at the layer for class `index`, of the window or of it with slight noise."""
        return self._map(self._noisy if noisy else self.clean, method, options, index, self.layer or INPUT)

    def family_maps(self, index: int) -> dict[str, Tensor]:
        """Maps ``[*s]`` for class `index`, one for each of `FAMILIES` that this forward has; no forward."""
        found = {}
        for family, name in FAMILIES.items():
            method, options = load_methods([name])[0]
            if method.INFO.layer == "one" and self.layer:
                found[family] = self.map(method, options, index)
            elif method.INFO.layer == "none" and INPUT in self._captured.outputs:
                pixels = self._shared(self.x, _only(self._captured, INPUT))
                found[family] = self._map(pixels, method, options, index, INPUT)
        return found

    @property
    def grid(self) -> tuple[int, ...]:
        """Positions of the layer along each axis; those of the window, at most eight, without a layer."""
        if self.layer:
            return tuple(self._captured.activation(self.layer).shape[2:])
        return tuple(min(size, 8) for size in self.x.shape[2:])

    def rival(self, index: int) -> int:
        """The most likely class but `index`; the other side of a single logit."""
        logits = self._captured.logits.detach()[0]
        if len(logits) < 2:
            return 1 - index
        return int(next(c for c in logits.argsort(descending=True).tolist() if c != index))

    def _shared(self, x: Tensor, captured: Captured) -> Shared:
        # One at a time: measuring how many fit would cost a forward.
        return Shared(self._forward, as_inputs(x), captured, self.seed, chunk=1)

    @staticmethod
    def _map(shared: Shared, method: Method, options: Any, index: int, layer: str) -> Tensor:
        return attribute(method, Run(shared, resolve(index, shared.captured.logits), layer), options)[0].cpu()


def _only(captured: Captured, name: str | None) -> Captured:
    """The same forward with a single captured tensor: gradients stop there."""
    if name is None:
        return Captured(captured.logits, {}, {})
    return Captured(captured.logits, {name: captured.outputs[name]}, {name: captured.layouts[name]})


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """Stop a forward whose graph would keep more than so many bytes, each storage counted once.

    Raises:
        _TooLarge: it would.
    """
    seen: dict[int, int] = {}
    total = 0

    def pack(value: Tensor) -> Tensor:
        nonlocal total
        storage = value.untyped_storage()
        if storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage.nbytes()
            total += storage.nbytes()
        if total > limit:
            raise _TooLarge
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield
