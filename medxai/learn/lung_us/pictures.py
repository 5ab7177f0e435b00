"""Pictures of the evidence: reliability and rejection, accuracy by source, where the maps are largest."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medxai.learn.lung_us.cohort import CLASSES
from medxai.learn.lung_us.frames import SIZE
from medxai.learn.lung_us.metrics import GroupScore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medxai.learn.lung_us.peaks import Peak
    from medxai.learn.lung_us.protocol import Calibration, Certainty

_COLOURS = {"covid": "#c2410c", "bacterial_pneumonia": "#7c3aed", "healthy": "#0f766e"}
_WORDS = {"covid": "COVID-19", "bacterial_pneumonia": "bacterial pneumonia", "healthy": "healthy"}
#: Side of a cell of the map, in pixels of the input.
_CELL = 32
_BLUE, _GREY = "#2563eb", "#94a3b8"


def reliability_picture(calibration: Calibration, kinds: Mapping[str, Certainty]) -> bytes:
    """Draw the reliability diagram before and after the temperature, and accuracy against the share kept (PNG)."""
    sheet = _sheet(9.5, 4.0)
    left, right = sheet.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#888", linewidth=0.8, linestyle=":")
    for bars, colour, words, error in (
        (calibration.bars_before, _GREY, "softmax", calibration.before),
        (calibration.bars, _BLUE, "with temperature", calibration.after),
    ):
        full = [bar for bar in bars if bar.n]
        total = sum(bar.n for bar in full)
        left.plot([bar.confidence for bar in full], [bar.accuracy for bar in full], color=colour, linewidth=1.2)
        left.scatter(
            [bar.confidence for bar in full],
            [bar.accuracy for bar in full],
            s=[12 + 300 * bar.n / total for bar in full],
            color=colour,
            alpha=0.75,
            label=f"{words}: ECE {error.value:.3f}",
        )
    left.set(xlabel="probability of the decided class", ylabel="share that is right", xlim=(0.2, 1.02), ylim=(0, 1.02))
    left.set_title("Reliability of held-out lung frames", fontsize=10)
    left.legend(fontsize=8, loc="upper left", frameon=False)
    right.plot(calibration.kept.kept, calibration.kept.accuracy, color=_BLUE, label="probability")
    for (name, found), colour in zip(kinds.items(), ("#c2410c", "#0f766e", "#111827"), strict=False):
        right.plot(found.kept.kept, found.kept.accuracy, color=colour, linewidth=1.1, label=name)
    right.set(xlabel="share of frames kept", ylabel="accuracy of what is kept", xlim=(0.05, 1), ylim=(0.4, 1.02))
    right.set_title("Rejecting the least sure", fontsize=10)
    right.legend(fontsize=8, loc="lower left", frameon=False, title="by confidence", title_fontsize=8)
    return _png(sheet)


def sources_picture(sources: Mapping[str, GroupScore]) -> bytes:
    """Draw the accuracy of the recordings of each source, its classes by colour (PNG)."""
    names = sorted(sources, key=lambda name: (sources[name].classes, -sources[name].n))
    sheet = _sheet(9.5, 1.1 + 0.24 * len(names))
    axes = sheet.subplots()
    for row, name in enumerate(names):
        score = sources[name]
        colour = _COLOURS[score.classes[0]] if len(score.classes) == 1 else "#475569"
        axes.barh(row, score.accuracy, color=colour, height=0.7)
        axes.scatter(score.accuracy, row, s=14, color=colour, zorder=3, clip_on=False)
        told = f"n = {score.n}, {score.patients} patient{'s' * (score.patients > 1)}"
        axes.text(score.accuracy + 0.02, row, told, fontsize=7, va="center")
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.25), xlabel="share of held-out recordings decided right")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    _legend(sheet, [*((_WORDS[name], _COLOURS[name]) for name in CLASSES), ("several classes", "#475569")])
    axes.set_title("By source: a source with one class cannot tell diseases from devices", fontsize=10)
    return _png(sheet)


def peaks_picture(peaks: Sequence[Peak]) -> bytes:
    """Draw the largest places of the maps of lung frames, one panel for each class that was decided (PNG)."""
    sheet = _sheet(10.0, 3.9)
    random = np.random.default_rng(0)
    for axes, name in zip(sheet.subplots(1, len(CLASSES)), CLASSES, strict=True):
        mine = [peak for peak in peaks if peak.predicted == name and peak.truth in CLASSES]
        for right, colour, words in ((True, _COLOURS[name], "right"), (False, "#111827", "wrong")):
            some = [peak for peak in mine if (peak.truth == name) == right]
            jitter = random.uniform(-11, 11, (2, len(some)))
            axes.scatter(
                [peak.column + d for peak, d in zip(some, jitter[0], strict=True)],
                [peak.row + d for peak, d in zip(some, jitter[1], strict=True)],
                s=5,
                color=colour,
                alpha=0.35,
                linewidths=0,
                label=f"{words} ({len(some)})",
            )
        axes.set(xlim=(0, SIZE), ylim=(SIZE, 0), aspect="equal")
        axes.set_title(f"decided {_WORDS[name]}", fontsize=9)
        axes.set_xlabel("column", fontsize=8)
        axes.set_ylabel("row: depth from the probe", fontsize=8)
        axes.set_xticks(range(0, SIZE + 1, _CELL))
        axes.set_yticks(range(0, SIZE + 1, _CELL))
        axes.grid(color="#e2e8f0", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, loc="lower right", markerscale=2)
    return _png(sheet)


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:31]}..."


def _legend(sheet: Figure, entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=words) for words, colour in entries]
    sheet.legend(handles=patches, fontsize=8, loc="outside lower center", ncols=len(patches), frameon=False)


def _sheet(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _png(sheet: Figure) -> bytes:
    stream = io.BytesIO()
    sheet.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
