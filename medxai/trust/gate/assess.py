"""The fast profile: every explanation of one study judged on its most decisive window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from medxai.explain.engine import capture, load_methods
from medxai.explain.inputs import as_inputs
from medxai.explain.run import Run, Shared
from medxai.explain.split import INPUT, Forward
from medxai.explain.target import resolve
from medxai.predict.chest_ct import misfits
from medxai.predict.infer import fuse_logits
from medxai.predict.windows import Windows, plan_windows
from medxai.prepare.lungs import lungs
from medxai.study import Explanation, Prediction, Study, TrustReport, Volume
from medxai.trust.body import anatomy, graphics
from medxai.trust.gate.consensus import consensus
from medxai.trust.gate.figures import MASKING, NAMES, Bench, Candidate
from medxai.trust.gate.look import Look
from medxai.trust.gate.verdict import Calibration, cap, judge
from medxai.trust.lungs import alarm
from medxai.trust.metal import metal

if TYPE_CHECKING:
    from medxai.explain.method import Method
    from medxai.explain.study_map import ExplainOptions
    from medxai.predict.bundle import Bundle
    from medxai.prepare.grid import Grid
    from medxai.prepare.prepare import Prepared


#: Share of a picture that letters and marks may cover.
_MARKED = 0.001


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps of one window by one network.

    Attributes:
        values: ``[*s]`` of the explained class.
        rival: of the runner-up; None for a method that would have to run again for it.
        noisy: of the noisy image; likewise.
        forwards: it took.
    """

    values: Tensor
    rival: Tensor | None
    noisy: Tensor | None
    forwards: int


def strongest_window(prediction: Prediction, bundle: Bundle, index: int) -> int:
    """The window with the largest weight in the fused decision for a class."""
    assert prediction.window_logits is not None  # noqa: S101
    _, weights = fuse_logits(prediction.window_logits, bundle.spec)
    return int(np.argmax(weights[:, index]))


def explain_window(
    forward: Forward, x: Tensor, index: int, method: str, options: object, layer: str, seed: int = 0
) -> Maps:
    """Maps of a window for a class, its runner-up and slight noise, in two forwards.

    Args:
        forward: the network and how to run it.
        x: ``[1, C, *S]``.
        index: class.
        method: one that reads the layer of a single forward.
        options: of the method.
        layer: target layer.
        seed: of the noise.
    """
    found = load_methods([method])[0][0]
    look = Look(forward, x, layer, [found], seed=seed)
    own, rival = (look.map(found, options, which) for which in (index, look.rival(index)))
    noisy = look.map(found, options, index, noisy=True)
    return Maps(own, rival, noisy, look.forwards)


def assess_study(
    bundle: Bundle,
    network: nn.Module,
    study: Study,
    prepared: Prepared,
    prediction: Prediction,
    explanations: Sequence[Explanation],
    options: ExplainOptions,
    calibration: Calibration | None,
) -> tuple[TrustReport, ...]:
    """A report for each explanation, in at most ten forwards for the first and five for each further one.

    Args:
        bundle: model.
        network: on `options.device`.
        study: as ingested.
        prepared: network input.
        prediction: with window logits.
        explanations: of one class.
        options: as they were explained with.
        calibration: of the bundle; None without one.
    """
    masking = calibration.masking if calibration else MASKING
    forward = Forward(network, options.autocast, prepared=options.prepared)
    windows = plan_windows(prepared.pixels.shape[1:], bundle.spec.preparation)
    region = anatomy_of(study.volume, prepared.grid)
    methods = {name: _method(name, options) for name in {e.method: None for e in explanations}}
    judged = [e for e in explanations if "empty" not in e.flags]
    reports = []
    bench: Bench | None = None
    look: Look | None = None
    for explanation in explanations:
        index = explanation.class_index
        which = strongest_window(prediction, bundle, index)
        method, method_options = methods[explanation.method]
        own = torch.from_numpy(np.ascontiguousarray(explanation.raw[which]))
        figures, agreement, spent = dict.fromkeys(NAMES, float("nan")), {}, 0
        if explanation in judged:
            if look is None or bench is None:
                x = torch.from_numpy(windows.extract(prepared.pixels, [which])).to(options.device)
                needs = [m for m, _ in methods.values() if _shares(m)]
                layer = next((e.layer for e in judged if _shares(methods[e.method][0])), bundle.spec.target_layer)
                look = Look(forward, x, layer, needs, families=True, seed=options.seed)
                bench = Bench(_run(look, index, forward), masking, options.seed)
                spent += look.forwards + (not look.plain)
            before = bench.forwards, look.forwards
            rival, noisy = None, None
            if _shares(method):
                rival = look.map(method, method_options, look.rival(index))
                noisy = look.map(method, method_options, index, noisy=True)
            figures = bench.figures(Candidate(own, rival, noisy), window_of(region, windows, which))
            others = look.family_maps(index)
            for other in judged:
                others.setdefault(methods[other.method][0].INFO.family, torch.from_numpy(other.raw[which]))
            agreement = consensus(own, method.INFO.family, others, look.grid)
            spent += bench.forwards - before[0] + look.forwards - before[1]
        reports.append(
            judge(
                figures,
                calibration,
                method=explanation.method,
                label=explanation.class_label,
                flags=explanation.flags,
                masking=tuple(masking),
                forwards=spent,
                agreement=agreement,
            )
        )
    if bundle.spec.organ == "lungs":
        found = lungs(study.volume)
        reports = [alarm(r, e, study.volume, found) for r, e in zip(reports, explanations, strict=True)]
    for doubt in (_unstated_organ(bundle, study), _marks(bundle, study), *_misfits(bundle, study, options)):
        if doubt is not None:
            reports = [cap(report, doubt) for report in reports]
    return tuple(reports)


