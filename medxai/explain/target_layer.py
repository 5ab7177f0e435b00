"""The automatic target layer: the last feature map before the head, found by watching one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.inputs import Inputs, as_inputs
from medxai.explain.layout import Layout, find_layout
from medxai.explain.modes import evaluation
from medxai.explain.split import Forward, infer
from medxai.explain.target import select_output


@dataclass(frozen=True, eq=False)
class _Event:
    """One call of a module with an output on a grid."""

    name: str
    call: int
    output: Tensor
    layout: Layout


def find_target_layer(forward: Forward | nn.Module, x: Inputs | Tensor) -> str:
    """Name the module whose output is the last feature map before the head.

    For a network whose head pools globally: the last output with more than one position, whatever the
    type (MONAI DenseNet gives ``class_layers.relu``, ResNet ``layer4``, EfficientNet the last activation).
    For a dense output, a segmentation network: the coarsest feature map, its bottleneck. For a transformer:
    the last layer norm whose patch tokens the score depends on; with a class token that is the first norm
    of the last block. Of several names of one tensor the one that runs once and is shortest wins; a module
    that runs several times is named with its call, ``name#2``.

    Args:
        forward: the classifier; left as it was.
        x: input as large as in use; one sample of it is run.

    Raises:
        ExplainError: no module returns a spatial feature map.
    """
    run, inputs = _prepare(forward, x)
    events, calls, output = _watch(run, inputs)
    maps = [event for event in events if event.layout.kind != "tokens"]
    if output.ndim > 2 and events:
        fewest = min(prod(event.layout.grid) for event in events)
        return _name([event for event in events if prod(event.layout.grid) == fewest][-1], events, calls)
    tokens = [event for event in events if event.layout.kind == "tokens"]
    if tokens and (not maps or events.index(maps[-1]) < events.index(tokens[-1])):
        found = _token_layer(run, inputs, calls, tokens)
        if found:
            return found
    if not maps:
        msg = "no layer of the network returns a spatial feature map; name the target layer, and the grid of tokens"
        raise ExplainError(msg)
    return _name(maps[-1], events, calls)


def find_stages(forward: Forward | nn.Module, x: Inputs | Tensor, most: int = 3) -> list[str]:
    """Names of the last layer at each size of the feature maps, shallow to deep, for methods that combine layers.

    Args:
        forward: the classifier.
        x: input as large as in use.
        most: the deepest that many.
    """
    run, inputs = _prepare(forward, x)
    events, calls, output = _watch(run, inputs)
    last: dict[tuple[int, ...], _Event] = {}
    for event in events:
        if event.layout.kind != "tokens" and event.output.shape != output.shape:
            last.pop(event.layout.grid, None)
            last[event.layout.grid] = event
    deepest = sorted(last.values(), key=lambda event: -prod(event.layout.grid))[-most:]
    return [_name(event, events, calls) for event in deepest]


def _prepare(forward: Forward | nn.Module, x: Inputs | Tensor) -> tuple[Forward, Inputs]:
    # A compiled network has no modules to watch.
    run = replace(forward, prepared=None) if isinstance(forward, Forward) else Forward(forward)
    inputs = x if isinstance(x, Inputs) else as_inputs(x)
    return run, inputs.replace(inputs.x[:1], torch.zeros(1, dtype=torch.long))


def _watch(run: Forward, inputs: Inputs) -> tuple[list[_Event], dict[str, int], Tensor]:
    """Every module call with an output on a grid, in the order of completion, and the network's output."""
    calls: dict[str, int] = {}
    events: list[_Event] = []

    def watch(name: str) -> Callable[..., None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            if isinstance(output, Tensor) and output.is_floating_point():
                layout = find_layout(output.shape, 1, inputs.spatial, run.network, run.grid)
                if layout is not None:
                    events.append(_Event(name, call, output, layout))

        return record

    handles = [module.register_forward_hook(watch(name)) for name, module in run.network.named_modules() if name]
    try:
        output = infer(run, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return events, calls, output


def _name(event: _Event, events: Sequence[_Event], calls: dict[str, int]) -> str:
    # In-place activations return their input, so a tensor has several names; the last event is complete.
    same = [other for other in events if other.output is event.output and _encloses(other.name, event.name)]
    best = min(same, key=lambda other: (calls[other.name] > 1, len(other.name)))
    return best.name if calls[best.name] == 1 else f"{best.name}#{best.call}"


def _token_layer(run: Forward, inputs: Inputs, calls: dict[str, int], tokens: Sequence[_Event]) -> str | None:
    """The last layer norm (or else any token layer) whose patch tokens carry a gradient of the score."""
    modules = dict(run.network.named_modules())
    norms = [event for event in tokens if isinstance(modules[event.name], nn.LayerNorm)] or list(tokens)
    kept: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            call = counts[name] = counts.get(name, -1) + 1
            kept[f"{name}#{call}"] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in {event.name for event in norms}]
    try:
        with evaluation(run.network), torch.inference_mode(False), torch.enable_grad():
            leaf = inputs.x.detach().clone().requires_grad_()
            output = select_output(inputs.replace(leaf).call(run.network), run.output)
            names = [f"{event.name}#{event.call}" for event in norms]
            gradients = torch.autograd.grad(output.float().pow(2).sum(), [kept[n] for n in names], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    for event, gradient in reversed(list(zip(norms, gradients, strict=True))):
        if gradient is not None and bool(event.layout.to_grid(gradient).abs().max() > 0):
            return event.name if calls[event.name] == 1 else f"{event.name}#{event.call}"
    return None


def _encloses(name: str, inner: str) -> bool:
    """True for the module itself and the containers that end with it."""
    return name == inner or inner.startswith(name + ".")
