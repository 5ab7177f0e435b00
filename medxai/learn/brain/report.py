"""The page of the comparison: table, where the maps lie, shares, a picture; with the mice where they were done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medxai.errors import SettingsError
from medxai.files import atomic_path, write_text
from medxai.learn.brain.comparison import EXPLAINED, cohort, evidence, folder, result
from medxai.learn.brain.settings import ARMS, BrainSettings
from medxai.prepare.brain.subject import MODALITIES

Say = Callable[[str], None]
TITLES = {
    "full": "all four modalities, all losses",
    "no_alignment": "without both alignments",
    "no_functional_structural": "without the functional-structural alignment",
    "no_dynamic_static": "without the dynamic-static alignment",
    "without_alff": "without ALFF",
    "without_dfc": "without dynamic connectivity",
    "without_sfc": "without static connectivity",
    "without_fa": "without structural connectivity",
    "shuffled": "trained on shuffled labels",
}
FIGURES = ("auroc", "accuracy", "sensitivity", "specificity", "f1")
KINDS = {
    "published": "markers of the last layer (published)",
    "added": "markers of a finer layer",
    "inserted": "inserted into the mean control",
}


def collect(settings: BrainSettings) -> dict[str, list[dict[str, Any]]]:
    """Finished trainings by arm, in the order of the seeds.

    Raises:
        SettingsError: there is none.
    """
    made_by = {
        str(arm): [made for seed in settings.seeds if (made := result(settings, arm, seed)) is not None] for arm in ARMS
    }
    found = {arm: made for arm, made in made_by.items() if made}
    if not found:
        raise SettingsError("nothing is trained yet; run `medxai brain train`", study=str(settings.output))
    return found


def places(made: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """By kind and modality: hits, near and lift over all patients of all seeds, with their number."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind in KINDS:
        for name in MODALITIES:
            rows = [r["maps"]["places"][kind][name] for r in made if name in r["maps"]["places"].get(kind, {})]
            if not rows:
                continue
            n = np.array([row["n"] for row in rows], float)
            mean = {key: float((n * [row[key] for row in rows]).sum() / n.sum()) for key in ("hits", "near", "lift")}
            found.setdefault(kind, {})[name] = mean | {"n": int(n.sum()), "chance": rows[0]["chance"]}
    return found


def summary(settings: BrainSettings) -> dict[str, Any]:
    """All figures as JSON."""
    found = collect(settings)
    arms = {
        arm: {
            "seeds": len(made),
            "subjects": [r["subjects"] for r in made],
            **{figure: _spread([r[figure] for r in made]) for figure in FIGURES},
        }
        for arm, made in found.items()
    }
    maps = {arm: places(found[arm]) for arm in EXPLAINED if arm in found}
    shares = {
        arm: {name: _spread([r["maps"]["shares"][name] for r in found[arm]]) for name in MODALITIES}
        for arm in EXPLAINED
        if arm in found
    }
    spoken = {str(arm): _evidence(settings, arm) for arm in EXPLAINED if arm in found}
    cpu = sum(float(r["cpu_seconds"]) for made in found.values() for r in made)
    stated = settings.model_dump(mode="json", exclude={"output"})
    stated["cohort"]["carriers"] = "HCP" if settings.cohort.carriers else None
    return {"settings": stated, "arms": arms, "maps": maps, "shares": shares, "evidence": spoken, "cpu_seconds": cpu}


def _evidence(settings: BrainSettings, arm: Literal["full", "shuffled"]) -> dict[str, dict[str, dict[str, float]]]:
    """By modality and kind: evidence of all seeds together, weighted by patients."""
    every = [made["evidence"] for seed in settings.seeds if (made := evidence(settings, arm, seed, lambda _: None))]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in MODALITIES:
        for kind in ("with", "without"):
            rows = [item[name][kind] for item in every if kind in item.get(name, {})]
            if rows:
                n = np.array([row["n"] for row in rows], float)
                mean = {key: float((n * [row[key] for row in rows]).sum() / n.sum()) for key in ("mean", "shown")}
                found.setdefault(name, {})[kind] = mean | {"n": int(n.sum())}
    return found