def _misfits(bundle: Bundle, study: Study, options: ExplainOptions) -> Iterator[str]:
    """What a chest CT is that the model was not made for: metal, and whatever ``--force`` went over."""
    if bundle.spec.chest is None:
        return
    if options.force:
        yield from (f"forced: the model {wrong}" for wrong in misfits(bundle.spec.chest, study.volume))
    if (words := metal(study.volume)) is not None:
        yield words


def _marks(bundle: Bundle, study: Study) -> str | None:
    """Why letters or marks in a picture make its answer doubtful; None where there are hardly any.

    Of 136 recordings of lungs one has more than `_MARKED`.
    """
    if bundle.spec.reject is None or study.volume.axes == "DHW":
        return None
    pixels = study.volume.pixels
    chosen = pixels[:, :: max(1, pixels.shape[1] // 8)] if study.volume.axes == "THW" else pixels[:, None]
    share = max(float(graphics(chosen[:, index]).mean()) for index in range(chosen.shape[1]))
    if share <= _MARKED:
        return None
    return f"letters or marks cover {share:.1%} of the picture, and the model learnt from pictures without"


def _unstated_organ(bundle: Bundle, study: Study) -> str | None:
    """Why nobody knows that the picture shows the organ that the model is for; None where the header says so.

    Networks that may decline pictures still take organs for theirs that they were not taught to decline: an
    echocardiogram passes for a lung.
    """
    if bundle.spec.reject is None or study.kind != "dicom" or study.volume.body_part:
        return None
    wanted = bundle.spec.body_parts[0].lower()
    return f"the header names no body part, and the model cannot tell every other organ from {wanted}"


def _method(name: str, options: ExplainOptions) -> tuple[Method, Any]:
    given = {known: values for known, values in options.method_options.items() if known == name}
    return load_methods([name], given)[0]


def _shares(method: Method) -> bool:
    """Whether a method's maps come out of one forward at the target layer."""
    return method.INFO.layer == "one" and not method.INFO.repeats


def _run(look: Look, index: int, forward: Forward) -> Run:
    """The question behind the masked versions; a clean forward of its own where those run in another precision."""
    shared = look.clean
    if not look.plain:
        shared = replace(shared, captured=capture(forward, shared.inputs, [], []))
    return Run(shared, resolve(index, shared.captured.logits), INPUT)


def anatomy_of(volume: Volume, grid: Grid) -> Tensor | None:
    """Anatomy ``[1, *S']`` (1 inside) on the prepared grid, the padding outside; None where it cannot be told."""
    region = anatomy(volume)
    return None if region is None else torch.from_numpy(grid.forward(region[None].astype(np.float32), 0.0) > 0.5)


def window_of(region: Tensor | None, windows: Windows, which: int) -> Tensor | None:
    """One window ``[*size]`` of what `anatomy_of` found; None where a window holds next to nothing of it."""
    if region is None:
        return None
    cut = torch.from_numpy(windows.extract(region.numpy().astype(np.float32), [which])[0, 0] > 0.5)
    return cut if float(cut.float().mean()) >= 0.02 else None


def open_bench(forward: Forward, x: Tensor, index: int, masking: Sequence[str], seed: int = 0) -> Bench:
    """The bench of one window; one clean forward."""
    inputs = as_inputs(x)
    captured = capture(forward, inputs, [], [])
    # One at a time: measuring how many fit would cost a forward.
    shared = Shared(forward, inputs, captured, seed, chunk=1)
    return Bench(Run(shared, resolve(index, captured.logits), INPUT), masking, seed)
