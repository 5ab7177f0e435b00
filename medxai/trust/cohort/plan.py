"""What a validation measures: methods, ways of removing, steps, limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from medxai.errors import TrustError
from medxai.identity import sha256_json

#: Raised with every change of what is measured, so that older results are not taken for new ones.
FORMAT = 2


@dataclass(frozen=True)
class Plan:
    """Settings of a validation.

    Attributes:
        methods: registry names.
        options: of methods.
        masking: operators that remove, at least two: one alone decides the order of the methods with it.
        steps: of insertion and of deletion.
        forwards: a method that sends more images through the network for one map is left out.
        target: explain the class of the table (``label``) or the decided one (``decision``).
        seed: of every random draw.
        chunk: images per forward.
        prepared: run the compiled form of the bundle where it fits (``float32``), or the network itself (``no``).
    """

    methods: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    masking: tuple[str, ...] = ("blur", "mean")
    steps: int = 8
    forwards: int = 300
    target: Literal["label", "decision"] = "label"
    seed: int = 0
    chunk: int = 16
    prepared: Literal["no", "float32"] = "no"

    def __post_init__(self) -> None:
        """Check numbers and names.

        Raises:
            TrustError: fewer than two operators, or a number out of range.
            ExplainError: a method, option or operator is unknown.
        """
        from medxai.explain.engine import load_methods
        from medxai.explain.masking.registry import get_operator

        if len(set(self.masking)) < 2:
            msg = "two ways of removing are needed: the order of methods by one alone may be an artefact of it"
            raise TrustError(msg)
        if self.steps < 2 or self.forwards < 1 or self.chunk < 1:
            msg = "steps is at least 2, forwards and chunk are at least 1"
            raise TrustError(msg)
        if self.prepared not in ("no", "float32"):
            msg = f"prepared is no or float32, not {self.prepared!r}"
            raise TrustError(msg)
        if self.target not in ("label", "decision"):
            msg = f"target is label or decision, not {self.target!r}"
            raise TrustError(msg)
        load_methods(self.methods, self.options)
        for name in self.masking:
            get_operator(name)

    def described(self) -> dict[str, Any]:
        """JSON-serialisable settings."""
        return {**asdict(self), "format": FORMAT}

    def common(self) -> dict[str, Any]:
        """The settings that every row of a case depends on, whatever the method."""
        return {k: v for k, v in self.described().items() if k not in ("methods", "options", "forwards")}

    def basis(self, method: str, *, made: bool = True) -> str:
        """What the row of a method depends on besides; where no map was made, the limit of forwards as well."""
        from medxai.explain.registry import make_options

        options = asdict(make_options(method, self.options.get(method)))
        return sha256_json(options)[:16] + ("" if made else f"/{self.forwards}")

    def only(self, methods: Sequence[str]) -> Plan:
        """The same for some of the methods."""
        return replace(self, methods=tuple(methods), options={k: v for k, v in self.options.items() if k in methods})
