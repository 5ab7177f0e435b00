"""One prepared study -> prediction and maps in the patient, from one forward pass per window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medxai.errors import ExplainError
from medxai.explain.engine import attribute, capture, check_dims, load_methods
from medxai.explain.fuse import enlarge, fuse_windows
from medxai.explain.inputs import as_inputs
from medxai.explain.progress import Meter, Report
from medxai.explain.run import Run, Shared
from medxai.explain.split import INPUT, Forward
from medxai.explain.target import Target, resolve
from medxai.explain.target_layer import find_stages, find_target_layer
from medxai.predict.confidence import ask_again
from medxai.predict.infer import check_answer, fuse_logits, make_prediction
from medxai.predict.windows import Windows, plan_windows
from medxai.settings import SlideOptions
from medxai.study import Explanation, Flag, FloatArray, Prediction, Study

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medxai.explain.method import Method
    from medxai.predict.bundle import Bundle
    from medxai.predict.prepared import Prepared as CompiledNetwork
    from medxai.prepare.prepare import Prepared

#: Noise of the stability check, as a share of the input's standard deviation, and the correlation below
#: which the map counts as unstable.
_NOISE, _STABLE = 0.02, 0.8
#: Correlation of the decided class's map with the runner-up's above which it says nothing about the class.
_SAME = 0.99
#: Steps of progress per window.
_FINE = 100


@dataclass(frozen=True)
class ExplainOptions:
    """How to explain one study.

    Attributes:
        methods: registry names, the primary one first.
        method_options: options of methods by name.
        layer: target layer instead of the bundle's.
        class_label: class to explain; None for the decided one.
        batch_size: windows per forward.
        device: torch device.
        autocast: lower precision of the forward pass.
        stability: repeat the strongest window with slight noise.
        masking: what perturbation methods put where they remove.
        seed: of every random draw.
        prepared: compiled form of the bundle's network.
        force: explain what the network calls none of its own.
        slide: how whole slides are decided.
    """

    methods: tuple[str, ...] = ("gradcam",)
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    layer: str | None = None
    class_label: str | None = None
    batch_size: int = 4
    device: str = "cpu"
    autocast: torch.dtype | None = None
    stability: bool = True
    masking: str = "zero"
    seed: int = 0
    prepared: CompiledNetwork | None = None
    force: bool = False
    slide: SlideOptions = field(default_factory=SlideOptions)


@dataclass(frozen=True, eq=False)
class _Plan:
    """One study's windows and how to run them."""

    bundle: Bundle
    forward: Forward
    prepared: Prepared
    windows: Windows
    options: ExplainOptions
    methods: Mapping[str, tuple[Method, Any]]
    layer: str
    several: tuple[str, ...]

    def tensor(self, which: Sequence[int]) -> Tensor:
        """Windows ``[N, C, *size]`` on the device."""
        return torch.from_numpy(self.windows.extract(self.prepared.pixels, which)).to(self.options.device)

    def shared(self, x: Tensor, names: Iterable[str]) -> Shared:
        """One forward of some windows, with a graph as the named methods need it."""
        inputs = as_inputs(x)
        methods = [self.methods[name][0] for name in names]
        layers = [self.layer] if any(m.INFO.layer == "one" for m in methods) else []
        if any(m.INFO.layer == "several" for m in methods):
            layers += self.several
        captured = capture(self.forward, inputs, layers, methods)
        return Shared(
            self.forward, inputs, captured, self.options.seed, masking=self.options.masking, several=self.several
        )

    def run(self, shared: Shared, name: str, target: Target, report: Report | None = None) -> tuple[Run, FloatArray]:
        """One method's raw maps ``[N, *s]`` of one target."""
        method, options = self.methods[name]
        layer = {"one": self.layer, "several": self.several[-1] if self.several else "", "none": INPUT}
        run = Run(shared, target, layer[method.INFO.layer], Meter(name, report))
        return run, attribute(method, run, options).cpu().numpy()

    def layer_name(self, name: str) -> str:
        """What the target layer of a method is called."""
        kind = self.methods[name][0].INFO.layer
        return self.layer if kind == "one" else "+".join(self.several) if kind == "several" else INPUT


def target_layer(bundle: Bundle, network: nn.Module) -> str:
    """The bundle's target layer, or the automatic one for an input of window size."""
    return bundle.spec.target_layer or find_target_layer(network, _example(bundle, network))


