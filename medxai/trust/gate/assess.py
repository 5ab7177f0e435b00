"""The fast profile: every explanation of one study judged on its most decisive window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medxai.explain.engine import attribute, capture, load_methods
from medxai.explain.inputs import as_inputs
from medxai.explain.run import Run, Shared
from medxai.explain.split import INPUT, Forward
from medxai.explain.target import resolve
from medxai.predict.infer import fuse_logits
from medxai.predict.windows import Windows, plan_windows
from medxai.study import Explanation, Prediction, Study, TrustReport, Volume
from medxai.trust.body import anatomy
from medxai.trust.gate.figures import MASKING, NOISE, Bench, Candidate
from medxai.trust.gate.verdict import Calibration, judge

if TYPE_CHECKING:
    from medxai.explain.study_map import ExplainOptions
    from medxai.predict.bundle import Bundle
    from medxai.prepare.grid import Grid
    from medxai.prepare.prepare import Prepared


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
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    shared = [
        Shared(forward, as_inputs(given), capture(forward, as_inputs(given), [layer], [found]), seed)
        for given in (x, x + noise * (NOISE * x.std()))
    ]

    def one(which: Shared, target: int) -> Tensor:
        return attribute(found, Run(which, resolve(target, which.captured.logits), layer), options)[0].cpu()

    logits = shared[0].captured.logits.detach()[0]
    if len(logits) > 1:
        others = [c for c in logits.argsort(descending=True).tolist() if c != index]
        rival = one(shared[0], others[0])
    else:
        rival = one(shared[0], 1 - index)
    return Maps(one(shared[0], index), rival, one(shared[1], index), 2)


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
    reports = []
    benches: dict[tuple[int, int], Bench] = {}
    for explanation in explanations:
        index = explanation.class_index
        which = strongest_window(prediction, bundle, index)
        x = torch.from_numpy(windows.extract(prepared.pixels, [which])).to(options.device)
        method = load_methods([explanation.method], options.method_options and {
            name: given for name, given in options.method_options.items() if name == explanation.method
        })[0]  # fmt: skip
        own = torch.from_numpy(np.ascontiguousarray(explanation.raw[which]))
        rival, noisy, spent = None, None, 0
        if method[0].INFO.layer == "one" and not method[0].INFO.repeats and "empty" not in explanation.flags:
            maps = explain_window(forward, x, index, explanation.method, method[1], explanation.layer, options.seed)
            rival, noisy, spent = maps.rival, maps.noisy, maps.forwards
        if (which, index) not in benches:
            benches[which, index] = open_bench(forward, x, index, masking, options.seed)
            spent += 1
        bench = benches[which, index]
        before = bench.forwards
        figures = bench.figures(Candidate(own, rival, noisy), window_of(region, windows, which))
        reports.append(
            judge(
                figures,
                calibration,
                method=explanation.method,
                label=explanation.class_label,
                flags=explanation.flags,
                masking=tuple(masking),
                forwards=spent + bench.forwards - before,
            )
        )
    return tuple(reports)


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