def write_report(settings: BrainSettings, out: Path, say: Say, mice: dict[str, Any] | None = None) -> list[Path]:
    """Write ``brain_fusion_results.md``, ``evidence/brain_fusion.json`` and ``images/brain_fusion_maps.png``."""
    figures = summary(settings)
    if mice is not None:
        figures["mice"] = mice
    text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
    paths = [write_text(out / "evidence" / "brain_fusion.json", text)]
    if "full" in figures["maps"]:
        paths.append(draw(settings, out / "images" / "brain_fusion_maps.png"))
        say("maps drawn")
    return [*paths, write_text(out / "brain_fusion_results.md", page(figures))]


def page(figures: dict[str, Any]) -> str:
    """Markdown."""
    cohort_, training = figures["settings"]["cohort"], figures["settings"]["training"]
    who = "real HCP recordings (7 people)" if cohort_["carriers"] else f"{cohort_['synthetic']} synthetic carriers"
    lines = [
        "# Fusion of functional and diffusion MRI: a simulated cohort",
        "",
        "Written by `medxai brain train`. Effects are planted in the features (sample_cases/synthetic_brain.py):",
        "a cube of ALFF, a block of static connectivity, a block of dynamic connectivity in a sixth of the windows,",
        f"nothing in structural connectivity. {cohort_['subjects']} subjects on {who};",
        "split by carrier, other carriers tested for every seed.",
        f"{training['epochs']} epochs. {figures['cpu_seconds'] / 3600:.1f} hours of CPU.",
        "",
        "| network | seeds | AUROC | accuracy | sensitivity | specificity | F1 |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {TITLES[arm]} | {row['seeds']} | " + " | ".join(_stated(row[f]) for f in FIGURES) + " |"
            for arm, row in figures["arms"].items()
        ),
        "",
        "Mean (standard deviation) over seeds, on subjects of carriers that the network never saw.",
        "",
    ]
    if "shuffled" in figures["arms"]:
        lines += _control(figures["arms"]["shuffled"]["auroc"])
    lines += ["## Where the maps point", ""]
    lines += [
        "Patients that show the effect; *hit*: the largest value lies in the planted place; *near*: within a cell of",
        "the layer's grid of it; *lift*: share of the evidence there over the place's share of the array, 1 by chance.",
        "",
        "| network | map | modality | n | hit | near | lift | place, share of array |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, kinds in figures["maps"].items():
        for kind, rows in kinds.items():
            for name, row in rows.items():
                cells = [TITLES[arm], KINDS[kind], name.upper(), str(row["n"]), f"{row['hits']:.2f}"]
                cells += [f"{row['near']:.2f}", f"{row['lift']:.2f}", f"{row['chance']:.4f}"]
                lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *_verdict(figures["maps"].get("full", {})), "", "![maps](images/brain_fusion_maps.png)", ""]
    lines += [
        "Mean maps of test patients, first seed; what was planted is outlined.",
        "",
        "## Share of the evidence",
        "",
    ]
    lines += [
        "| network | " + " | ".join(name.upper() for name in MODALITIES) + " |",
        "|---|" + "---|" * len(MODALITIES),
    ]
    for arm, shares in figures["shares"].items():
        lines.append(f"| {TITLES[arm]} | " + " | ".join(_stated(shares[name], 2) for name in MODALITIES) + " |")
    lines += ["", *_least(figures["shares"].get("full", {}))]
    if any(figures.get("evidence", {}).values()):
        lines += ["", *_spoken(figures["evidence"])]
    if "mice" in figures:
        lines += ["", *_mice(figures["mice"])]
    return "\n".join(lines).rstrip() + "\n"


