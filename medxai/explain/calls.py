"""The order of a network's module calls: recorded in one run, sorted into what precedes a layer and what follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(eq=False)
class Call:
    """One module call of a recorded run.

    Attributes:
        name: dotted name of the module.
        number: which of the module's calls, from 0.
        parent: the call that encloses it; None below the root.
        end: position among all calls in the order in which they finish.
        output: ``(shape without batch, dtype)`` of a batched tensor, None for anything else.
    """

    name: str
    number: int
    parent: Call | None
    end: int = -1
    output: tuple[tuple[int, ...], str] | None = None

    @property
    def key(self) -> str:
        """The call as ``name#k``."""
        return f"{self.name}#{self.number}"


def record_calls(network: nn.Module, example: Tensor) -> list[Call]:
    """Every module call of a run in order of start; the caller sets modes."""
    calls: list[Call] = []
    stack: list[Call] = []
    counts: dict[str, int] = {}
    ended = 0

    def watch(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(_module: nn.Module, _inputs: Any) -> None:
            call = Call(name, counts.get(name, 0), stack[-1] if stack else None)
            counts[name] = call.number + 1
            calls.append(call)
            stack.append(call)

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal ended
            call = stack.pop()
            call.end, ended = ended, ended + 1
            if isinstance(output, Tensor) and output.ndim and output.shape[0] == example.shape[0]:
                call.output = (tuple(output.shape[1:]), str(output.dtype).removeprefix("torch."))

        return enter, leave

    handles = []
    for name, module in network.named_modules():
        if name:
            enter, leave = watch(name)
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def prefix_calls(calls: Sequence[Call], target: Call) -> list[Call]:
    """Prefix calls: finished with the target, not inside another; opened up where they return no batched tensor."""
    enclosing: set[int] = {id(None)}
    above = target.parent
    while above is not None:
        enclosing.add(id(above))
        above = above.parent
    level = [call for call in calls if call.end <= target.end and id(call.parent) in enclosing]
    found: list[Call] = []
    while level:
        found += [call for call in level if call.output is not None]
        opened = {id(call) for call in level if call.output is None}
        level = [call for call in calls if id(call.parent) in opened]
    return sorted(found, key=lambda call: call.end)


def live_calls(calls: Sequence[Call], keys: Mapping[int, str]) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
    """Per replaced module, what each of the calls does that still happen in a replay."""
    happening: dict[str, list[str | None]] = {}
    for call in calls:
        above = call.parent
        while above is not None and id(above) not in keys:
            above = above.parent
        if above is None:
            happening.setdefault(call.name, []).append(keys.get(id(call)))
    return tuple((name, tuple(what)) for name, what in happening.items() if any(what))


class _Enough(Exception):
    """All wanted calls have returned."""


def capture(network: nn.Module, x: Any, calls: Sequence[str], *, stop: bool = False) -> tuple[dict[str, Tensor], Any]:
    """Values that module calls return in a run, and the output; in whatever grad mode the caller is in.

    Can be traced and exported: what follows the last call is then dead code.

    Args:
        network: in evaluation mode.
        x: ``[B, C, *S]``, or what else the network takes.
        calls: ``name`` or ``name#k``; they must occur.
        stop: end the run after the last of them; the output is None.

    Returns:
        Copies, because a later layer may work in place, keyed as in `calls`; and what the network returned.
    """
    wanted: dict[str, dict[int, str]] = {}
    for call in calls:
        name, _, number = call.partition("#")
        wanted.setdefault(name, {})[int(number or 0)] = call
    modules = dict(network.named_modules())
    values: dict[str, Tensor] = {}

    def watch(numbered: dict[int, str]) -> Callable[..., None]:
        seen = 0

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal seen
            if seen in numbered:
                values[numbered[seen]] = output.clone()
            seen += 1
            if stop and len(values) == len(calls):
                raise _Enough

        return keep

    handles = [modules[name].register_forward_hook(watch(numbered)) for name, numbered in wanted.items()]
    output = None
    try:
        output = network(x)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {call: values[call] for call in calls}, output
