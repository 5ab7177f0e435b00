"""Tables over seeds: what searching was worth, said plainly."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from medxai.files import write_text
from medxai.learn.search.jobs import Job, jobs, result
from medxai.learn.search.settings import SearchSettings

#: Columns of figures, in order.
FIGURES = ("auroc", "auroc_mean", "sensitivity", "specificity", "f1", "accuracy")
TITLES = {
    "searched": "searched",
    "random": "random, as large as the searched one",
    "shared_random": "random search, shared weights, equal budget",
    "ranked": "best of random ones by the training-free score",
    "hand_made": "hand-made: the same operation in every cell",
    "published_strides": "searched operations, strides as published",
    "small_densenet": "SmallDenseNet3d",
    "densenet3d121": "DenseNet3D-121",
    "resnet3d101": "ResNet3D-101",
    "mc3_18": "MC3-18",
}


def collect(settings: SearchSettings) -> dict[str, list[dict[str, Any]]]:
    """Finished trainings by arm, in the order of the seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for job in jobs(settings):
        if job.kind == "train" and (made := result(settings, job)) is not None:
            found.setdefault(job.arm, []).append(made)
    return found


def differences(settings: SearchSettings, figure: str, arm: str, other: str) -> list[float]:
    """Figure of one arm minus that of another, seed by seed."""
    pairs = ((result(settings, Job("train", name, seed)) for name in (arm, other)) for seed in settings.seeds)
    return [a[figure] - b[figure] for a, b in pairs if a is not None and b is not None]


def summarise(settings: SearchSettings) -> list[Path]:
    """Write ``results.csv``, one line a network, ``results.json`` and ``results.md``, mean and sd by arm."""
    found = collect(settings)
    if not found:
        return []
    rows = [
        {"arm": arm, "seed": r["job"]["seed"], **{f: round(r[f], 4) for f in FIGURES}}
        | {"parameters": r["parameters"], "macs": r["macs"], "cpu_seconds": round(r["cpu_seconds"])}
        | {"operations": "|".join(r["architecture"]["operations"]) if r["architecture"] else ""}
        for arm, every in found.items()
        for r in every
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    table = {arm: _spread(every) for arm, every in found.items()}
    spread = {"settings": settings.model_dump(mode="json", exclude={"output"}), "arms": table}
    spread["searched_minus"] = {
        other: {figure: differences(settings, figure, "searched", other) for figure in ("auroc", "auroc_mean", "f1")}
        for other in found
        if other != "searched" and "searched" in found
    }
    folder = settings.output
    return [
        write_text(folder / "results.csv", stream.getvalue()),
        write_text(folder / "results.json", json.dumps(spread, indent=1) + "\n"),
        write_text(folder / "results.md", markdown(table)),
    ]


def markdown(table: dict[str, dict[str, Any]], seconds: dict[str, float] | None = None) -> str:
    """A line for every arm: mean (standard deviation) over seeds, and the CPU time of a case where it was measured."""
    head = ["network", "n", "AUROC, any finding", "AUROC, mean of classes", "sensitivity", "specificity", "F1"]
    head += ["parameters, million", "GMAC", *(["CPU, ms a case"] if seconds else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, row in table.items():
        cells = [TITLES.get(arm, arm), str(row["n"])]
        cells += [_stated(row[figure]) for figure in FIGURES[:-1]]
        cells += [f"{row['parameters'] / 1e6:.2f}", f"{row['macs'] / 1e9:.2f}"]
        if seconds:
            cells.append(f"{seconds[arm] * 1000:.0f}" if arm in seconds else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _stated(figure: dict[str, Any]) -> str:
    """Mean (sd); the mean alone of a single seed."""
    return f"{figure['mean']:.3f}" + (f" ({figure['sd']:.3f})" if figure["sd"] is not None else "")


def _spread(every: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(every)}
    for figure in FIGURES:
        values = np.array([r[figure] for r in every])
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        found[figure] = {"mean": float(values.mean()), "sd": sd, "values": values.tolist()}
    for count in ("parameters", "macs"):
        found[count] = float(np.mean([r[count] for r in every]))
    return found
