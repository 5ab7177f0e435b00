"""Explanations of a network: ``from medxai.explain import explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medxai.explain.engine import explain
    from medxai.explain.result import Explanations, TensorExplanation
    from medxai.explain.target import Segment, Similarity

__all__ = ["explain", "Explanations", "TensorExplanation", "Segment", "Similarity"]

_PLACES = {"explain": "engine", "Explanations": "result", "TensorExplanation": "result",
           "Segment": "target", "Similarity": "target"}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes more than a second."""
    if name not in _PLACES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(f"medxai.explain.{_PLACES[name]}"), name)
