"""The methods by name: every file in `medxai.explain.methods` is one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medxai.errors import ExplainError

if TYPE_CHECKING:
    from medxai.explain.method import Method

_FOLDER = Path(__file__).parent / "methods"


@cache
def method_names() -> tuple[str, ...]:
    """Names of all methods, from the files; nothing is imported."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "__init__"))


def get_method(name: str) -> Method:
    """Return a method by registry name.

    Raises:
        ExplainError: unknown name; the message lists the nearest ones.
    """
    if name not in method_names():
        near = get_close_matches(name.lower().replace("-", "").replace("_", ""), method_names(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        msg = f"unknown explanation method {name!r}; {hint}known: {', '.join(method_names())}"
        raise ExplainError(msg)
    return cast("Method", import_module(f"medxai.explain.methods.{name}"))


def make_options(name: str, values: Mapping[str, Any] | None = None) -> Any:
    """Options of a method from plain values, as a command line or a YAML file gives them.

    Raises:
        ExplainError: unknown option, or a value of the wrong kind.
    """
    kind = get_method(name).Options
    known = {item.name: item for item in fields(kind)}
    given = dict(values or {})
    for key in given:
        if key not in known:
            offer = f"it has {', '.join(known)}" if known else "it has none"
            msg = f"{name} has no option {key!r}; {offer}"
            raise ExplainError(msg)
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        msg = f"options of {name}: {error}"
        raise ExplainError(msg) from error


def parse_option(text: str) -> tuple[str, str, Any]:
    """Read ``method.option=value``; the value is JSON, or a word.

    Raises:
        ExplainError: not of this form.
    """
    left, equals, value = text.partition("=")
    method, dot, option = left.partition(".")
    if not equals or not dot:
        msg = f"option {text!r} is not of the form method.option=value, for example scorecam.channels=64"
        raise ExplainError(msg)
    try:
        return method, option, json.loads(value)
    except json.JSONDecodeError:
        return method, option, value
