"""One prepared study -> prediction and maps in the patient, from one forward pass per window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from medxai.errors import ExplainError
from medxai.explain.engine import raw_maps
from medxai.explain.fuse import enlarge, fuse_windows
from medxai.explain.registry import get_method
from medxai.explain.split import forward_split
from medxai.explain.target_layer import find_target_layer
from medxai.predict.infer import fuse_logits, make_prediction
from medxai.predict.windows import Windows, plan_windows
from medxai.study import Explanation, Flag, FloatArray, Prediction, Study

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medxai.predict.bundle import Bundle
    from medxai.prepare.prepare import Prepared

#: Noise of the stability check, as a share of the input's standard deviation, and the correlation below
#: which the map counts as unstable.
_NOISE, _STABLE = 0.02, 0.8
#: Correlation of the decided class's map with the runner-up's above which it says nothing about the class.
_SAME = 0.99


@dataclass(frozen=True)
class ExplainOptions:
    """How to explain one study.

    Attributes:
        methods: registry names, the primary one first.
        class_label: class to explain; None for the decided one.
        batch_size: windows per forward.
        device: torch device.
        autocast: lower precision of the forward pass.
        stability: repeat the strongest window with slight noise.
    """

    methods: tuple[str, ...] = ("gradcam",)
    class_label: str | None = None
    batch_size: int = 4
    device: str = "cpu"
    autocast: torch.dtype | None = None
    stability: bool = True


def target_layer(bundle: Bundle, network: nn.Module) -> str:
    """The bundle's target layer, or the automatic one for an input of window size."""
    if bundle.spec.target_layer:
        return bundle.spec.target_layer
    spec = bundle.spec.preparation
    device = next(network.parameters()).device
    return find_target_layer(network, torch.zeros(1, spec.channels, *spec.window, device=device))


def explain_study(
    bundle: Bundle,
    network: nn.Module,
    study: Study,
    prepared: Prepared,
    options: ExplainOptions,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Prediction, tuple[Explanation, ...]]:
    """Predict and explain one study.

    Windows (or the frames of a cine) run in batches; logits and maps are fused with the same weights. Raw
    maps of every class are kept until the fused decision is known, then only those of the explained class.

    Args:
        bundle: model and its metadata.
        network: the bundle's network on `options.device`.
        study: the study, for its grid.
        prepared: network input and the way back.
        options: methods, class, device.
        progress: called with (windows done, windows in all).

    Raises:
        ExplainError: unknown class or layer, NaN in the network.
    """
    spec = bundle.spec
    layer = target_layer(bundle, network)
    windows = plan_windows(prepared.pixels.shape[1:], spec.preparation)
    labels = spec.labels
    if options.class_label is not None and options.class_label not in labels:
        msg = f"the model has no class {options.class_label!r}; it has {', '.join(labels)}"
        raise ExplainError(msg)
    logits: list[FloatArray] = []
    parts: dict[tuple[str, int], list[FloatArray]] = {}
    for start in range(0, len(windows), options.batch_size):
        x = _tensor(windows, prepared, range(start, min(start + options.batch_size, len(windows))), options.device)
        captured = forward_split(network, x, layer, options.autocast)
        logits.append(captured.logits.detach().float().cpu().numpy())
        for key, value in raw_maps(captured, options.methods, range(len(labels))).items():
            parts.setdefault(key, []).append(value.cpu().numpy())
        if progress:
            progress(min(start + options.batch_size, len(windows)), len(windows))
    window_logits = np.concatenate(logits)
    prediction = make_prediction(bundle, window_logits)
    index = prediction.index if options.class_label is None else labels.index(options.class_label)
    _, weights = fuse_logits(window_logits, spec)
    explanations = []
    for method in options.methods:
        raw = np.concatenate(parts[method, index])
        others = [c for c in np.argsort(prediction.logits)[::-1] if c != index]
        rival = np.concatenate(parts[method, int(others[0])]) if others else None
        explanation = _place(bundle, study, prepared, windows, prediction, method, layer, index, raw, weights[:, index])
        explanations.append(_class_flag(explanation, raw, rival))
    if options.stability:
        strongest = int(np.argmax(weights[:, index]))
        explanations = _stability(network, prepared, windows, strongest, explanations, options, layer)
    return prediction, tuple(explanations)


def _tensor(windows: Windows, prepared: Prepared, which: Sequence[int], device: str) -> Tensor:
    return torch.from_numpy(windows.extract(prepared.pixels, which)).to(device)


def _place(
    bundle: Bundle,
    study: Study,
    prepared: Prepared,
    windows: Windows,
    prediction: Prediction,
    method: str,
    layer: str,
    index: int,
    raw: FloatArray,
    weights: FloatArray,
) -> Explanation:
    """Fuse, rectify and take back to the source grid."""
    grid = prepared.grid
    size = windows.size
    if study.volume.axes == "THW":  # one window per frame, none overlapping
        frames = enlarge(raw, size) * (weights * len(raw)).reshape(-1, 1, 1)
        fused = frames.astype(np.float32)
    else:
        fused = fuse_windows(raw, windows.offsets, weights, size, windows.importance, grid.shape)
    input_map = np.maximum(fused, 0.0)
    placed = np.maximum(grid.backward(input_map), 0.0)
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
    if get_method(method).CLASS_AGNOSTIC:
        flags.add("class_agnostic")
        reason = "the method does not look at the class"
    return Explanation(
        method=method,
        layer=layer,
        class_index=index,
        class_label=prediction.labels[index],
        score=float(prediction.logits[index]),
        raw=raw,
        input_map=input_map,
        map=placed,
        affine=study.volume.affine,
        input_affine=grid.affine,
        cell_mm=(cell[0], cell[1], cell[2]),
        model_sha256=bundle.sha256,
        parameters={"windows": len(windows), "overlap": bundle.spec.preparation.overlap, "fusion": bundle.spec.fusion},
        flags=frozenset(flags),
        reason=reason,
    )


def _class_flag(explanation: Explanation, raw: FloatArray, rival: FloatArray | None) -> Explanation:
    if rival is None or "empty" in explanation.flags:
        return explanation
    likeness = _correlation(np.maximum(raw, 0), np.maximum(rival, 0))
    if likeness <= _SAME:
        return explanation
    reason = f"the map of the runner-up class is the same (correlation {likeness:.3f})"
    return _flag(explanation, "class_agnostic", reason)


def _stability(
    network: nn.Module,
    prepared: Prepared,
    windows: Windows,
    strongest: int,
    explanations: list[Explanation],
    options: ExplainOptions,
    layer: str,
) -> list[Explanation]:
    x = _tensor(windows, prepared, [strongest], options.device)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    captured = forward_split(network, x + noise * (_NOISE * x.std()), layer, options.autocast)
    noisy = raw_maps(captured, options.methods, [explanations[0].class_index])
    result = []
    for explanation in explanations:
        again = noisy[explanation.method, explanation.class_index][0].cpu().numpy()
        clean = explanation.raw[strongest]
        likeness = _correlation(np.maximum(clean, 0), np.maximum(again, 0))
        if "empty" not in explanation.flags and likeness < _STABLE:
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
