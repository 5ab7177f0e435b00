"""Run the network from a layer on with other activations, in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.calls import capture
from medxai.explain.replay import ReplayPlan, plan_replay, replaying
from medxai.explain.split import infer

if TYPE_CHECKING:
    from medxai.explain.run import Run


class Tail:
    """What comes after a run's target layer.

    Networks that can be replayed run only that part; others (several inputs, outputs that are no tensor, frames of
    a video in the batch) run as a whole with the layer's output replaced, to the same result.

    Args:
        run: with the layer.

    Attributes:
        replays: whether only the tail is run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._layout = run.shared.captured.layouts[run.layer]
        self._output = run.shared.captured.outputs[run.layer].detach()
        self._plan, self._values = _plan(run)

    @property
    def replays(self) -> bool:
        """Whether only the tail is run."""
        return self._plan is not None

    def outputs(self, activation: Tensor, rows: Tensor) -> Tensor:
        """Output ``[N, ...]`` of the network for other activations of the layer.

        Args:
            activation: ``[N, K, *s]``; the caller keeps N within `Run.samples_at_once`.
            rows: ``[N]``, of which sample each is a version.
        """
        run, like = self._run, self._output
        if self._layout.kind == "tokens":
            like = like[rows]
        replaced = self._layout.from_grid(activation.to(like.dtype), like)
        if self._plan is None:
            with _replacing(run.network, run.layer, replaced):
                return self._run_network(rows)
        values = {run.layer: replaced, **{key: value[rows] for key, value in self._values.items()}}
        with replaying(run.network, self._plan, values):
            return self._run_network(rows)

    def _run_network(self, rows: Tensor) -> Tensor:
        # The network itself, whatever else stands in for it where it is run as a whole.
        run = self._run
        found = infer(run.shared.forward, run.shared.inputs.replace(run.x[rows], rows)).float()
        run.meter.advance(len(rows))
        return found


def _plan(run: Run) -> tuple[ReplayPlan | None, Mapping[str, Tensor]]:
    """Plan a replay and store what else it needs, or nothing if the network cannot be replayed."""
    forward, inputs = run.shared.forward, run.shared.inputs
    if forward.autocast is not None or len(inputs.args) != 1 or inputs.kwargs:
        return None, {}
    try:
        plan = plan_replay(run.network, run.x[:1], run.layer)
    except ExplainError:
        return None, {}
    if not plan.needed:
        return plan, {}
    training = [module for module in run.network.modules() if module.training]
    run.network.eval()
    try:
        with torch.no_grad():
            return plan, capture(run.network, run.x, plan.needed)[0]
    finally:
        for module in training:
            module.training = True


@contextmanager
def _replacing(network: nn.Module, layer: str, output: Tensor) -> Iterator[None]:
    """Inside, the layer returns `output`, whatever it computed."""
    name, _, number = layer.partition("#")
    calls = -1

    def hook(_module: nn.Module, _inputs: Any, _output: Any) -> Any:
        nonlocal calls
        calls += 1
        return output.clone() if calls == int(number or 0) else None

    handle = dict(network.named_modules())[name].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
