"""The methods by name; adding one is one file with the same names and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from medxai.errors import ExplainError
from medxai.explain import gradcam, hirescam

if TYPE_CHECKING:
    from torch import Tensor


class Method(Protocol):
    """What a method file offers."""

    NAME: str
    TITLE: str
    CLASS_AGNOSTIC: bool

    @staticmethod
    def raw_map(activation: Tensor, gradient: Tensor) -> Tensor:
        """Signed map ``[B, *s]`` from activation and gradient ``[B, K, *s]``."""
        ...


_METHODS: dict[str, Method] = {module.NAME: module for module in (gradcam, hirescam)}  # type: ignore[misc]


def get_method(name: str) -> Method:
    """Return a method by registry name.

    Raises:
        ExplainError: unknown name; the message lists the known ones.
    """
    try:
        return _METHODS[name]
    except KeyError as error:
        msg = f"unknown explanation method {name!r}; known: {', '.join(_METHODS)}"
        raise ExplainError(msg) from error
