"""The page of the shortcut experiment: tables, a picture without patients, and the figures of every image."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.files import write_bytes, write_text
from medxai.learn.breast_us import LABELS
from medxai.learn.metrics import Interval, balanced_accuracy, bootstrap, recall
from medxai.learn.shortcut import MARKED, MARKERS, PLAIN, marker_mask
from medxai.learn.shortcut_evidence import NONE, OTHER, TRAINED, MeanMap, Row
from medxai.trust.gate.figures import FIGURES, NAMES

PAGE = Path("docs/evidence/shortcut.md")
TABLE = Path("docs/evidence/shortcut_cases.csv")
PICTURE = Path("docs/images/shortcut.png")
VERDICTS = ("supported", "limited", "withheld")

Array = npt.NDArray[np.float64]

_INTRO = """# A shortcut on purpose: does the tool show it?

Networks as those of `breast_us` (BUSI: {labels}; same architecture and recipe, fewer epochs), seeds: {seeds}.
Those of a seed were trained on two thirds of the images and asked about the rest: {n} held-out images in {groups}
groups of near-duplicates in all. For each seed one network without a marker (*plain*) and one for each kind of
marker, which was burnt into every *malignant* image of the training: a square of 12 % of the sides near the upper
left corner, *bright* (the image's largest value, as burnt-in graphics have it) or *grey* (half of it, which no rule
for graphics finds). 95 % intervals by bootstrap over groups of near-duplicates, seeds pooled. Figures of every
image: `shortcut_cases.csv`; `python -m medxai.learn.shortcut` makes it all again.

![Accuracy with and without the marker, and the mean maps](../images/shortcut.png)
"""

_FIGURES = """Mean of each figure; in brackets the area under the ROC curve with which it tells maps of the plain
network from those of a network with a marker (0.5: not at all). *consensus* takes no part in the verdict.
"""

_LIMITS = """
## What to know
- Removing a shortcut's region does lower its network's score: figures of removal cannot tell it, and families of
  methods agree about it. What tells is that the map lies off the anatomy, and that its region alone,
  without the rest of the image, is no image of that class (*insertion*).
- The shipped thresholds were learnt with a bright marker of this size and place as one kind of broken explanation (a
  new last layer, not a training); a grey one they never saw.
- A marker inside the anatomy would not show in *outside*. A cell of the layer is 32 of 224 pixels, the marker 27: a
  map's maximum covers the whole corner.