def explain_study(
    bundle: Bundle,
    network: nn.Module,
    study: Study,
    prepared: Prepared,
    options: ExplainOptions,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Prediction, tuple[Explanation, ...]]:
    """Predict and explain one study.

    Windows (or the frames of a cine) run in batches; logits and maps are fused with the same weights. Methods
    that read the target layer of the one forward pass are computed for every class and kept until the fused
    decision is known; those that run the network again, or whose maps are as large as the input, follow for
    the explained class alone.

    Args:
        bundle: model and its metadata.
        network: the bundle's network on `options.device`.
        study: the study, for its grid.
        prepared: network input and the way back.
        options: methods, class, device.
        progress: called with (steps done, steps in all).

    Raises:
        ExplainError: unknown class or layer, NaN in the network.
        MismatchError: the network declines the pictures.
    """
    labels = bundle.spec.labels
    if options.class_label is not None and options.class_label not in labels:
        msg = f"the model has no class {options.class_label!r}; it has {', '.join(labels)}"
        raise ExplainError(msg)
    plan = _plan(bundle, network, prepared, options)
    early = [name for name, (method, _) in plan.methods.items() if _early(method)]
    # What repeats the forward comes last, so that a method that cannot run says so at once.
    late = sorted((n for n in plan.methods if n not in early), key=lambda n: plan.methods[n][0].INFO.repeats)
    count = len(plan.windows)
    steps = _FINE * count * (1 + len(late))
    logits: list[FloatArray] = []
    parts: dict[tuple[str, int], list[FloatArray]] = {}
    notes: dict[tuple[str, int], list[_Note]] = {}
    for which in _batches(count, options.batch_size):
        shared = plan.shared(plan.tensor(which), early)
        logits.append(shared.captured.logits.detach().float().cpu().numpy())
        for name in early:
            for index in range(len(labels)):
                run, raw = plan.run(shared, name, resolve(index, shared.captured.logits))
                parts.setdefault((name, index), []).append(raw)
                notes.setdefault((name, index), []).extend(_Note.of(run, row) for row in range(len(which)))
        if progress:
            progress(_FINE * (which[-1] + 1), steps)
    window_logits = np.concatenate(logits)
    prediction = make_prediction(bundle, window_logits)
    check_answer(bundle, prediction, force=options.force)
    if (wanted := bundle.spec.confidence) is not None:
        asked = np.unique(np.linspace(0, count - 1, min(count, wanted.pictures)).round().astype(int)).tolist()
        sure = ask_again(network, plan.tensor(asked), bundle.spec, options.seed)
        prediction = replace(prediction, confidence=sure)
    index = prediction.index if options.class_label is None else labels.index(options.class_label)
    _, weights = fuse_logits(window_logits, bundle.spec)
    strongest = int(np.argmax(weights[:, index]))
    done = count
    for name in late:
        for which in _batches(count, options.batch_size):
            shared = plan.shared(plan.tensor(which), [name])
            within = _report(progress, done, len(which), steps)
            run, raw = plan.run(shared, name, resolve(index, shared.captured.logits), within)
            parts.setdefault((name, index), []).append(raw)
            notes.setdefault((name, index), []).extend(_Note.of(run, row) for row in range(len(which)))
            done += len(which)
            if progress:
                progress(_FINE * done, steps)
    explanations = []
    for name in options.methods:
        raw = np.concatenate(parts[name, index])
        explanation = _place(
            plan, study, prediction, name, index, raw, weights[:, index], notes[name, index][strongest]
        )
        if name in early:
            others = [c for c in np.argsort(prediction.logits)[::-1] if c != index]
            rival = np.concatenate(parts[name, int(others[0])]) if others else None
            explanation = _class_flag(explanation, raw, rival)
        explanations.append(explanation)
    if options.stability:
        explanations = _stability(plan, strongest, index, explanations, early)
    return prediction, tuple(explanations)


def _report(progress: Callable[[int, int], None] | None, done: int, windows: int, steps: int) -> Report | None:
    """What a method that runs the network many times tells while it is at some windows."""
    if progress is None:
        return None
    return lambda at: progress(int(_FINE * (done + windows * at.done / max(at.total, 1))), steps)


def _plan(bundle: Bundle, network: nn.Module, prepared: Prepared, options: ExplainOptions) -> _Plan:
    methods = {
        method.INFO.name: (method, opts) for method, opts in load_methods(options.methods, options.method_options)
    }
    for method, _ in methods.values():
        check_dims(method, len(bundle.spec.preparation.window))
    several: list[str] = []
    if any(method.INFO.layer == "several" for method, _ in methods.values()):
        several = find_stages(network, _example(bundle, network))
    return _Plan(
        bundle,
        Forward(network, options.autocast, prepared=options.prepared),
        prepared,
        plan_windows(prepared.pixels.shape[1:], bundle.spec.preparation),
        options,
        methods,
        options.layer or target_layer(bundle, network),
        tuple(several),
    )


def _example(bundle: Bundle, network: nn.Module) -> Tensor:
    spec = bundle.spec.preparation
    return torch.zeros(1, spec.channels, *spec.window, device=next(network.parameters()).device)


def _early(method: Method) -> bool:
    """Whether a method's maps of all classes come out of the shared forward and are small."""
    return method.INFO.layer == "one" and not method.INFO.repeats


