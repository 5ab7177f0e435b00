"""The page of guided training: controls with known truth, folds of lung ultrasound, a picture and a table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.files import write_bytes, write_text
from medxai.learn.agreement import Outcome, difference, suspicions
from medxai.learn.guided_controls import (
    AGREES,
    CONTRAST,
    PRIORS,
    RECIPE,
    SWEEP,
    TEST,
    TRAINING,
    WEIGHT,
    Control,
    Found,
    PriorKind,
    make_pictures,
)
from medxai.learn.lung_us.guided_evidence import PLAIN, GuidedFold
from medxai.learn.metrics import Interval
from medxai.learn.prior_guided import MODES, WARM_UP, Mode

PAGE = Path("docs/evidence/guided_training.md")
TABLE = Path("docs/evidence/guided_training_runs.csv")
FOLDS = Path("docs/evidence/guided_training_lung_us.csv")
PICTURE = Path("docs/images/guided_training.png")

Array = npt.NDArray[np.float64]

_INTRO = """# Training guided by a prior: what it buys and what it does not

`medxai.learn.prior_guided` adds one term to the loss that makes a network's map agree with a prior, after Belharbi et
al. 2024 (arXiv:2402.00281). A map that was trained to agree agrees; this page is about what else changes.
`python -m medxai.learn.guided_controls` makes it again.

![Sweep of the weight, comparison of the modes, mean maps](../images/guided_training.png)

## A shortcut with known truth

Pictures of noise with a lesion, whose stripes (amplitude {contrast}, noise 0.5) decide the class, and a marker in the
opposite corner that agrees with the class in {agrees:.0f} % of {training} training pictures and is random in {test}
test pictures. {seeds} seeds of pictures, start and order; {epochs} epochs, in the first {warm_up} of which the weight
rises from 0. *Right* priors lie around the lesion, *mirrored* ones where nothing ever is. Maps are class activation
maps of the decided class. Weight {weight:g}. 95 % intervals by bootstrap over the test pictures of all seeds; they do
not hold the spread between trainings, for which the last column gives the accuracy of each seed.

| guidance | prior | accuracy | follows marker | evidence inside | maximum inside | cosine | deletion | by seed |
|---|---|---|---|---|---|---|---|---|
"""

_BASELINE = """
A map that is the same everywhere has a cosine of {uniform:.3f} with the right priors and {area:.3f} of its evidence
inside. *Deletion* is the area under the curve of the decided class's probability while pieces go in the order of the
map, over the probability itself: smaller is better. All networks have {parameters:,} parameters; at inference nothing
of the guidance is left.

Against no guidance, paired by picture:

| guidance | prior | accuracy | evidence inside | cosine with its own prior | deletion |
|---|---|---|---|---|---|
"""

_SWEEP_HEAD = """
## How much weight (mode `attention`, right priors)

| weight | accuracy | evidence inside | cosine | deletion |
|---|---|---|---|---|
"""

_WRONG_HEAD = """
## Does a wrong prior show?

What `medxai.learn.agreement.suspicions` says of each kind of guidance, from its agreement with the prior that it was
given, its accuracy and its deletion test:

"""

_LINES_HEAD = """
## Lung ultrasound: how often a pleural line is found

Frames of the protocol, of those recordings, in the order of the table, that the priors were made of so far (stills come
first within a class; 137 recordings in all). There is no annotation to compare with; a frame without a line has no
prior and is trained as ever. On a sheet of 48 recordings the line was judged by eye only, while the detector was made:
it fails most where an effusion or a large consolidation leaves no bright line, and where a layer of the wall is
brighter than the pleura.

| class | frames with a line | frames | recordings |
|---|---|---|---|
"""

_NO_FOLDS = """
Guided folds were not trained to the end when this page was written, so that nothing can be said of accuracy on real
clips: `python -m medxai.learn.lung_us.train_fold efficientnet_lite0 --fold 0 --guide outside` trains one, `--data` of
this page's command measures it.
"""

_LUNG_HEAD = """
## Lung ultrasound: guided folds

