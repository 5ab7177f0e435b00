"""What a network is called with: one image tensor that is explained, and whatever else it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.finite import all_finite


@dataclass(frozen=True, eq=False)
class Inputs:
    """Arguments of one call.

    Attributes:
        args: positional arguments; plain tensors with the batch first, anything else is handed on.
        kwargs: named arguments, likewise.
        primary: place of the explained image ``[B, C, *S]`` in `args` or `kwargs`.
        affine: of the image when it came as a MetaTensor: ``[4, 4]`` or ``[B, 4, 4]``.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    primary: int | str = 0
    affine: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The explained image ``[B, C, *S]``."""
        value: Tensor = self.kwargs[self.primary] if isinstance(self.primary, str) else self.args[self.primary]
        return value

    @property
    def spatial(self) -> tuple[int, ...]:
        """``S``."""
        return tuple(self.x.shape[2:])

    def replace(self, x: Tensor, rows: Tensor | None = None) -> Inputs:
        """Same call with another image; `rows [len(x)]` says which sample's other inputs go with each of them."""
        batch = len(self.x)

        def follow(value: Any) -> Any:
            if rows is None or not isinstance(value, Tensor) or value.ndim == 0 or len(value) != batch:
                return value
            return value.index_select(0, rows.to(value.device))

        args = tuple(x if i == self.primary else follow(v) for i, v in enumerate(self.args))
        kwargs = {k: x if k == self.primary else follow(v) for k, v in self.kwargs.items()}
        return Inputs(args, kwargs, self.primary, self.affine)

    def call(self, network: nn.Module) -> Any:
        """Output of the network."""
        return network(*self.args, **self.kwargs)


def as_inputs(x: Any, primary: int | str | None = None) -> Inputs:
    """Bring a tensor, a tuple of positional or a mapping of named inputs into one form.

    Tensors are detached; MetaTensors become plain tensors whose affine is kept; inference tensors are copied.

    Args:
        x: the input or inputs.
        primary: which one is explained; None takes the first floating-point tensor with spatial axes.

    Raises:
        ExplainError: no image among the inputs, an empty batch, or values that are not finite.
    """
    args: tuple[Any, ...] = () if isinstance(x, Mapping) else tuple(x) if isinstance(x, (tuple, list)) else (x,)
    kwargs: dict[str, Any] = {str(k): v for k, v in x.items()} if isinstance(x, Mapping) else {}
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    if primary is None:
        images = [
            key for key, value in places if isinstance(value, Tensor) and value.ndim >= 3 and value.is_floating_point()
        ]
        if not images:
            kinds = ", ".join(_kind(value) for _, value in places) or "nothing"
            msg = f"an image of shape [batch, channels, *spatial] in floating point is needed; got {kinds}"
            raise ExplainError(msg)
        primary = images[0]
    chosen = dict(places).get(primary)
    if not isinstance(chosen, Tensor) or chosen.ndim < 3 or not chosen.is_floating_point():
        msg = f"input {primary!r} is {_kind(chosen)}; [batch, channels, *spatial] in floating point is needed"
        raise ExplainError(msg)
    if chosen.numel() == 0:
        msg = f"input {primary!r} of shape {list(chosen.shape)} is empty"
        raise ExplainError(msg)
    if not all_finite(chosen):
        msg = f"input {primary!r} holds NaN or infinite values"
        raise ExplainError(msg)
    affine = getattr(chosen, "affine", None)
    return Inputs(tuple(_plain(v) for v in args), {k: _plain(v) for k, v in kwargs.items()}, primary, affine)


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if hasattr(value, "as_tensor"):  # MetaTensor
        value = value.as_tensor()
    value = value.detach()
    if value.is_inference():
        with torch.inference_mode(False):
            value = value.clone()
    return value


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)}"
    return type(value).__name__
