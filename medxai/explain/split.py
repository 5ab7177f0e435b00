"""Forward with the graph cut at the target layer: no graph below it, gradients only down to it.

Below the layer nothing is kept for backward, which makes a gradient-based map cost about one inference
in time and memory. The network comes back as it was: no hook, no ``.grad``, same mode of every module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.finite import all_finite
from medxai.explain.inputs import Inputs, as_inputs
from medxai.explain.layout import Layout, find_layout
from medxai.explain.modes import evaluation, module_named
from medxai.explain.replay import ReplayPlan, replaying
from medxai.explain.target import describe, select_output

if TYPE_CHECKING:
    from medxai.predict.local_changes import Known
    from medxai.predict.prepared import Prepared

#: Name of the input image where a layer name is expected.
INPUT = "input"
#: Half-precision gradients are taken of a larger score, or they vanish: 1/P is below fp16's range in a volume.
_HALF_SCALE = 1024.0


@dataclass(frozen=True, eq=False)
class Forward:
    """How to run a network.

    Attributes:
        network: any module; its modes and parameters are left untouched.
        autocast: lower precision below the target layer; the tail, gradients and maps are float32.
        output: which part of the network's output holds the scores (see `select_output`).
        grid: token grid, where it cannot be told from the shapes.
        prepared: compiled stand-in for the layers up to its layer, and for the whole where no gradient is needed.
    """

    network: nn.Module
    autocast: torch.dtype | None = None
    output: int | str | Callable[[Any], Tensor] | None = None
    grid: tuple[int, ...] | None = None
    prepared: Prepared | None = None

    @cached_property
    def plan(self) -> ReplayPlan:
        """How to run the network behind the prepared stem."""
        assert self.prepared is not None  # noqa: S101
        return ReplayPlan.from_json(self.prepared.plan)

    def prepared_for(self, inputs: Inputs) -> Prepared | None:
        """The prepared network when it stands for this call: same size, one input, no other wishes."""
        alone = len(inputs.args) == 1 and not inputs.kwargs and self.autocast is None and self.output is None
        return self.prepared if self.prepared is not None and alone and self.prepared.fits(inputs.x) else None


@dataclass(frozen=True, eq=False)
class Captured:
    """One forward pass, cut at a layer.

    Attributes:
        logits: selected output ``[B, K]`` or ``[B, K, *S]`` with a graph down to the earliest captured tensor.
        outputs: what the captured layers returned, by name; `INPUT` is the image itself.
        layouts: how these lie on the grid.
    """

    logits: Tensor
    outputs: Mapping[str, Tensor]
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def activation(self, layer: str) -> Tensor:
        """Activation ``[B, K, *s]`` float32 of a layer, detached."""
        return self.layouts[layer].to_grid(self.outputs[layer].detach()).float()

    def gradients(self, score: Tensor, layers: Sequence[str], *, required: str | None = None) -> dict[str, Tensor]:
        """Gradients ``[B, K, *s]`` float32 of the summed score with respect to the outputs of layers.

        Samples do not interact in evaluation mode, so one backward serves the batch.

        Args:
            score: ``[B]`` computed from `logits` under gradient mode.
            layers: captured layers.
            required: the only layer the score must depend on; others are left out where it does not. None means all.

        Raises:
            ExplainError: the score does not depend on a layer, or a gradient is not finite.
        """
        scale = _HALF_SCALE if self.outputs[layers[0]].dtype == torch.float16 else 1.0
        wanted = [self.outputs[layer] for layer in layers]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if score.requires_grad:
            with torch.inference_mode(False), torch.enable_grad():
                found = torch.autograd.grad(score.sum() * scale, wanted, retain_graph=True, allow_unused=True)
        result = {}
        for layer, gradient in zip(layers, found, strict=True):
            if gradient is None and required not in (None, layer):
                continue
            if gradient is None:
                msg = f"the class score does not depend on layer {layer!r}; choose a layer upstream of the head"
                raise ExplainError(msg)
            if not all_finite(gradient):
                msg = f"the gradient at layer {layer!r} holds NaN or infinite values"
                raise ExplainError(msg)
            result[layer] = self.layouts[layer].to_grid(gradient.float() / scale)
        return result


def forward_split(
    forward: Forward | nn.Module,
    x: Inputs | Tensor,
    layers: Sequence[str] | str,
    *,
    graph: bool = True,
    exact_tail: bool = True,
) -> Captured:
    """Run a network without a graph up to the earliest of `layers` and with one from there on.

    Args:
        forward: the network and how to run it.
        x: inputs; neither changed nor required to need gradients.
        layers: dotted module names; ``name#2`` means the third call of a module that runs several times;
            `INPUT` cuts at the image.
        graph: False captures activations alone, for methods without gradients.
        exact_tail: under autocast, run the layers after the cut in float32. Networks that feed a half-precision
            skip connection into a layer of its own cannot; they keep autocast throughout.

    Raises:
        ExplainError: unknown layer, a layer that does not run or has no spatial output, NaN, or an
            output without scores.
    """
    run = forward if isinstance(forward, Forward) else Forward(forward)
    inputs = x if isinstance(x, Inputs) else as_inputs(x)
    names = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    prepared = run.prepared_for(inputs)
    if prepared is not None and names == [prepared.layer]:
        return _checked(names, *_behind_stem(run, prepared, inputs, graph=graph))
    captured: dict[str, Tensor] = {}
    layouts: dict[str, Layout] = {}
    counts: dict[str, int] = {}
    hooked = {name: module_named(run.network, name.partition("#")[0]) for name in names if name != INPUT}

    def cut(name: str) -> Callable[..., Any]:
        wanted = int(name.partition("#")[2] or 0)

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            call = counts[name] = counts.get(name, -1) + 1
            if call != wanted:
                return None
            layout = None
            if isinstance(output, Tensor):
                layout = find_layout(output.shape, len(inputs.x), inputs.spatial, run.network, run.grid)
            if layout is None:
                msg = f"layer {name!r} returns no spatial feature map but {describe(output)}"
                raise ExplainError(msg)
            layouts[name] = layout
            if output.requires_grad and torch.is_grad_enabled():
                captured[name] = output
            else:
                if (
                    run.autocast is not None and exact_tail
                ):  # the tail in float32: half-precision gradients are too coarse
                    torch.set_autocast_enabled(output.device.type, False)
                    output = output.float()
                captured[name] = output.detach()
                if graph:
                    captured[name].requires_grad_()
                    torch.set_grad_enabled(True)  # until the surrounding no_grad ends
            return captured[name].clone()  # what follows may work in place, which a leaf does not allow

        return hook

    with evaluation(run.network), torch.inference_mode(False), torch.no_grad(), _precision(inputs.x, run.autocast):
        handles = [module.register_forward_hook(cut(name)) for name, module in hooked.items()]
        try:
            if INPUT in names:
                leaf = inputs.x.detach().clone().requires_grad_()
                captured[INPUT], layouts[INPUT] = leaf, Layout("map", inputs.spatial)
                torch.set_grad_enabled(True)
                inputs = inputs.replace(leaf.clone())
            raw = inputs.call(run.network)
        except RuntimeError:
            if run.autocast is None or not exact_tail or not captured:
                raise
            raw = None
        finally:
            for handle in handles:
                handle.remove()
    if raw is None:
        return forward_split(run, x, names, graph=graph, exact_tail=False)
    output = select_output(raw, run.output)
    for name in names:
        if name not in captured:
            runs = counts.get(name, -1) + 1
            msg = f"layer {name!r} ran {runs} time(s) in this network, not often enough to be captured"
            raise ExplainError(msg)
    return _checked(names, output, captured, layouts)


def _behind_stem(
    run: Forward, prepared: Prepared, inputs: Inputs, *, graph: bool
) -> tuple[Tensor, dict[str, Tensor], dict[str, Layout]]:
    """Prepared layers up to the target, the network's own from there on; without a graph all of it prepared."""
    layer = prepared.layer
    with torch.inference_mode(False), torch.no_grad():
        values = prepared.stem(inputs.x)
    leaf = values[layer].detach().requires_grad_(graph)
    layout = find_layout(leaf.shape, len(inputs.x), inputs.spatial, run.network, run.grid)
    if layout is None:
        msg = f"layer {layer!r} returns no spatial feature map but {describe(leaf)}"
        raise ExplainError(msg)
    if not graph:
        return prepared.whole(inputs.x), {layer: leaf}, {layer: layout}
    replay = replaying(run.network, run.plan, {**values, layer: leaf})
    with torch.inference_mode(False), torch.enable_grad(), replay:
        output = select_output(inputs.call(run.network), run.output)
    return output, {layer: leaf}, {layer: layout}