`{network}` on the clips and stills of the protocol, four outputs, {folds}. The prior comes from the pleural line that
`medxai.learn.lung_us.pleura` finds in the picture; there is no annotation of it, so that "inside" means inside of what
the detector found. `outside`: all at and below the line; `cam`: by class (a band at the line for covid, the
sub-pleural area for bacterial pneumonia, A-line rows for healthy lungs that show them, else as `outside`). The weight
was not searched for. Held-out lungs, intervals over patients. *Inside*: share of the map's evidence at and below the
line, for every guidance; *cosine*: with the prior of the true class, for frames whose prior has a shape; *even*: what
a map that is the same everywhere has.

| fold | guidance | weight | frames right | clips right | inside | even | cosine | even | frames (patients) |
|---|---|---|---|---|---|---|---|---|---|
"""

_LIMITS = """
## What to know
- Agreement with a prior is no evidence once it was the target. What counts is accuracy on data where shortcuts fail,
  and the deletion test.
- The right prior of the controls was known exactly. A prior from a detector or from a book is wrong for some images; a
  wrong prior never helped here, and in mode `cam` it cost accuracy.
- The deletion area grew with right priors too: on its own it flags nothing, which is why `suspicions` asks for accuracy
  first. Too large a weight undoes the gain (20 above).
- The share outside must not be taken of a class activation map: in three trials of one seed, 83 to 176 of 200 test maps
  became 0 everywhere, where nothing lies outside, and the classes were told apart by negative evidence. It is taken of
  the layer's mean.
