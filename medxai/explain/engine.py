"""`explain`: every requested method and class of a batch from one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medxai.explain.registry import get_method
from medxai.explain.split import Captured, forward_split
from medxai.explain.target_layer import find_target_layer


@dataclass(frozen=True, eq=False)
class TensorMaps:
    """Maps of one batch.

    Attributes:
        logits: ``[B, K]``.
        layer: name of the target layer.
        raw: ``(method, class) -> [B, *s]`` signed float32 maps on the layer's grid.
    """

    logits: Tensor
    layer: str
    raw: dict[tuple[str, int], Tensor]


def explain(
    network: nn.Module,
    x: Tensor,
    *,
    methods: Sequence[str] = ("gradcam",),
    classes: Sequence[int] | None = None,
    layer: str = "auto",
    autocast: torch.dtype | None = None,
) -> TensorMaps:
    """Explain ``x [B, C, *S]``; batch of n equals n single calls.

    Args:
        network: classifier with ``[B, K]`` logits; comes back as it was.
        x: input batch; not changed.
        methods: registry names.
        classes: class indices, or None for the classes decided in the batch.
        layer: dotted name of the target layer, or ``auto``, which costs one more inference: name the
            layer when many inputs follow.
        autocast: lower precision of the forward pass; maps are float32 all the same.

    Raises:
        ExplainError: unknown method, layer or class; NaN; a network that is not a classifier.
    """
    chosen = find_target_layer(network, x[:1]) if layer == "auto" else layer
    captured = forward_split(network, x, chosen, autocast)
    wanted = sorted(set(decided(captured.logits).tolist())) if classes is None else list(classes)
    return TensorMaps(captured.logits.detach().float(), chosen, raw_maps(captured, methods, wanted))


def raw_maps(captured: Captured, methods: Sequence[str], classes: Sequence[int]) -> dict[tuple[str, int], Tensor]:
    """Signed maps ``[B, *s]`` for every method and class; frees the graph of `captured`."""
    chosen = [get_method(name) for name in methods]
    activation = captured.activation.detach().float()
    result = {}
    for position, index in enumerate(classes):
        gradient = captured.gradient(index, last=position == len(classes) - 1)
        for method in chosen:
            result[method.NAME, index] = method.raw_map(activation, gradient)
    return result


def decided(logits: Tensor) -> Tensor:
    """Decided class ``[B]``: the largest logit, or the sign of a single one."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