def _checked(
    names: Sequence[str], output: Tensor, captured: Mapping[str, Tensor], layouts: Mapping[str, Layout]
) -> Captured:
    if not all(all_finite(tensor) for tensor in (output, *(captured[name] for name in names))):
        msg = "the network produced NaN or infinite values for this study"
        raise ExplainError(msg)
    return Captured(output, captured, layouts)


def infer(forward: Forward, inputs: Inputs, known: dict[int, Known] | None = None) -> Tensor:
    """Selected output of a plain inference, in evaluation mode, without a graph.

    Args:
        forward: network and how to run it.
        inputs: the batch.
        known: takes what `infer_versions` will need of the batch.
    """
    prepared = forward.prepared_for(inputs)
    if prepared is not None:
        return prepared.whole(inputs.x) if known is None else prepared.clean(inputs.x, known)
    with (
        evaluation(forward.network),
        torch.inference_mode(False),
        torch.no_grad(),
        _precision(inputs.x, forward.autocast),
    ):
        return select_output(inputs.call(forward.network), forward.output)


def infer_versions(forward: Forward, inputs: Inputs, images: Tensor, rows: Tensor, known: dict[int, Known]) -> Tensor:
    """As `infer`, for other images ``[N, C, *S]``; row i is a version of sample ``rows[i]`` of `inputs`.

    A prepared network computes only what differs from the sample, where that is less.

    Args:
        forward: network and how to run it.
        inputs: the batch.
        images: versions.
        rows: ``[N]``.
        known: what a prepared network makes of each sample, kept here from call to call; empty at first.
    """
    prepared = forward.prepared_for(inputs)
    if prepared is None or not prepared.fits(images):
        return infer(forward, inputs.replace(images, rows))
    order, counts = torch.unique_consecutive(rows, return_counts=True)
    pieces = torch.split(images, counts.tolist())
    return torch.cat(
        [
            prepared.changed(inputs.x[row], piece, known.setdefault(row, {}))
            for row, piece in zip(order.tolist(), pieces, strict=True)
        ]
    )


def check_layer(network: nn.Module, layer: str) -> None:
    """Reject a layer name the network does not have.

    Raises:
        ExplainError: with the nearest names.
    """
    if layer != INPUT:
        module_named(network, layer.partition("#")[0])


@contextmanager
def _precision(x: Tensor, dtype: torch.dtype | None) -> Iterator[None]:
    if dtype is None:
        yield
        return
    with torch.autocast(x.device.type, dtype=dtype):
        yield
