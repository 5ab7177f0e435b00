"""Run any network from a layer on, without running what comes before it and without re-implementing it.

The module calls that finish before the target layer does are the *prefix*. In a replay their ``forward`` is
replaced by one that hands out stored tensors, while the modules that enclose the target run their own code:
residual sums, concatenations and other functional steps stay what the author wrote. A prefix output that the
rest of the network uses beside the target's activation (the other arm of a skip) is *needed*; all others are
replaced by zeros that take no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.calls import capture, live_calls, prefix_calls, record_calls
from medxai.explain.modes import evaluation, module_named

#: Accepted difference between a replay and the full run, relative to the largest output.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ReplayPlan:
    """What to replace when a network is run from a layer on; made once, good for every input of the same size.

    Attributes:
        layer: target layer, ``name`` or ``name#k`` for its k-th call.
        prefix: ``(call, shape without batch, dtype)`` of every call that is replaced, in order, the target last.
            A call is ``name#k``, counted in a full run; dtype is torch's name without the module.
        needed: calls whose value the rest of the network uses, besides the target's.
        live: ``(module, calls)``: what each replaced module does in a replay, call by call; None runs it.
        dense: dummies must own their memory, because the network writes into them.
    """

    layer: str
    prefix: tuple[tuple[str, tuple[int, ...], str], ...]
    needed: tuple[str, ...]
    live: tuple[tuple[str, tuple[str | None, ...]], ...] = field(repr=False)
    dense: bool = False

    @property
    def values(self) -> tuple[str, ...]:
        """Keys of the values a replay takes: the layer, then the needed calls."""
        return (self.layer, *self.needed)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and strings, for a manifest."""
        return {
            "layer": self.layer,
            "prefix": [[call, list(shape), dtype] for call, shape, dtype in self.prefix],
            "needed": list(self.needed),
            "live": [[name, list(calls)] for name, calls in self.live],
            "dense": self.dense,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ReplayPlan:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: `content` is something else.
        """
        return cls(
            layer=str(content["layer"]),
            prefix=tuple((str(c), tuple(int(n) for n in s), str(d)) for c, s, d in content["prefix"]),
            needed=tuple(str(call) for call in content["needed"]),
            live=tuple((str(n), tuple(None if c is None else str(c) for c in calls)) for n, calls in content["live"]),
            dense=bool(content["dense"]),
        )


def plan_replay(network: nn.Module, example: Tensor, layer: str) -> ReplayPlan:
    """Find what precedes `layer`, what of it the rest needs, and prove on `example` that a replay is exact.

    Costs two inferences and a few runs from the layer on.

    Args:
        network: any module that maps one tensor to one tensor; left as it was.
        example: ``[B, C, *S]`` input of the size in use.
        layer: dotted module name; ``name#2`` means the third call of a module that runs several times.

    Raises:
        ExplainError: unknown layer, a layer that does not run or has no spatial output, or a network that
            gives something else when it is replayed.
    """
    name, _, number = layer.partition("#")
    _modules(network, name)
    target_key = f"{name}#{int(number or 0)}"
    with evaluation(network), torch.no_grad():
        calls = record_calls(network, example)
    target = next((call for call in calls if call.key == target_key), None)
    if target is None:
        ran = sum(call.name == name for call in calls)
        msg = f"layer {layer!r} ran {ran} time(s) in this network, not often enough to be captured"
        raise ExplainError(msg)
    if target.output is None or len(target.output[0]) < 2:
        msg = f"layer {layer!r} returns no spatial feature map"
        raise ExplainError(msg)
    replaced = prefix_calls(calls, target)
    keys = {id(call): call.key for call in replaced}
    keys[id(target)] = layer
    plan = ReplayPlan(
        layer=layer,
        prefix=tuple((keys[id(call)], *call.output) for call in replaced if call.output is not None),
        needed=(),
        live=live_calls(calls, keys),
    )
    with evaluation(network), torch.no_grad():
        values, reference = capture(network, example, [keys[id(call)] for call in replaced])
    return _proven(network, example, plan, values, reference)


@contextmanager
def replaying(network: nn.Module, plan: ReplayPlan, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, ``network(x)`` runs from the layer on; gradients flow to ``values[plan.layer]`` if it requires them.

    The batch size is that of ``values[plan.layer]``; other values may have batch 1 and are expanded. Values are
    copied, so that a network that works in place leaves them alone. ``x`` must be the real input (or have its
    shape) for networks whose own code uses it after the layer.

    Args:
        network: as at planning; in evaluation mode inside, as it was afterwards.
        plan: from `plan_replay`, for inputs of the same spatial size.
        values: ``[B, ...]`` activation of the layer and value of every needed call, keyed as in ``plan.values``.

    Raises:
        ExplainError: a value is missing or has another shape, or the network runs otherwise than planned.
    """
    modules = _modules(network, plan.layer.partition("#")[0])
    outputs = _outputs(plan, values)
    given = frozenset(plan.values)
    changed: list[tuple[nn.Module, Any]] = []
    counters: list[list[int]] = []

    def restart(_module: nn.Module, _inputs: Any) -> None:
        for counter in counters:
            counter[0] = 0

    handle = network.register_forward_pre_hook(restart)
    try:
        for name, calls in plan.live:
            module = modules.get(name)
            if module is None or isinstance(module, torch.jit.ScriptModule):
                why = "is missing" if module is None else "is scripted"
                msg = f"module {name!r} {why}; the network cannot be replayed"
                raise ExplainError(msg)
            changed.append((module, module.__dict__.get("forward")))
            counters.append([0])
            module.forward = _stub(name, module.forward, calls, outputs, given, counters[-1])
        with evaluation(network):
            yield
    finally:
        handle.remove()
        for module, own in reversed(changed):
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = own


def _proven(
    network: nn.Module, example: Tensor, plan: ReplayPlan, values: Mapping[str, Tensor], reference: Any
) -> ReplayPlan:
    """Find the needed calls by autograd and return the cheapest plan that reproduces `reference`."""
    if not isinstance(reference, Tensor) or not torch.isfinite(reference).all():
        kind = "NaN or infinite values" if isinstance(reference, Tensor) else type(reference).__name__
        msg = f"the network returns {kind}; it cannot be replayed from layer {plan.layer!r}"
        raise ExplainError(msg)
    others = tuple(key for key in values if key != plan.layer)
    complete = replace(plan, needed=others)
    leaves = {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in values.items()}
    asked = [key for key, leaf in leaves.items() if leaf.requires_grad]
    try:
        with torch.inference_mode(False), torch.enable_grad(), replaying(network, complete, leaves):
            output = network(example)
        score = output.float().sum()
        gradients = (
            torch.autograd.grad(score, [leaves[key] for key in asked], allow_unused=True)
            if score.requires_grad
            else [None] * len(asked)
        )
    except Exception as error:  # whatever a foreign network raises means the same here
        msg = f"the network cannot be replayed from layer {plan.layer!r}: {' '.join(str(error).split())[:160]}"
        raise ExplainError(msg) from error
    unused = {key for key, gradient in zip(asked, gradients, strict=True) if gradient is None}
    needed = tuple(key for key in others if key not in unused)
    for candidate in (replace(plan, needed=needed), replace(plan, needed=needed, dense=True), complete):
        if _reproduces(network, example, candidate, values, reference):
            return candidate
    msg = f"the network gives another result when it is run from layer {plan.layer!r} on; choose another layer"
    raise ExplainError(msg)


def _reproduces(
    network: nn.Module, example: Tensor, plan: ReplayPlan, values: Mapping[str, Tensor], reference: Tensor
) -> bool:
    """True if a replay gives `reference`, also for every sample of a batch twice as large."""
    given = {key: values[key].detach() for key in plan.values}
    twice = {key: torch.cat([value, value]) for key, value in given.items()}
    scale = float(reference.abs().max()) or 1.0
    for x, stored, expected in (
        (example, given, reference),
        (torch.cat([example, example]), twice, torch.cat([reference, reference])),
    ):
        try:
            with torch.no_grad(), replaying(network, plan, stored):
                output = network(x)
        except (RuntimeError, ExplainError):  # such as writing into a dummy without memory of its own
            return False
        if output.shape != expected.shape or not float((output - expected).abs().max()) <= TOLERANCE * scale:
            return False
    return True


def _outputs(plan: ReplayPlan, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each replaced call returns: given values of the right batch size, dummies for the others."""
    missing = [key for key in plan.values if key not in values]
    if missing:
        msg = f"a replay from {plan.layer!r} needs the value of {missing[0]!r}"
        raise ExplainError(msg)
    leaf = values[plan.layer]
    batch = leaf.shape[0] if leaf.ndim else 0
    wanted = set(plan.values)
    outputs = {}
    for key, shape, dtype in plan.prefix:
        if key not in wanted:
            kind = getattr(torch, dtype)
            zeros = torch.zeros((), dtype=kind, device=leaf.device).expand(batch, *shape)
            outputs[key] = zeros.contiguous() if plan.dense else zeros
            continue
        value = values[key]
        if tuple(value.shape[1:]) != shape or value.shape[0] not in (1, batch):
            msg = f"value of {key!r} has shape {tuple(value.shape)}, the replay needs {(batch, *shape)}"
            raise ExplainError(msg)
        outputs[key] = value if value.shape[0] == batch else value.expand(batch, *shape)
    return outputs


def _stub(
    name: str,
    forward: Callable[..., Any],
    calls: Sequence[str | None],
    outputs: Mapping[str, Tensor],
    given: frozenset[str],
    counter: list[int],
) -> Callable[..., Any]:
    """A ``forward`` that hands out the stored outputs of the replaced calls and runs the others."""

    def replayed(*inputs: Any, **named: Any) -> Any:
        position, counter[0] = counter[0], counter[0] + 1
        if position >= len(calls):
            msg = f"module {name!r} runs more often than when the replay was planned"
            raise ExplainError(msg)
        key = calls[position]
        if key is None:
            return forward(*inputs, **named)
        return outputs[key].clone() if key in given else outputs[key]

    return replayed


def _modules(network: nn.Module, wanted: str) -> dict[str, nn.Module]:
    """Modules by name, of which `wanted` is one."""
    module_named(network, wanted)
    return dict(network.named_modules())