- The controls are three seeds of one small network. No weight was chosen by validation.
"""


def write_evidence(
    found: Sequence[Found], folds: Sequence[GuidedFold], lines: Mapping[str, tuple[int, int, int]], root: Path = Path()
) -> None:
    """Write page, tables and picture below `root`.

    Args:
        found: all controls.
        folds: of lung ultrasound, if any.
        lines: see `medxai.learn.lung_us.guided_evidence.lines_found`.
        root: of the repository.
    """
    write_text(root / PAGE, page_of(found, folds, lines))
    write_text(root / TABLE, table_of(found))
    if folds:
        write_text(root / FOLDS, folds_table(folds))
    write_bytes(root / PICTURE, picture_of(found))


def pick(found: Sequence[Found], mode: Mode | None, weight: float, prior: PriorKind = "right") -> list[Found]:
    """Runs of one kind, by seed."""
    return [f for f in found if (f.control.mode, f.control.weight, f.control.prior) == (mode, weight, prior)]


def pooled(runs: Sequence[Found], name: str) -> Array:
    """A figure of the test pictures of all seeds."""
    values: Array = np.concatenate([np.asarray(getattr(run, name), np.float64) for run in runs])
    return values


def mean_of(values: Array) -> Interval:
    """Mean with its interval over pictures; those without the figure are left out."""
    return difference(values, np.zeros(len(values)))


def page_of(found: Sequence[Found], folds: Sequence[GuidedFold], lines: Mapping[str, tuple[int, int, int]]) -> str:
    """The page as Markdown."""
    plain = pick(found, None, 0.0)
    text = _INTRO.format(
        contrast=CONTRAST, agrees=100 * AGREES, training=TRAINING, test=TEST, seeds=len(plain), epochs=RECIPE.epochs,
        warm_up=WARM_UP, weight=WEIGHT,
    )  # fmt: skip
    text += "\n".join(_kinds(found)) + "\n"
    area = np.mean([float(make_pictures(TEST, 0.5, 10 * f.control.seed + 1).priors.mean()) for f in plain])
    text += _BASELINE.format(uniform=pooled(plain, "uniform").mean(), area=area, parameters=plain[0].parameters)
    text += "\n".join(_differences(found)) + "\n"
    text += _SWEEP_HEAD + "\n".join(_sweep(found)) + "\n"
    text += _WRONG_HEAD + "\n".join(_verdicts(found)) + "\n"
    if lines:
        text += _LINES_HEAD + "\n".join(
            f"| {label} | {known} ({known / frames:.0%}) | {frames} | {count} |"
            for label, (known, frames, count) in lines.items()
        ) + "\n"  # fmt: skip
        text += "" if folds else _NO_FOLDS
    if folds:
        numbers = sorted({fold.fold for fold in folds})
        text += _LUNG_HEAD.format(network="efficientnet_lite0", folds=f"fold {' and '.join(map(str, numbers))} of 5")
        text += "\n".join(_lungs(folds)) + "\n"
    return text + _LIMITS


def _guided(found: Sequence[Found]) -> Iterable[tuple[Mode, PriorKind, list[Found]]]:
    for prior in PRIORS:
        for mode in MODES:
            runs = pick(found, mode, WEIGHT, prior)
            if runs:
                yield mode, prior, runs


def _kinds(found: Sequence[Found]) -> Iterable[str]:
    rows: list[tuple[str, str, list[Found]]] = [("none", "", pick(found, None, 0.0)), *_guided(found)]
    for name, prior, runs in rows:
        cells = [
            mean_of(pooled(runs, figure))
            for figure in ("correct", "follows_marker", "inside", "pointing", "cosine", "deletion")
        ]
        seeds = ", ".join(f"{run.correct.mean():.2f}" for run in runs)
        yield f"| {name} | {prior} | {' | '.join(map(str, cells))} | {seeds} |"


def _differences(found: Sequence[Found]) -> Iterable[str]:
    plain = pick(found, None, 0.0)
    for mode, prior, runs in _guided(found):
        own = "cosine" if prior == "right" else "cosine_mirrored"
        cells = [difference(pooled(runs, name), pooled(plain, name)) for name in ("correct", "inside", own, "deletion")]
        yield f"| {mode} | {prior} | {' | '.join(_signed(cell) for cell in cells)} |"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _sweep(found: Sequence[Found]) -> Iterable[str]:
    for weight, runs in _by_weight(found):
        cells = [mean_of(pooled(runs, name)) for name in ("correct", "inside", "cosine", "deletion")]
        yield f"| {weight:g} | {' | '.join(map(str, cells))} |"


def _by_weight(found: Sequence[Found]) -> list[tuple[float, list[Found]]]:
    rows = [(0.0, pick(found, None, 0.0)), *((weight, pick(found, "attention", weight)) for weight in SWEEP)]
    return [(weight, runs) for weight, runs in rows if runs]


def _verdicts(found: Sequence[Found]) -> Iterable[str]:
    plain = pick(found, None, 0.0)
    for mode, prior, runs in _guided(found):
        mirrored = prior == "mirrored"
        before, after = (_outcome(some, mirrored) for some in (plain, runs))
        said = suspicions(before, after)
        yield f"- `{mode}`, {prior} prior: {'**flagged**: ' + '; '.join(said) if said else 'not flagged'}."


def _outcome(runs: Sequence[Found], mirrored: bool) -> Outcome:
    name = "cosine_mirrored" if mirrored else "cosine"
    return Outcome(pooled(runs, name), pooled(runs, "correct").astype(bool), pooled(runs, "deletion"))


def _lungs(folds: Sequence[GuidedFold]) -> Iterable[str]:
    for fold in sorted(folds, key=lambda f: (f.fold, (PLAIN, *MODES).index(f.guidance))):
        area, uniform = fold.share("area").value, fold.share("uniform").value
        weight = f"{fold.weight:g}" if fold.guidance != PLAIN else ""
        yield (
            f"| {fold.fold} | {fold.guidance} | {weight} | {fold.frame_accuracy()} | {fold.video_accuracy()} "
            f"| {fold.share('inside')} | {area:.3f} | {fold.share('cosine')} | {uniform:.3f} "
            f"| {len(fold.labels)} ({len(set(fold.patient))}) |"
        )


def table_of(found: Sequence[Found]) -> str:
    """Means of every run as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = ("correct", "follows_marker", "inside", "pointing", "cosine", "uniform", "cosine_mirrored", "deletion")
    writer.writerow(["mode", "weight", "prior", "seed", "training", "test", *names, "without_evidence"])
    for run in found:
        c: Control = run.control
        means = [f"{np.nanmean(np.asarray(getattr(run, name), np.float64)):.4f}" for name in names]
        empty = int(np.isnan(run.inside).sum())
        writer.writerow(
            [c.mode or "none", f"{c.weight:g}", c.prior, c.seed, c.training, len(run.correct), *means, empty]
        )
    return stream.getvalue()


