"""The operators by name: every file in `medxai.explain.masking.operators` is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from medxai.explain.plugins import Plugins

if TYPE_CHECKING:
    from medxai.explain.masking.operator import Operator

_OPERATORS = Plugins("medxai.explain.masking.operators", "masking operator")


def operator_names() -> tuple[str, ...]:
    """Names of all operators; nothing is imported."""
    return _OPERATORS.names


def get_operator(name: str) -> Operator:
    """Return an operator by registry name.

    Raises:
        ExplainError: unknown name; the message lists the nearest ones.
    """
    return cast("Operator", _OPERATORS.load(name))
