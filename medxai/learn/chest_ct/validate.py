"""What the comparison of networks found, measured on their maps as well: evidence, pictures and a page."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from scipy.stats import kendalltau

from medxai.errors import SettingsError
from medxai.files import write_bytes, write_text
from medxai.learn.chest_ct.localise import FALSE_POSITIVES, Found, measure
from medxai.learn.chest_ct.synthetic import LABELS, Slabs
from medxai.learn.search.candidates import random_architecture
from medxai.learn.search.jobs import Job, build, data, folder, jobs, ranking_batch, result
from medxai.learn.search.settings import SearchSettings
from medxai.learn.search.summary import summarise
from medxai.learn.search.training_free import rank
from medxai.networks.covidnet3d import Architecture, CovidNet3d

#: Arms whose maps are measured: the searched operations with strides that keep depth and as published.
DEPTHS = {"searched": "that keep depth", "published_strides": "as published"}
#: What the shipped bundle shows, see `medxai.learn.chest_ct.bundle.BLOCK`.
SHIPPED_VIEW = ("gradcam, stage 3", "searched")

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Measured:
    """Maps of one arm in one view, all seeds."""

    arm: str
    seeds: tuple[int, ...]
    found: tuple[Found, ...]

    def row(self) -> list[str]:
        """A line of the table: means over cases, their standard deviation over seeds."""

        def of(values: list[float], digits: int = 2) -> str:
            if not np.isfinite(values).all():
                return "no evidence in a whole seed"
            sd = f" ({np.std(values, ddof=1):.{digits}f})" if len(values) > 1 else ""
            return f"{np.mean(values):.{digits}f}{sd}"

        first = self.found[0]
        return [
            first.view,
            DEPTHS[self.arm],
            " x ".join(map(str, first.cells)),
            " x ".join(f"{v:g}" for v in first.cell_mm),
            of([_known(f.dice) for f in self.found]),
            of([_known(f.lift) for f in self.found]),
            of([f.sensitivity for f in self.found]),
            of([float(np.median(f.slice_mm)) for f in self.found], 1),
            of([float(np.median(f.centre_mm)) for f in self.found], 1),
        ]


def _known(values: npt.NDArray[np.float64]) -> float:
    """Mean of the cases whose map has evidence, NaN without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def trained(settings: SearchSettings, job: Job) -> CovidNet3d:
    """The network of a finished training in eval mode.

    Raises:
        SettingsError: it is not finished.
    """
    made = result(settings, job)
    if made is None:
        msg = f"{job.name} is not finished; run `medxai search chest_ct` again"
        raise SettingsError(msg)
    network = CovidNet3d.of(Architecture.of(made["architecture"]), len(LABELS), dropout=settings.training.dropout)
    network.load_state_dict(load_file(folder(settings, job) / "model.safetensors"))
    return network.eval()


def localise(settings: SearchSettings, cases: Slabs, say: Say) -> list[Measured]:
    """Measure the maps of all seeds of the arms in `DEPTHS` on the test cases with a finding."""
    ill = np.flatnonzero(cases.labels != 0).tolist()
    table: list[Measured] = []
    for arm in DEPTHS:
        per_view: dict[str, list[Found]] = {}
        seeds = [s for s in settings.seeds if result(settings, Job("train", arm, s)) is not None]
        for seed in seeds:
            network = trained(settings, Job("train", arm, seed))
            for found in measure(network, cases, settings.data.spacing_mm, ill):
                per_view.setdefault(found.view, []).append(found)
            say(f"maps of {arm}, seed {seed}: {len(ill)} cases")
        table += [Measured(arm, tuple(seeds), tuple(every)) for every in per_view.values()]
    return table