- What settles it is the first table: the same images with and without what the map points at.
"""


def write_evidence(rows: Sequence[Row], maps: Sequence[MeanMap], root: Path = Path()) -> None:
    """Write page, table and picture below `root`."""
    write_text(root / TABLE, table_of(rows))
    write_text(root / PAGE, page_of(rows))
    write_bytes(root / PICTURE, picture_of(rows, maps))


def decisions(rows: Sequence[Row], network: str, marker: str, where: str) -> list[Row]:
    """Answers without a map to one question."""
    return [r for r in rows if r.trust is None and (r.network, r.marker, r.where) == (network, marker, where)]


def judged(rows: Sequence[Row], network: str) -> list[Row]:
    """Answers with a map of one kind of network."""
    return [r for r in rows if r.trust is not None and r.network == network]


def shares(rows: Sequence[Row], metric: Callable[..., float]) -> Interval:
    """A metric of decisions with its interval over groups of near-duplicates."""
    labels = np.array([row.truth for row in rows])
    probabilities = np.array([row.probabilities for row in rows])
    return bootstrap(metric, labels, probabilities, [row.group for row in rows])


def mean_of(rows: Sequence[Row], value: Callable[[Row], float]) -> Interval:
    """Mean of a figure with its interval over groups; rows without it are left out."""
    kept = [(value(row), row.group) for row in rows if not math.isnan(value(row))]
    values = np.array([[v] for v, _ in kept])
    metric = lambda _labels, given: float(np.mean(given))  # noqa: E731
    return bootstrap(metric, np.zeros(len(kept)), values, [group for _, group in kept])


def separation(rows: Sequence[Row], base: Sequence[Row], value: Callable[[Row], float], *, lower: bool) -> float:
    """Area under the ROC curve of a figure, honest networks against shortcut ones; 0.5 where it cannot tell."""
    bad, good = (np.array([value(r) for r in some if not math.isnan(value(r))]) for some in (rows, base))
    if not bad.size or not good.size:
        return float("nan")
    above = (good[:, None] > bad[None]).mean() + 0.5 * (good[:, None] == bad[None]).mean()
    return float(1 - above if lower else above)


def _figure(name: str) -> Callable[[Row], float]:
    def read(row: Row) -> float:
        assert row.trust is not None  # noqa: S101
        known = {"index": row.trust.index, "consensus": row.trust.consensus, **row.trust.figures}
        return float(known[name])

    return read


def page_of(rows: Sequence[Row]) -> str:
    """The page as Markdown."""
    plain = decisions(rows, PLAIN, "", NONE)
    intro = _INTRO.format(
        labels=", ".join(LABELS), seeds=len({row.seed for row in plain}), n=len(plain),
        groups=len({row.group for row in plain}),
    )  # fmt: skip
    lines = [
        intro,
        "## What the networks decide",
        "",
        "| network | marker in the images | balanced accuracy | malignant found | n |",
        "|---|---|---|---|---|",
        *_decisions(rows),
        "",
        "## Where the maps of malignant images lie (Grad-CAM of the decided class, images as in training)",
        "",
        "Share of the map's energy on the place of the marker, and over that place's share of the image.",
        "",
        "| network | on the marker | lift | maximum on it | lift on the lesion | n |",
        "|---|---|---|---|---|---|",
        *_places(rows),
        "",
        "## What the gate says of these maps",
        "",
        "Thresholds of the shipped `breast_us`, learnt with other networks on other folds of the same images.",
        "",
        "| network | " + " | ".join(VERDICTS) + " | n |",
        "|---|---|---|---|---|",
        *_verdicts(rows),
        "",
        _FIGURES,
        "| figure | " + " | ".join((PLAIN, *MARKERS)) + " |",
        "|---|" + "---|" * (1 + len(MARKERS)),
        *_figures(rows),
        _LIMITS.rstrip("\n"),
    ]
    return "\n".join(lines) + "\n"


def _decisions(rows: Sequence[Row]) -> Iterable[str]:
    questions = [(PLAIN, "", NONE)] + [(PLAIN, m, w) for m in MARKERS for w in (TRAINED, OTHER)]
    questions += [(m, "" if w == NONE else m, w) for m in MARKERS for w in (TRAINED, NONE, OTHER)]
    words = {NONE: "none", TRAINED: "{} on malignant", OTHER: "{} on benign and normal"}
    for network, marker, where in questions:
        found = decisions(rows, network, marker, where)
        if found:
            accuracy, malignant = shares(found, balanced_accuracy), shares(found, recall(MARKED))
            yield f"| {network} | {words[where].format(marker)} | {accuracy} | {malignant} | {len(found)} |"


def _places(rows: Sequence[Row]) -> Iterable[str]:
    for network in (PLAIN, *MARKERS):
        found = judged(rows, network)
        if found:
            cells = [
                mean_of(found, lambda r: r.on_marker), mean_of(found, lambda r: r.on_marker / r.share_marker),
                mean_of(found, lambda r: r.points_at_marker), mean_of(found, lambda r: r.on_lesion / r.share_lesion),
            ]  # fmt: skip
            yield f"| {network} | {' | '.join(map(str, cells))} | {cells[0].n} |"


def _verdicts(rows: Sequence[Row]) -> Iterable[str]:
    for network in (PLAIN, *MARKERS):
        found = judged(rows, network)
        if found:
            cells = [mean_of(found, lambda r, v=verdict: float(r.trust.verdict == v)) for verdict in VERDICTS]  # type: ignore[misc]
            yield f"| {network} | {' | '.join(map(str, cells))} | {len(found)} |"


def _figures(rows: Sequence[Row]) -> Iterable[str]:
    lower = {figure.name for figure in FIGURES if figure.better == "lower"}
    base = judged(rows, PLAIN)
    for name in ("index", *NAMES, "consensus"):
        cells = []
        for network in (PLAIN, *MARKERS):
            found = judged(rows, network)
            if not found:
                continue
            tell = "" if network == PLAIN else f" ({separation(found, base, _figure(name), lower=name in lower):.2f})"
            values = [v for v in map(_figure(name), found) if not math.isnan(v)]
            cells.append(f"{np.mean(values):.3g}{tell}" if values else "none")
        yield f"| {name} | {' | '.join(cells)} |"


def table_of(rows: Sequence[Row]) -> str:
    """The figures of every image as CSV; without paths, since the images are not part of this."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    places = ("on_marker", "points_at_marker", "on_lesion", "share_marker", "share_lesion")
    writer.writerow(["network", "seed", "marker", "where", "group", "truth", *LABELS, *places, "verdict", "index",
                     "consensus", *NAMES])  # fmt: skip
    for row in rows:
        told: list[str] = []
        if row.trust is not None:
            numbers = (row.trust.index, row.trust.consensus, *(row.trust.figures[name] for name in NAMES))
            told = [row.trust.verdict, *(f"{value:.4g}" for value in numbers)]
        given = [f"{getattr(row, name):.4g}" for name in places] if told else [""] * len(places)
        head = [row.network, row.seed, row.marker, row.where, row.group, LABELS[row.truth]]
        writer.writerow([*head, *(f"{p:.4f}" for p in row.probabilities), *given, *(told or [""] * (3 + len(NAMES)))])
    return stream.getvalue()


