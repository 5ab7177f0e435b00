"""The automatic target layer: the last spatial feature map before the head."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError


def find_target_layer(network: nn.Module, example: Tensor) -> str:
    """Name the last module whose output is a feature map ``[B, C, *s]`` with more than one position.

    Works for any CNN whose head pools globally, without knowing its type: MONAI DenseNet gives
    ``class_layers.relu``, ResNet ``layer4``, EfficientNet the last activation. Of several names of the
    same tensor the one that runs once and is shortest wins; a module that runs several times is named
    with its call, ``name#2``.

    Args:
        network: the classifier; left as it was.
        example: ``[1, C, *S]`` input, as large as in use.

    Raises:
        ExplainError: no module returns a spatial feature map.
    """
    calls: dict[str, int] = {}
    events: list[tuple[str, int, Tensor]] = []
    spatial = example.ndim

    def watch(name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            if isinstance(output, Tensor) and output.ndim == spatial and prod(output.shape[2:]) > 1:
                events.append((name, call, output))

        return record

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules() if name]
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if not events:
        msg = "no layer of the network returns a spatial feature map; name the target layer in the bundle"
        raise ExplainError(msg)
    last = events[-1][2]
    # In-place activations return their input, so the tensor has several names; the last event is complete.
    finished = events[-1]
    names = [(name, call) for name, call, tensor in events if tensor is last and _encloses(name, finished[0])]
    name, call = min(names, key=lambda item: (calls[item[0]] > 1, len(item[0])))
    return name if calls[name] == 1 else f"{name}#{call}"


def _encloses(name: str, inner: str) -> bool:
    """True for the module itself and the containers that end with it."""
    return name == inner or inner.startswith(name + ".")
