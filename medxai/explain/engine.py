"""`explain`: every requested method, target and layer of a batch from one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.finite import all_finite
from medxai.explain.inputs import Inputs, as_inputs
from medxai.explain.masking.registry import get_operator
from medxai.explain.method import Method
from medxai.explain.progress import Meter, Report
from medxai.explain.registry import get_method, make_options
from medxai.explain.result import Explanations, TensorExplanation
from medxai.explain.run import Run, Shared
from medxai.explain.split import INPUT, Captured, Forward, check_layer, forward_split, infer
from medxai.explain.target import Request, Target, resolve
from medxai.explain.target_layer import find_stages, find_target_layer

if TYPE_CHECKING:
    from medxai.predict.local_changes import Known
    from medxai.predict.prepared import Prepared

_DIMS = {1: "1d", 2: "2d", 3: "3d"}


def explain(
    model: nn.Module,
    x: Any,
    *,
    methods: str | Sequence[str] = ("gradcam",),
    classes: Request | Sequence[Request] = "top1",
    layers: str | Sequence[str] = "auto",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    output: int | str | Callable[[Any], Tensor] | None = None,
    primary: int | str | None = None,
    grid: Sequence[int] | None = None,
    autocast: torch.dtype | None = None,
    masking: str = "zero",
    seed: int = 0,
    chunk: int | None = None,
    prepared: Prepared | None = None,
    progress: Report | None = None,
) -> Explanations:
    """Explain a batch; a batch of n equals n single calls, and the model comes back as it was.

    Args:
        model: any module; frozen parameters and either mode will do.
        x: image ``[B, C, *S]`` with ``S`` ``(H, W)``, ``(D, H, W)`` or ``(T, H, W)``; or a tuple of positional
            or a mapping of named inputs. MetaTensors give MetaTensors back. Not changed.
        methods: registry names (``medxai methods`` lists them).
        classes: a class for all samples, ``top1`` .. ``topK``, a tensor ``[B]`` with one class for each
            sample, a function of the output that returns ``[B]``; or a list of such requests, each answered.
        layers: dotted names, ``name#2`` for the third call of a module; ``auto`` costs one more inference, so
            name the layer when many inputs follow.
        options: options of methods, ``{"scorecam": {"channels": 64}}``.
        output: which part of the model's output holds the scores; see `select_output`.
        primary: which of several inputs is explained; the first image by default.
        grid: token grid of a transformer, where it cannot be told from patch size and shapes.
        autocast: lower precision below the target layer; maps are float32 all the same.
        masking: what perturbation methods put where they remove: an operator of `medxai.explain.masking`.
        seed: of every random draw.
        chunk: samples per forward of methods that repeat it; None fits them into the free memory.
        prepared: compiled form of the model (`medxai bundle prepare`), used where it fits the input.
        progress: called while methods run that repeat the forward.

    Raises:
        ExplainError: unknown method, option, layer or class; an input, output or layer that does not fit;
            NaN. Raised before any long work starts.
    """
    with torch.inference_mode(False):  # whatever mode the caller is in
        return _explain(
            Forward(model, autocast, output, None if grid is None else tuple(grid), prepared),
            as_inputs(x, primary),
            load_methods([methods] if isinstance(methods, str) else methods, options),
            list(classes) if isinstance(classes, (list, tuple)) else [cast("Request", classes)],
            layers,
            masking,
            seed,
            chunk,
            progress,
        )


def _explain(
    forward: Forward,
    inputs: Inputs,
    chosen: Sequence[tuple[Method, Any]],
    requests: Sequence[Request],
    layers: str | Sequence[str],
    masking: str,
    seed: int,
    chunk: int | None,
    progress: Report | None,
) -> Explanations:
    get_operator(masking)
    for method, _ in chosen:
        check_dims(method, len(inputs.spatial))
    if not requests:
        msg = "no class was asked for"
        raise ExplainError(msg)
    single, several = choose_layers(forward, inputs, layers, [method for method, _ in chosen])
    known: dict[int, Known] = {}
    captured = capture(forward, inputs, [*single, *several], [method for method, _ in chosen], known)
    targets = [resolve(request, captured.logits) for request in requests]
    shared = Shared(forward, inputs, captured, seed, chunk, masking, tuple(several), known=known)
    jobs = [
        (index, method, opts, target, layer)
        for index, (method, opts, layer, target) in enumerate(
            (method, opts, layer, target)
            for method, opts in chosen
            for layer in (_layers_of(method, single, several))
            for target in targets
        )
    ]
    done: dict[int, TensorExplanation] = {}
    # What repeats the forward comes last, so that a method that cannot run says so at once.
    for index, method, opts, target, layer in sorted(jobs, key=lambda job: job[1].INFO.repeats):
        run = Run(shared, target, layer, Meter(method.INFO.name, progress if method.INFO.repeats else None))
        raw = attribute(method, run, opts)
        name = layer if method.INFO.layer == "one" else "+".join(several) if method.INFO.layer == "several" else INPUT
        done[index] = _result(method, opts, run, raw, name)
    return Explanations([done[index] for index in sorted(done)], captured.logits.detach().float(), tuple(single))


def load_methods(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None
) -> list[tuple[Method, Any]]:
    """Methods with their options.

    Raises:
        ExplainError: unknown method or option, options for a method that was not asked for, or no method.
    """
    if not names:
        msg = "no method was asked for"
        raise ExplainError(msg)
    for name in options or {}:
        if name not in names:
            msg = f"options were given for {name}, which is not among the methods: {', '.join(names)}"
            raise ExplainError(msg)
    return [(get_method(name), make_options(name, (options or {}).get(name))) for name in dict.fromkeys(names)]


def check_dims(method: Method, dims: int) -> None:
    """Reject a method that is not defined for images with that many spatial axes.

    Raises:
        ExplainError: with the kinds it is defined for.
    """
    kind = _DIMS.get(dims, f"{dims}d")
    if kind not in method.INFO.dims and not (kind == "3d" and "t2d" in method.INFO.dims):
        msg = f"{method.INFO.name} is defined for {', '.join(method.INFO.dims)}, not for {kind}"
        raise ExplainError(msg)


def choose_layers(
    forward: Forward, inputs: Inputs, layers: str | Sequence[str], methods: Sequence[Method]
) -> tuple[list[str], list[str]]:
    """Layers of single-layer methods, and those of methods that combine several.

    Raises:
        ExplainError: unknown layer, or fewer than two for a method that combines several.
    """
    named = [] if layers == "auto" else [layers] if isinstance(layers, str) else list(layers)
    for layer in named:
        check_layer(forward.network, layer)
    combining = [method.INFO.name for method in methods if method.INFO.layer == "several"]
    single_needed = any(method.INFO.layer == "one" for method in methods)
    if named:
        if combining and len(named) < 2:
            msg = f"{combining[0]} combines layers; name two or more, or leave the choice to auto"
            raise ExplainError(msg)
        return (named if single_needed else []), (named if combining else [])
    single = [find_target_layer(forward, inputs)] if single_needed else []
    several = find_stages(forward, inputs) if combining else []
    if combining and len(several) < 2:
        msg = f"{combining[0]} combines layers, and this network has feature maps of one size only"
        raise ExplainError(msg)
    return single, several


def capture(
    forward: Forward,
    inputs: Inputs,
    layers: Sequence[str],
    methods: Sequence[Method],
    known: dict[int, Known] | None = None,
) -> Captured:
    """The one forward pass, with a graph from where the methods need it; `known` as in `infer`."""
    names = list(dict.fromkeys(layers))
    if any(method.INFO.graph == "input" for method in methods):
        names.append(INPUT)
    if not names:
        return Captured(infer(forward, inputs, known), {}, {})
    return forward_split(forward, inputs, names, graph=any(method.INFO.graph != "none" for method in methods))


def attribute(method: Method, run: Run, options: Any) -> Tensor:
    """Raw map ``[B, *s]`` of one method.

    Raises:
        ExplainError: the method cannot run here, or its map is not finite.
    """
    with torch.inference_mode(False), torch.no_grad():
        raw = method.attribute(run, options).detach().float()
    if not all_finite(raw):
        msg = f"{method.INFO.name} produced NaN or infinite values"
        raise ExplainError(msg)
    return raw


def _layers_of(method: Method, single: Sequence[str], several: Sequence[str]) -> Sequence[str]:
    if method.INFO.layer == "one":
        return single
    return several[-1:] if method.INFO.layer == "several" else [INPUT]


def _result(method: Method, options: Any, run: Run, raw: Tensor, layer: str) -> TensorExplanation:
    flags: list[set[str]] = [set() for _ in range(len(raw))]
    for row, empty in enumerate((raw.flatten(1).amax(1) <= 0).tolist()):
        if empty:
            flags[row].add("empty")
        if method.INFO.class_agnostic:
            flags[row].add("class_agnostic")
    for name, where in run.flags.items():
        for row in torch.nonzero(where).flatten().tolist():
            flags[row].add(name)
    target: Target = run.target
    return TensorExplanation(
        method=method.INFO.name,
        layer=layer,
        target=target.label,
        classes=target.classes,
        score=run.score,
        raw=raw,
        spatial=run.spatial,
        flags=tuple(frozenset(row) for row in flags),
        parameters={**asdict(options), "seed": run.shared.seed},
        report=run.report,
        input_affine=run.shared.inputs.affine,
    )
