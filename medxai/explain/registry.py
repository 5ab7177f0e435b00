"""The methods by name: every file in `medxai.explain.methods` is one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from medxai.errors import ExplainError
from medxai.explain.plugins import Plugins

if TYPE_CHECKING:
    from medxai.explain.method import Method

_METHODS = Plugins("medxai.explain.methods", "explanation method")


def method_names() -> tuple[str, ...]:
    """Names of all methods; nothing is imported."""
    return _METHODS.names


def get_method(name: str) -> Method:
    """Return a method by registry name.

    Raises:
        ExplainError: unknown name; the message lists the nearest ones.
    """
    return cast("Method", _METHODS.load(name))


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