def _batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True)
class _Note:
    """What a method said about one window."""

    flags: frozenset[str]
    report: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run, row: int) -> _Note:
        """Flags and figures of sample `row`; tensors and lists with one entry for each sample are taken apart."""
        batch = len(run.x)
        report = {}
        for key, value in run.report.items():
            if getattr(value, "ndim", 0) > 1:  # a map of its own, not a figure
                continue
            plain = value.tolist() if hasattr(value, "tolist") else value
            if isinstance(plain, list) and len(plain) == batch:
                plain = plain[row]
            if isinstance(plain, (str, int, float, bool)) or (
                isinstance(plain, (list, dict)) and len(str(plain)) < 500
            ):
                report[key] = plain
        return cls(frozenset(name for name, where in run.flags.items() if bool(where[row])), report)


def _place(
    plan: _Plan,
    study: Study,
    prediction: Prediction,
    name: str,
    index: int,
    raw: FloatArray,
    weights: FloatArray,
    note: _Note,
) -> Explanation:
    """Fuse, rectify and take back to the source grid."""
    grid, windows = plan.prepared.grid, plan.windows
    size = windows.size
    method, method_options = plan.methods[name]
    if study.volume.axes == "THW":  # one window per frame, none overlapping
        fused = enlarge(raw, size)
        fused = np.multiply(fused, (weights * len(raw)).reshape(-1, 1, 1).astype(np.float32))
    else:
        fused = fuse_windows(raw, windows.offsets, weights, size, windows.importance, grid.shape)
    input_map = np.maximum(fused, 0.0, out=fused)
    placed = grid.backward(input_map)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    cells = np.array(size) / np.array(raw.shape[1:])
    cell = [0.0] * (3 - len(cells)) + [float(c) for c in cells * spacing[3 - len(cells) :]]
    flags: set[Flag] = set()
    reason = ""
    if not placed.any():
        flags.add("empty")
        reason = (
            "no position speaks for this class"
            if not input_map.any()
            else "all evidence lies outside the image, in the padding of the network's input"
        )
    if method.INFO.class_agnostic:
        flags.add("class_agnostic")
        reason = "the method does not look at the class"
    if "unstable" in note.flags:
        flags.add("unstable")
        reason = "; ".join(part for part in (reason, str(note.report.get("unstable_reason", ""))) if part)
    parameters: dict[str, Any] = {
        "windows": len(windows),
        "overlap": plan.bundle.spec.preparation.overlap,
        "fusion": plan.bundle.spec.fusion,
        **asdict(method_options),
    }
    if method.INFO.repeats:
        parameters["seed"] = plan.options.seed
    if plan.options.prepared is not None:
        parameters["prepared"] = plan.options.prepared.precision
    if note.report:
        parameters["report"] = {key: value for key, value in note.report.items() if not key.endswith("_reason")}
    return Explanation(
        method=name,
        layer=plan.layer_name(name),
        class_index=index,
        class_label=prediction.labels[index],
        score=float(prediction.logits[index]),
        raw=raw,
        input_map=input_map,
        map=placed,
        affine=study.volume.affine,
        input_affine=grid.affine,
        cell_mm=(cell[0], cell[1], cell[2]),
        model_sha256=plan.bundle.sha256,
        parameters=parameters,
        flags=frozenset(flags),
        reason=reason,
    )


def _class_flag(explanation: Explanation, raw: FloatArray, rival: FloatArray | None) -> Explanation:
    if rival is None or explanation.flags & {"empty", "class_agnostic"}:
        return explanation
    likeness = _correlation(np.maximum(raw, 0), np.maximum(rival, 0))
    if likeness <= _SAME:
        return explanation
    reason = f"the map of the runner-up class is the same (correlation {likeness:.3f})"
    return _flag(explanation, "class_agnostic", reason)


def _stability(
    plan: _Plan, strongest: int, index: int, explanations: Sequence[Explanation], names: Sequence[str]
) -> list[Explanation]:
    """Flag the maps of `names` that slight noise changes."""
    x = plan.tensor([strongest])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    shared = plan.shared(x + noise * (_NOISE * x.std()), names) if names else None
    result = []
    for explanation in explanations:
        if shared is None or explanation.method not in names or "empty" in explanation.flags:
            result.append(explanation)
            continue
        _, again = plan.run(shared, explanation.method, resolve(index, shared.captured.logits))
        likeness = _correlation(np.maximum(explanation.raw[strongest], 0), np.maximum(again[0], 0))
        if likeness < _STABLE:
            words = f"slight noise ({_NOISE:.0%} of the input's spread) changes the map (correlation {likeness:.2f})"
            explanation = _flag(explanation, "unstable", words)
        result.append(explanation)
    return result


def _flag(explanation: Explanation, flag: Flag, words: str) -> Explanation:
    reason = f"{explanation.reason}; {words}" if explanation.reason else words
    return replace(explanation, flags=explanation.flags | {flag}, reason=reason)


def _correlation(a: FloatArray, b: FloatArray) -> float:
    """Pearson correlation of two maps; for a constant one, 1 when both are equal and 0 otherwise."""
    x, y = a.astype(np.float64) - a.mean(), b.astype(np.float64) - b.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norm == 0.0:
        return float(np.allclose(a, b))
    return float((x * y).sum()) / norm
