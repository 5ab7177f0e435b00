"""A feature map together with what of it is valid; it stands in for a tensor inside a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medxai.errors import ExplainError


@dataclass(eq=False)
class Context:
    """One masked run of a network.

    Attributes:
        renormalise: average pooling divides by the valid share of each window.
        modules: ``name (type)`` of the modules that are running, outermost first, for messages.
    """

    renormalise: bool = False
    modules: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        """The module that is running, in words."""
        return f"module {self.modules[-1]}" if self.modules else "the network"


class MaskedTensor(Tensor):
    """Values and mask; torch functions called with it follow the rules of `medxai.explain.masking.layer_rules`.

    A tensor to ``isinstance`` and shape checks of the code it passes through, without memory of its own.

    Args:
        x: values ``[N, C, *S]``; those that are not valid are zeroed here.
        m: ``[N, 1, *S]``, non-zero where values are valid.
        context: of the run.
        border: pads that are still to be added, as `torch.nn.functional.pad` takes them, and their value. They are
            neither filled nor valid, just as the padding of a convolution itself.
    """

    x: Tensor
    m: Tensor
    context: Context
    border: tuple[tuple[int, ...], float] | None

    @staticmethod
    def __new__(  # noqa: D102
        cls: type[MaskedTensor],
        x: Tensor,
        m: Tensor,
        context: Context | None = None,
        border: tuple[tuple[int, ...], float] | None = None,
    ) -> MaskedTensor:
        shape = list(x.shape)
        if border is not None:
            for axis, (before, after) in enumerate(zip(border[0][::2], border[0][1::2], strict=True), start=1):
                shape[-axis] += before + after
        made: MaskedTensor = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=x.dtype, device=x.device)
        made.m = (m > 0).to(x.dtype)
        made.x = torch.where(m > 0, x, 0)
        made.context = context or Context()
        made.border = border
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Everything happens in ``__new__``."""

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Shape and valid share."""
        return f"MaskedTensor({list(self.x.shape)}, {float(self.m.mean()):.0%} valid)"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        from medxai.explain.masking.layer_rules import METADATA, find_rule

        name = function_name(func)
        if name in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return find_rule(name, _first(args, kwargs))(func, *args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        raise unknown(str(func), _first(args, kwargs).context)


def function_name(func: Callable[..., Any]) -> str:
    """Name of a torch function without the marks of operators and in-place variants; of a property, its own."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        return {"iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "isub": "sub"}.get(name, name)
    return name.removesuffix("_")


def unknown(what: str, context: Context) -> ExplainError:
    """The error for a step without a rule."""
    return ExplainError(
        f"layer masking has no rule for {what}, which {context.place} applies to a masked feature map; "
        "use another masking operator (token_drop for transformers)"
    )


def _first(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> MaskedTensor:
    for value in (*args, *(kwargs or {}).values()):
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, MaskedTensor):
                return item
    raise AssertionError("torch called a MaskedTensor's function without one")
