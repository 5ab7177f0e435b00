"""Modules of a folder by name: putting a file there is enough to offer it."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from medxai.errors import ExplainError


@dataclass(frozen=True)
class Plugins:
    """A package whose modules are interchangeable.

    Attributes:
        package: dotted name.
        kind: what its modules are, for messages.
    """

    package: str
    kind: str

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all modules, from the files; none of them is imported."""
        spec = find_spec(self.package)
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
        stems = {path.stem for folder in folders for path in Path(folder).glob("*.py")}
        return tuple(sorted(stems - {"__init__"}))

    def load(self, name: str) -> ModuleType:
        """Import a module by name.

        Raises:
            ExplainError: unknown name; the message lists the nearest ones.
        """
        if name not in self.names:
            plain = str(name).lower()
            near = [
                match
                for text in (plain.replace("-", "_"), plain.replace("-", "").replace("_", ""))
                for match in get_close_matches(text, self.names, n=3, cutoff=0.5)
            ]
            hint = f"did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
            msg = f"unknown {self.kind} {name!r}; {hint}known: {', '.join(self.names)}"
            raise ExplainError(msg)
        return import_module(f"{self.package}.{name}")