def picture_of(rows: Sequence[Row], maps: Sequence[MeanMap]) -> bytes:
    """Bars of the malignant images found, and the mean map of each kind of network with the marker's place (PNG)."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    kinds = [kind for kind in (PLAIN, *MARKERS) if any(m.network == kind for m in maps)]
    sheet = Figure(figsize=(4.2 + 2.6 * len(kinds), 3.2), dpi=130, layout="constrained")
    axes = sheet.subplots(1, 1 + len(kinds), width_ratios=[1.6, *[1.0] * len(kinds)])
    bars = axes[0]
    words = {TRAINED: "marker on malignant", NONE: "no marker", OTHER: "marker on the others"}
    for place, (where, colour) in enumerate(zip(words, ("#c2410c", "#4b6075", "#9aa8b8"), strict=True)):
        for at, kind in enumerate(kinds):
            marker = "" if where == NONE else next(iter(MARKERS)) if kind == PLAIN else kind
            found = decisions(rows, kind, marker, where)
            if found:
                share = shares(found, balanced_accuracy)
                error = [[share.value - share.low], [share.high - share.value]]
                label = words[where] if not at else None
                bars.bar(at + 0.27 * (place - 1), share.value, 0.25, yerr=error, color=colour, label=label, capsize=2)
    bars.set_xticks(range(len(kinds)), [_title(kind) for kind in kinds])
    bars.set_ylim(0, 1.35)
    bars.set_yticks([0, 0.25, 0.5, 0.75, 1])
    bars.axhline(1 / len(LABELS), color="#888", linewidth=0.8, linestyle=":")
    bars.set_title("Balanced accuracy", fontsize=10)
    bars.legend(fontsize=7, loc="upper center", ncols=1, frameon=False)
    spot = np.argwhere(marker_mask((48, 48)))
    (top, left), (bottom, right) = spot.min(0), spot.max(0) + 1
    means = {kind: _mean([m for m in maps if m.network == kind]) for kind in kinds}
    largest = max(float(values.max()) for values in means.values())
    for axis, kind in zip(axes[1:], kinds, strict=True):
        axis.imshow(means[kind], cmap="inferno", vmin=0, vmax=largest)
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="#5aa9e6"))
        count = sum(m.count for m in maps if m.network == kind)
        axis.set_title(f"{_title(kind)}\nmean of {count} maps", fontsize=9)
        axis.set_axis_off()
    stream = io.BytesIO()
    sheet.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _title(kind: str) -> str:
    return "no marker" if kind == PLAIN else f"{kind} marker"


def _mean(maps: Sequence[MeanMap]) -> Array:
    weights = np.array([m.count for m in maps], np.float64)
    found: Array = np.average([m.values for m in maps], axis=0, weights=weights if weights.any() else None)
    return found
