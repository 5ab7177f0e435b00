"""One measured figure, and the table of all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Entry:
    """A figure with its spread.

    Attributes:
        name: ``a_over_b`` is a divided by b.
        value: median over the runs, or the estimate.
        unit: ``ratio``, ``s``, ``GiB``, ``1``.
        target: what it should reach, or None.
        better: ``lower`` or ``higher``.
        n: runs, or samples.
        low: lowest run, or lower end of the 95 % interval.
        high: highest run, or upper end.
        against: what a ratio is over, or what a figure was measured on.
    """

    name: str
    value: float
    unit: str
    target: float | None
    better: Literal["lower", "higher"]
    n: int
    low: float
    high: float
    against: str = ""

    @property
    def met(self) -> str:
        """Whether the target is reached, in a word."""
        if self.target is None:
            return "-"
        good = self.value <= self.target if self.better == "lower" else self.value >= self.target
        return "met" if good else "missed"


def of_runs(
    name: str,
    runs: Sequence[float],
    unit: str,
    target: float | None,
    better: Literal["lower", "higher"],
    against: str = "",
) -> Entry:
    """Median, minimum and maximum over runs."""
    values = np.asarray(runs, dtype=float)
    low, high = float(values.min()), float(values.max())
    return Entry(name, float(np.median(values)), unit, target, better, len(values), low, high, against)


def load(path: Path) -> dict[str, Entry]:
    """Entries of an earlier run by name."""
    if not path.exists():
        return {}
    return {item["name"]: Entry(**item) for item in json.loads(path.read_text())}


def save(entries: dict[str, Entry], folder: Path, notes: Sequence[str]) -> None:
    """Write ``benchmarks.json`` and ``benchmarks.md``."""
    ordered = list(entries.values())
    rounded = [
        {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in asdict(entry).items()}
        for entry in ordered
    ]
    (folder / "benchmarks.json").write_text(json.dumps(rounded, indent=1) + "\n")
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; one entry with `make bench ONLY=name`. Ratios come from runs interleaved in one",
        "process or one call; low and high are the extremes of the runs, or the 95 % bootstrap interval where n counts",
        "images or slabs.",
        "",
        "| entry | value | low - high | n | target | | against |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in ordered:
        target = "" if e.target is None else f"{'<=' if e.better == 'lower' else '>='} {e.target:g}"
        spread = f"{e.low:.3g} - {e.high:.3g}"
        lines.append(f"| `{e.name}` | {e.value:.3g} {e.unit} | {spread} | {e.n} | {target} | {e.met} | {e.against} |")
    (folder / "benchmarks.md").write_text("\n".join([*lines, "", *notes]) + "\n")