def draw(settings: BrainSettings, target: Path) -> Path:
    """Group maps of the first seed beside the truth: a slice of ALFF, both matrices, the course over windows."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from medxai.explain.connectivity_map import course

    seed = settings.seeds[0]
    maps = np.load(folder(settings, "full", seed) / "group_maps.npz")
    drawn = cohort(settings, seed)
    truth = drawn.planted.truth(len(drawn.subjects[0].features.regions))
    middle = int(np.argwhere(truth["alff"])[:, 0].mean())
    windows = truth["dfc"].any((0, 1))
    figure, axes = plt.subplots(len(KINDS), 4, figsize=(13, 3.2 * len(KINDS)), layout="constrained", squeeze=False)
    for row, (kind, title) in zip(axes, KINDS.items(), strict=True):
        shown = {
            "ALFF, one slice": (maps[f"{kind}: alff"][middle], truth["alff"][middle]),
            "static connectivity": (maps[f"{kind}: sfc"], truth["sfc"]),
            "dynamic, planted windows": (maps[f"{kind}: dfc"][..., windows].mean(-1), truth["dfc"].any(-1)),
        }
        for axis, (name, (values, place)) in zip(row, shown.items(), strict=False):
            axis.imshow(values, cmap="inferno", vmin=0, vmax=1)
            axis.contour(place, levels=[0.5], colors="cyan", linewidths=1.2)
            axis.set(title=name, xticks=[], yticks=[])
        row[0].set_ylabel(title)
        row[3].plot(course(maps[f"{kind}: dfc"]), color="black")
        first, last = np.flatnonzero(windows)[[0, -1]]
        row[3].axvspan(first - 0.5, last + 0.5, color="cyan", alpha=0.4)
        row[3].set(title="evidence by window", xlabel="window")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": None})
    plt.close(figure)
    return target


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": values,
    }


def _stated(row: dict[str, Any], digits: int = 3) -> str:
    return f"{row['mean']:.{digits}f}" + (f" ({row['sd']:.{digits}f})" if row["sd"] is not None else "")


def _control(row: dict[str, Any]) -> list[str]:
    away = abs(row["mean"] - 0.5)
    said = "near chance, as it must be."
    if away >= 0.1:
        said = (
            "it swings about chance by seed. Labels that say nothing still leave a network that answers to what is "
            "unusual, one way or the other, and in all patients alike; its evidence is small (see below)."
        )
    each = ", ".join(f"{value:.2f}" for value in row["values"])
    return [f"Trained on shuffled labels the AUROC is {_stated(row)}, by seed {each}: {said}", ""]


def _verdict(kinds: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Plainly which modalities are found."""
    lines = []
    for kind, rows in kinds.items():
        found = [name.upper() for name, row in rows.items() if row["hits"] >= 0.5]
        where = f"in {', '.join(found)} alone" if found and len(found) < len(rows) else "in all" if found else "in none"
        lines.append(
            f"- {KINDS[kind]}: the peak lies in the planted place for most patients {where} of the modalities."
        )
    return lines


def _least(shares: dict[str, dict[str, Any]]) -> list[str]:
    if not shares:
        return []
    order = sorted(shares, key=lambda name: shares[name]["mean"])
    said = "as it should" if order[0] == "fa" else "and it is not structural connectivity, in which nothing was planted"
    return [f"{order[0].upper()} has the lowest share, {said}."]


def _spoken(figures: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[str]:
    """Which maps would be shown: those of modalities that speak for the class."""
    from medxai.explain.brain_evidence import LEAST_EVIDENCE

    lines = [
        "## Which maps are shown",
        "",
        "A map of a network that learnt nothing points at whatever is unusual, and what was planted is unusual: hits",
        "alone are no evidence. What a modality adds to the logit tells the two apart (exact Shapley value). A map is",
        f"shown as evidence from {LEAST_EVIDENCE:g} on and withheld below. Test patients, all seeds.",
        "",
        "| network | modality | with its effect: n, mean logit, shown | without: n, mean logit, shown |",
        "|---|---|---|---|",
    ]
    for arm, by in figures.items():
        for name, kinds in by.items():
            cells = [
                f"{row['n']}, {row['mean']:+.2f}, {row['shown']:.0%}" if (row := kinds.get(kind)) else "-"
                for kind in ("with", "without")
            ]
            lines.append(f"| {TITLES[arm]} | {name.upper()} | {' | '.join(cells)} |")
    return lines


def _mice(found: dict[str, Any]) -> list[str]:
    recall = ", ".join(f"{name} {value:.2f}" for name, value in found["recall"].items())
    lines = [
        "## Real connectomes: genotypes of mice",
        "",
        f"{found['n']} mice of {len(found['genotypes'])} strains, 166 regions (mean of both hemispheres),",
        "structural branch alone; each predicted",
        "by a network that never saw it.",
        f"Accuracy {found['accuracy']:.3f} (chance {1 / len(found['genotypes']):.2f}), p =",
        f"{found['p']:.4f} by shuffling genotypes against the predictions. Recall: {recall}.",
        f"A logistic regression on all edges has {found['linear_accuracy']:.3f}.",
    ]
    if "edges" in found:
        edges = found["edges"]
        lines.append(
            f"Mean map of the recognised mice against the F statistic of each edge: Spearman {edges['spearman']:.3f}, "
            f"p = {edges['p']:.3f} by shuffled regions (n = {edges['shuffles']})."
        )
    return lines
