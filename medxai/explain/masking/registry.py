"""The operators by name: every file in `medxai.explain.masking.operators` is one."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from medxai.errors import ExplainError

if TYPE_CHECKING:
    from medxai.explain.masking.operator import Operator

_FOLDER = Path(__file__).parent / "operators"


@cache
def operator_names() -> tuple[str, ...]:
    """Names of all operators, from the files; nothing is imported."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "__init__"))


def get_operator(name: str) -> Operator:
    """Return an operator by registry name.

    Raises:
        ExplainError: unknown name; the message lists the nearest ones.
    """
    if name not in operator_names():
        near = get_close_matches(str(name).lower().replace("-", "_"), operator_names(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        msg = f"unknown masking operator {name!r}; {hint}known: {', '.join(operator_names())}"
        raise ExplainError(msg)
    return cast("Operator", import_module(f"medxai.explain.masking.operators.{name}"))