def folds_table(folds: Sequence[GuidedFold]) -> str:
    """Figures of the folds of lung ultrasound as CSV, each with its interval."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = ("frames_right", "clips_right", "inside", "cosine")
    heads = [f"{name}{end}" for name in names for end in ("", "_low", "_high", "_n", "_patients")]
    writer.writerow(["fold", "guidance", "weight", *heads, "area", "uniform"])
    for f in folds:
        cells = (f.frame_accuracy(), f.video_accuracy(), f.share("inside"), f.share("cosine"))
        numbers = [v for c in cells for v in (f"{c.value:.4f}", f"{c.low:.4f}", f"{c.high:.4f}", c.n, c.groups)]
        rest = [f"{f.share(name).value:.4f}" for name in ("area", "uniform")]
        writer.writerow([f.fold, f.guidance, f"{f.weight:g}", *numbers, *rest])
    return stream.getvalue()


def picture_of(found: Sequence[Found]) -> bytes:
    """Both curves of the sweep, the modes side by side, and mean maps of four networks (PNG)."""
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(14, 3.4), dpi=130, layout="constrained")
    axes = sheet.subplots(1, 6, width_ratios=[2.0, 2.4, 1, 1, 1, 1])
    rows = _by_weight(found)
    places = [math.log10(weight) if weight else -3.0 for weight, _ in rows]
    for name, colour, label in (("correct", "#c2410c", "accuracy"), ("inside", "#1d6fa5", "evidence inside")):
        cells = [mean_of(pooled(runs, name)) for _, runs in rows]
        axes[0].plot(places, [cell.value for cell in cells], "o-", color=colour, label=label, markersize=4)
        axes[0].fill_between(places, [c.low for c in cells], [c.high for c in cells], color=colour, alpha=0.15)
        for (_, runs), place in zip(rows, places, strict=True):
            each = [float(np.nanmean(np.asarray(getattr(run, name), np.float64))) for run in runs]
            axes[0].plot([place] * len(each), each, ".", color=colour, markersize=3, alpha=0.6)
    axes[0].set_xticks(places, [f"{weight:g}" for weight, _ in rows], fontsize=8)
    axes[0].set(ylim=(0, 1.02), xlabel="weight (mode attention)")
    axes[0].set_title("Sweep; dots: seeds", fontsize=10)
    axes[0].legend(fontsize=8, frameon=False)
    kinds = [("none", "", pick(found, None, 0.0)), *_guided(found)]
    for shift, (name, colour, label) in enumerate(
        (
            ("correct", "#c2410c", "accuracy"),
            ("inside", "#1d6fa5", "inside lesion's prior"),
            ("deletion", "#9aa8b8", "deletion"),
        )
    ):
        cells = [mean_of(pooled(runs, name)) for _, _, runs in kinds]
        error = [[c.value - c.low for c in cells], [c.high - c.value for c in cells]]
        at = np.arange(len(kinds)) + 0.27 * (shift - 1)
        axes[1].bar(at, [c.value for c in cells], 0.25, yerr=error, color=colour, label=label, capsize=1.5)
    names = ["none"] + [f"{mode}\n{prior}" for mode, prior, _ in kinds[1:]]
    axes[1].set_xticks(range(len(kinds)), names, fontsize=6.5)
    axes[1].set_ylim(0, 1.35)
    axes[1].set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes[1].legend(fontsize=7, frameon=False, ncols=3, loc="upper center")
    axes[1].set_title(f"Kinds of guidance, weight {WEIGHT:g}", fontsize=10)
    example = make_pictures(2, 1.0, 4)
    axes[2].imshow(example.images[1, 0], cmap="gray")
    axes[2].contour(example.priors[1], levels=[0.5], colors="#5aa9e6", linewidths=1)
    axes[2].set_title("a picture, its\nprior and marker", fontsize=9)
    shown = [("no guidance", pick(found, None, 0.0)), ("attention, right prior", pick(found, "attention", WEIGHT)),
             ("cam, mirrored prior", pick(found, "cam", WEIGHT, "mirrored"))]  # fmt: skip
    means = [(title, np.mean([run.mean_map for run in runs], axis=0)) for title, runs in shown if runs]
    largest = max(float(values.max()) for _, values in means)
    for axis, (title, values) in zip(axes[3:], means, strict=False):
        axis.imshow(values, cmap="inferno", vmin=0, vmax=largest)
        axis.set_title(f"mean map\n{title}", fontsize=9)
    for axis in axes[2:]:
        axis.set_axis_off()
    stream = io.BytesIO()
    sheet.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
