"""A network's modules by name, and its evaluation mode for the time being."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING

from medxai.errors import ExplainError

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode is restored."""
    training = [module for module in network.modules() if module.training]
    if training:
        network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def module_named(network: nn.Module, name: str) -> nn.Module:
    """The module of a dotted name.

    Raises:
        ExplainError: there is none; the message lists the nearest names.
    """
    try:
        if name:
            return network.get_submodule(name)
    except AttributeError:
        pass
    near = get_close_matches(name, [known for known, _ in network.named_modules()], n=3)
    hint = f"; nearest names: {', '.join(near)}" if near else ""
    msg = f"the network has no layer {name!r}{hint}"
    raise ExplainError(msg)
