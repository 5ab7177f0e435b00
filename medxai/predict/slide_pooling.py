"""The decision of a slide by attention over its tiles, where a bundle brings weights for it.

The usual decision fuses the logits of tiles by a fixed rule; this one learns from whole bags which tiles count
(Ilse et al. 2018). Its attention says which tiles decided, and is no measure of evidence for a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from medxai.errors import BundleError
from medxai.networks.gated_attention import GatedAttention

if TYPE_CHECKING:
    from medxai.predict.bundle import Bundle
    from medxai.study import FloatArray

#: File of the weights in a bundle.
WEIGHTS = Path("models") / "attention.safetensors"


def load_attention(bundle: Bundle) -> GatedAttention:
    """Return the bundle's attention over tiles, in eval mode.

    Raises:
        BundleError: it has none, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = bundle.path / WEIGHTS
    if bundle.spec.slide is None or not bundle.spec.slide.attention or not path.is_file():
        msg = f"bundle {bundle.name} has no attention over tiles; leave --slide-pooling at bundle"
        raise BundleError(msg)
    try:
        state = load_file(path)
        hidden, features = state["what.weight"].shape
        network = GatedAttention(features, hidden, len(state["head.weight"]))
        network.load_state_dict(state)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        msg = f"{path.name} is damaged or not of this network ({type(error).__name__})"
        raise BundleError(msg) from error
    if len(network.head.weight) != len(bundle.spec.labels):
        msg = f"{path.name} gives {len(network.head.weight)} logits, the bundle has {len(bundle.spec.labels)} labels"
        raise BundleError(msg)
    return network.requires_grad_(False).eval()


@contextmanager
def pooled_features(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect what goes into the network's last linear layer, ``[N, features]`` for every forward; none without one."""
    with _entering([module for module in network.modules() if isinstance(module, nn.Linear)][-1:]) as seen:
        yield seen


@contextmanager
def distances(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect how far tiles are from what the network knows, ``[N]``; none where it says nothing of it.

    A network says it by a module ``nearest`` that it hands the distance (`medxai.networks.graded_tiles`).
    """
    with _entering([module for name, module in network.named_children() if name == "nearest"]) as seen:
        yield seen


@contextmanager
def _entering(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    seen: list[torch.Tensor] = []
    handles = [m.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach())) for m in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def pool(attention: GatedAttention, features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Logits ``[K]`` of a slide and the attention ``[n]`` of its tiles.

    Args:
        attention: of the bundle.
        features: ``[n, features]`` of the tiles.
    """
    with torch.inference_mode():
        logits, weights = attention(torch.from_numpy(np.asarray(features, np.float32)))
    return logits.numpy(), weights.numpy()