def training_free(settings: SearchSettings, train: Slabs, say: Say) -> dict[str, Any]:
    """How well the training-free score orders the trained networks, and how stable its order is over seeds."""
    inputs, labels = ranking_batch(settings, train)
    y = torch.from_numpy(labels)
    space = settings.space
    frame = Architecture.uniform("skip", space.size, space.depth, space.placement)
    teacher = Architecture.uniform("k3e6", space.size, space.depth, space.placement)
    made = [
        r
        for job in jobs(settings)
        if job.kind == "train" and (r := result(settings, job)) is not None and r["architecture"] is not None
        if job.arm != "published_strides"
    ]
    scores = rank(
        [Architecture.of(r["architecture"]) for r in made],
        teacher,
        inputs,
        y,
        len(LABELS),
        range(settings.ranking.seeds),
    )
    order = kendalltau(scores, [r["auroc_mean"] for r in made])
    random = np.random.default_rng(5)
    some = [random_architecture(random, frame) for _ in range(12)]
    by_seed = [rank(some, teacher, inputs, y, len(LABELS), (seed,)) for seed in range(5)]
    pairs = [kendalltau(by_seed[i], by_seed[j]).statistic for i in range(5) for j in range(i)]
    say("training-free score measured")
    return {
        "networks": len(made),
        "kendall_with_auroc_mean": float(order.statistic),
        "p": float(order.pvalue),
        "stability_architectures": len(some),
        "stability_kendall_mean": float(np.mean(pairs)),
        "stability_kendall_least": float(np.min(pairs)),
    }


def latency(settings: SearchSettings, train: Slabs, say: Say, runs: int = 7) -> dict[str, float]:
    """Seconds of one forward of one case on this machine, the shortest of some runs, mean over seeds, by arm."""
    x = torch.zeros(1, 1, *settings.data.window)
    found: dict[str, list[float]] = {}
    for job in jobs(settings):
        if job.kind != "train" or (made := result(settings, job)) is None:
            continue
        searched = made["architecture"] is not None
        network = trained(settings, job) if searched else build(settings, job, train)[0].eval()
        best = float("inf")
        with torch.inference_mode():
            for _ in range(runs + 1):
                start = time.perf_counter()
                network(x)
                best = min(best, time.perf_counter() - start)
        found.setdefault(job.arm, []).append(best)
    say("time of a forward measured")
    return {arm: float(np.mean(values)) for arm, values in found.items()}


def validate(settings: SearchSettings, out: Path, say: Say) -> list[Path]:
    """Write ``chest_ct.md``, ``evidence/`` and ``images/`` below `out`.

    Raises:
        SettingsError: nothing is trained yet.
    """
    from medxai.learn.chest_ct.page import page, pictures

    written = summarise(settings)
    if not written:
        msg = "nothing is trained yet; run `medxai search chest_ct`"
        raise SettingsError(msg, study=str(settings.output))
    evidence = out / "evidence"
    summary = json.loads((settings.output / "results.json").read_text())
    cases, train = data(settings, "test", say), data(settings, "train", say)
    summary["training_free"] = training_free(settings, train, say)
    summary["seconds"] = latency(settings, train, say)
    table = localise(settings, cases, say)
    shown = [m for m in table if (m.found[0].view, m.arm) == SHIPPED_VIEW]
    place = {
        "columns": list(COLUMNS),
        "rows": [m.row() for m in table],
        "cases": int((cases.labels != 0).sum()),
        "shipped_view": {
            "view": SHIPPED_VIEW[0],
            "depth": DEPTHS[SHIPPED_VIEW[1]],
            "lift": [round(float(v), 4) for m in shown for f in m.found for v in f.lift if np.isfinite(v)],
        },
    }
    paths = [
        write_text(evidence / "search_chest_ct.json", json.dumps(summary, indent=1, allow_nan=False) + "\n"),
        write_bytes(evidence / "search_chest_ct.csv", (settings.output / "results.csv").read_bytes()),
        write_text(evidence / "chest_ct_localisation.json", json.dumps(place, indent=1, allow_nan=False) + "\n"),
        write_text(evidence / "chest_ct_localisation.csv", _cases(table)),
    ]
    paths += pictures(settings, cases, out / "images", say)
    paths.append(write_text(out / "chest_ct.md", page(settings, summary, place)))
    return paths


#: Of the table of maps.
COLUMNS = (
    "map", "strides", "cells", "cell, mm", "Dice", "mass lift",
    f"found at {FALSE_POSITIVES:g} false per case", "slice error, mm", "to the middle slice, mm",
)  # fmt: skip


def _cases(table: Sequence[Measured]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["arm", "seed", "view", "case", "dice", "lift", "slice_mm", "centre_mm"])
    for measured in table:
        for seed, found in zip(measured.seeds, measured.found, strict=True):
            for case in range(found.n):
                values = (found.dice, found.lift, found.slice_mm, found.centre_mm)
                writer.writerow([measured.arm, seed, found.view, case, *(f"{v[case]:.4g}" for v in values)])
    return stream.getvalue()
