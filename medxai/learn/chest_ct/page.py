"""The page of the comparison, ``docs/chest_ct.md``, and its pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from scipy.stats import t

from medxai.explain.engine import explain
from medxai.files import write_bytes
from medxai.learn.chest_ct.synthetic import LABELS, Slabs
from medxai.learn.search.jobs import Job, folder, result
from medxai.learn.search.report import architecture_card, save
from medxai.learn.search.settings import SearchSettings
from medxai.learn.search.summary import TITLES, markdown
from medxai.networks.covidnet3d import Architecture

Say = Callable[[str], None]
#: Layers shown in the picture of maps: method, layer, title.
_SHOWN = (
    ("cam", "tail.relu", "exact"),
    ("gradcam", "stages.1", "Grad-CAM, stage 3"),
    ("layercam", "stages.0", "Layer-CAM, stage 2"),
)


def pictures(settings: SearchSettings, cases: Slabs, out: Path, say: Say) -> list[Path]:
    """Copy the search's picture and draw maps of the first seed's networks on the cases they are surest of."""
    seed = settings.seeds[0]
    paths = []
    searched = folder(settings, Job("search", "searched", seed)) / "search.png"
    if searched.exists():
        paths.append(write_bytes(out / "search_chest_ct.png", searched.read_bytes()))
    if all(result(settings, Job("train", arm, seed)) is not None for arm in ("searched", "published_strides")):
        paths.append(_maps(settings, cases, out / "chest_ct_maps.png", seed))
        say("maps drawn")
    return paths


def _maps(settings: SearchSettings, cases: Slabs, path: Path, seed: int) -> Path:
    from matplotlib.figure import Figure

    from medxai.learn.chest_ct.validate import trained

    networks = {arm: trained(settings, Job("train", arm, seed)) for arm in ("searched", "published_strides")}
    logits = np.load(folder(settings, Job("train", "searched", seed)) / "logits.npy")
    chosen: list[int] = []
    for label in (1, 2):
        mine = np.flatnonzero(cases.labels == label)
        sure = logits[mine, label] - np.delete(logits[mine], label, axis=1).max(1)
        chosen += mine[np.argsort(-sure, kind="stable")[:2]].tolist()
    columns = [(arm, *view) for arm in networks for view in _SHOWN]
    figure = Figure(figsize=(2.0 * (len(columns) + 1), 3.5 * len(chosen)), layout="constrained")
    axes = figure.subplots(2 * len(chosen), len(columns) + 1, squeeze=False)
    spacing = settings.data.spacing_mm
    for row, case in enumerate(chosen):
        image = cases.pixels[case, 0].astype(np.float32)
        mask = cases.truth[case] == cases.labels[case]
        z, y = int(mask.sum((1, 2)).argmax()), int(mask.sum((0, 2)).argmax())
        x = torch.from_numpy(image[None, None])
        panels: list[tuple[str, npt.NDArray[Any] | None]] = [("truth", None)]
        for arm, method, layer, title in columns:
            found = explain(networks[arm], x, methods=method, classes=int(cases.labels[case]), layers=layer)[0]
            values = found.map[0].clamp_min(0).numpy()
            strides = "depth kept" if arm == "searched" else "published strides"
            panels.append((f"{title}\n{strides}", values / max(float(values.max()), 1e-12)))
        for column, (title, shown) in enumerate(panels):
            for part, (cut, ratio) in enumerate(
                (((z,), spacing[1] / spacing[2]), ((slice(None), y), spacing[0] / spacing[2]))
            ):
                axis, origin = axes[2 * row + part][column], "lower" if part else "upper"
                axis.imshow(image[cut], cmap="gray", vmin=0, vmax=0.9, aspect=ratio, origin=origin)
                if shown is not None:
                    alpha = np.clip(shown[cut], 0, 1) * 0.8
                    axis.imshow(shown[cut], cmap="inferno", vmin=0, vmax=1, alpha=alpha, aspect=ratio, origin=origin)
                if mask[cut].any():
                    axis.contour(mask[cut], [0.5], colors="cyan", linewidths=0.8)
                axis.set_xticks([])
                axis.set_yticks([])
                if row == 0 and part == 0:
                    axis.set_title(title, fontsize=8)
                if column == 0:
                    axis.set_ylabel(f"{LABELS[int(cases.labels[case])]}\n{'coronal' if part else 'axial'}", fontsize=7)
    save(figure, path)
    return path


def page(settings: SearchSettings, summary: dict[str, Any], place: dict[str, Any]) -> str:
    """The page; every number comes from the two records."""
    data, search, training = settings.data, settings.search, settings.training
    size = " x ".join(map(str, data.window))
    mm = " x ".join(f"{n * s:g}" for n, s in zip(data.window, data.spacing_mm, strict=True))
    small = " x ".join(map(str, data.search_window))
    arms = {arm: row for arm, row in summary["arms"].items() if not arm.startswith("front_")}
    hours = _cpu_hours(settings)
    lines = [
        "# Searched 3D networks for chest CT",
        "",
        _text(
            "Written by `medxai validate chest_ct` from what `medxai search chest_ct` trained. The search space is",
            "that of CovidNet3D (arXiv:2101.05442). Cases are synthetic (sample_cases/synthetic_ct.py):",
            "their truth is known, and they say nothing about patients.",
        ),
        "",
        "## What was compared",
        _text(
            f"- {data.train} slabs for searching and training, {data.test} of other synthetic patients for the",
            f"results; three classes ({', '.join(LABELS)}) in equal number, nodules and other distractors in all.",
            f"{size} voxels ({mm} mm), the lungs alone, as in the published data.",
        ),
        _text(
            f"- The search sees {small} voxels: {search.epochs} epochs, half of the cases for the shared weights, half",
            f"for the architecture weights, which rest for {search.warmup} epochs; temperature",
            f"{search.first_temperature:g} to {search.last_temperature:g}. Every network is then trained from random",
            f"weights for {training.epochs} epochs in batches of {training.batch_size}; the last weights count, and no",
            "test case decides anything.",
        ),
        _text(
            "- *Random* networks have as many parameters as the searched one of the same seed, within 5 %. *Random",
            "search* trains shared weights on uniformly drawn paths and takes the best of random paths on the second",
            "half, at the cost of the search (Li and Talwalkar 2019, arXiv:1902.07638).",
        ),
        f"- {len(settings.seeds)} seeds; mean (standard deviation). All of it took {hours:.1f} hours of CPU.",
        "",
        "## Results",
        "",
        markdown(arms, summary["seconds"]),
        *_conclusion(summary),
        "",
        *_missing(arms),
        *_training_free(summary["training_free"]),
        "",
        *_front(settings),
        "![search](images/search_chest_ct.png)",
        "",
        "One search: losses and temperature; how decided each cell is; the final probabilities with the choice.",
        "",
        "## Where the maps lie",
        "",
        _text(
            f"{place['cases']} test slabs with a finding, the true class explained; means over cases (standard",
            "deviation over seeds). Dice at the threshold that is best on the other half of the cases; mass lift is",
            "the share of evidence in the finding over its share of the volume, 1 by chance; slice errors are medians,",
            "from the slice with the most evidence to the nearest one with at least half of the finding's largest",
            "cross-section, and to the largest.",
        ),
        "",
        "| " + " | ".join(place["columns"]) + " |",
        "|" + "---|" * len(place["columns"]),
        *("| " + " | ".join(row) + " |" for row in place["rows"]),
        "",
        "![maps](images/chest_ct_maps.png)",
        "",
        _text(
            "Maps of the true class on the two slabs of each class that the network is surest of; the truth",
            "is outlined. The exact map with published strides has one cell along the body: it is the same in all.",
        ),
        "",
        _card(settings),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _text(*parts: str) -> str:
    """Lines of a paragraph or of an item of a list."""
    item = parts[0].startswith("- ")
    return textwrap.fill(" ".join(parts), 118, subsequent_indent="  " if item else "", break_on_hyphens=False)


def _cpu_hours(settings: SearchSettings) -> float:
    from medxai.learn.search.jobs import jobs

    done = [result(settings, job) for job in jobs(settings)]
    return sum(float(r["cpu_seconds"]) for r in done if r is not None) / 3600


def _conclusion(summary: dict[str, Any]) -> list[str]:
    """What the differences say, plainly, also when they say nothing."""
    lines = []
    for other, figures in summary["searched_minus"].items():
        if other.startswith("front_"):
            continue
        values = np.array(figures["auroc_mean"])
        if len(values) < 2:
            continue
        mean, sd = float(values.mean()), float(values.std(ddof=1))
        half = float(t.ppf(0.975, len(values) - 1)) * sd / len(values) ** 0.5
        verdict = "no difference that these seeds can show"
        if mean - half > 0:
            verdict = "the searched ones are better"
        elif mean + half < 0:
            verdict = "the searched ones are worse"
        lines.append(
            f"- Searched minus {TITLES.get(other, other)}: mean AUROC of classes {mean:+.3f} "
            f"({mean - half:+.3f} to {mean + half:+.3f}, t interval over {len(values)} seeds): {verdict}."
        )
    return lines


def _training_free(found: dict[str, Any]) -> list[str]:
    tau, p = found["kendall_with_auroc_mean"], found["p"]
    mean, least = found["stability_kendall_mean"], found["stability_kendall_least"]
    return [
        _text(
            f"Training-free score (DisWOT): Kendall's tau with the mean AUROC of the {found['networks']} trained",
            f"networks of the space is {tau:.2f} (p = {p:.2f}). Its own order of {found['stability_architectures']}",
            f"random architectures over five seeds: tau {mean:.2f} on average, {least:.2f} at least."
            + (" The order that one seed gives is little more than chance here." if mean < 0.3 else ""),
        )
    ]


def _front(settings: SearchSettings) -> list[str]:
    """Searches with a cost term beside the one without, first seed."""
    seed = settings.seeds[0]
    lines = []
    for weight in sorted({0.0, *settings.cost.front}):
        arm = f"front_{weight:g}" if weight else "searched"
        found, made = (result(settings, Job(kind, arm, seed)) for kind in ("search", "train"))
        if found is None or made is None:
            continue
        skipped = found["architecture"]["operations"].count("skip")
        cells = [f"{weight:g}", f"{made['macs'] / 1e6:.0f}", f"{made['parameters'] / 1e6:.2f}", str(skipped)]
        lines.append("| " + " | ".join([*cells, f"{found['entropy']:.2f}", f"{made['auroc_mean']:.3f}"]) + " |")
    if len(lines) < 2:
        return []
    return [
        "### With a cost term",
        _text(
            f"The same search, seed {seed}, with the expected share of the dearest path's {settings.cost.kind} added",
            "to the cross-entropy: a gradient that is the same at every update decides the architecture, which shows",
            "that the search moves it; that of these cases and so few updates hardly does.",
        ),
        "",
        "| cost weight | MMAC | parameters, million | cells skipped | entropy | AUROC, mean of classes |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def _missing(arms: dict[str, Any]) -> list[str]:
    absent = [TITLES[name] for name in ("densenet3d121", "resnet3d101", "mc3_18") if name not in arms]
    if not absent:
        return []
    return [
        f"Not trained here for want of CPU, though the command can: {', '.join(absent)}. Their sizes are tested.",
        "",
    ]


def _card(settings: SearchSettings) -> str:
    job = Job("search", "searched", settings.seeds[0])
    made = result(settings, job)
    if made is None:
        return ""
    history = np.load(folder(settings, job) / "weights.npy")
    chance = softmax(history[-1].astype(np.float64), axis=1)
    return architecture_card(
        Architecture.of(made["architecture"]), settings.data.window, settings.data.spacing_mm, chance
    )
