"""Figures of a comparison as JSON, one section for each data set, and the page that is written from all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medxai.errors import SettingsError
from medxai.files import write_text
from medxai.learn.clustering.comparison import result, trained
from medxai.learn.clustering.data import TileSet, as_input, split
from medxai.learn.clustering.page import page
from medxai.learn.clustering.pictures import draw
from medxai.learn.clustering.settings import CLUSTERED, DceacSettings
from medxai.learn.metrics import Array, balanced_accuracy, bootstrap

Say = Callable[[str], None]
#: What an arm's result holds, in the order of the page: (arm, stage).
ROWS = (
    ("attention", "refined"),
    ("attention", "kmeans"),
    ("no_attention", "refined"),
    ("no_attention", "kmeans"),
    ("rgb", "kmeans"),
    ("supervised", "network"),
)
FIGURES = ("accuracy", "balanced_accuracy", "nmi", "ari")


def collect(settings: DceacSettings) -> dict[str, list[dict[str, Any]]]:
    """Finished pieces by arm, in the order of the seeds.

    Raises:
        SettingsError: there is none.
    """
    made = {arm: [found for seed in settings.seeds if (found := result(settings, arm, seed))] for arm in settings.arms}
    if not any(made.values()):
        raise SettingsError("nothing is trained yet; run without --list", study=str(settings.output))
    return {str(arm): found for arm, found in made.items() if found}


def summary(settings: DceacSettings, tiles: TileSet) -> dict[str, Any]:
    """All figures of a data set as JSON."""
    found = collect(settings)
    stated = settings.model_dump(mode="json", exclude={"output"})
    stated["data"]["folders"] = [path.name for path in settings.data.folders]
    section: dict[str, Any] = {
        "settings": stated,
        "tiles": {
            "n": len(tiles.labels),
            "groups": len(set(tiles.groups)),
            "sets": dict(Counter(tiles.sets)),
            "classes": {name: int((tiles.labels == i).sum()) for i, name in enumerate(tiles.classes)},
        },
        "cpu_seconds": sum(float(made["cpu_seconds"]) for rows in found.values() for made in rows),
        "refinement": {arm: _refinement(found[arm]) for arm in CLUSTERED if arm in found},
    }
    rows = {}
    for arm, stage in ROWS:
        made = [piece for piece in found.get(arm, []) if stage in piece]
        if made:
            rows[f"{arm}/{stage}"] = _row(settings, tiles, made, stage)
    return section | {"rows": rows}


def write_report(settings: DceacSettings, tiles: TileSet, out: Path, say: Say) -> list[Path]:
    """Write ``dceac.md``, this data set's section of ``evidence/dceac.json`` and a page of pictures.

    Args:
        settings: of the comparison.
        tiles: as `medxai.learn.clustering.comparison.work` returned them.
        out: folder; sections of other data sets that its evidence holds are kept.
        say: told when the pictures are drawn.
    """
    stored = out / "evidence" / "dceac.json"
    sections: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    sections[settings.name] = summary(settings, tiles)
    paths = [write_text(stored, json.dumps(sections, indent=1, allow_nan=False) + "\n")]
    shown = next(((arm, seed) for arm in CLUSTERED for seed in settings.seeds if _refined(settings, arm, seed)), None)
    if shown is not None:
        arm, seed = shown
        made = result(settings, arm, seed) or {}
        rows = split(tiles, settings.data, seed).test
        names = made["refined"].get("names")
        titles = [
            f"cluster {c + 1}" + (f": {tiles.classes[names[c]]}" if names else "")
            for c in range(settings.network.clusters)
        ]
        pixels = tiles.pixels[rows]
        target = out / "images" / ("dceac.png" if settings.name == "textures" else f"dceac_{settings.name}.png")
        paths.append(draw(trained(settings, arm, seed), pixels, as_input(pixels, settings.data.stain), titles, target))
        say("pictures drawn")
    return [*paths, write_text(out / "dceac.md", page(sections))]


def _refined(settings: DceacSettings, arm: Any, seed: int) -> bool:
    return arm in settings.arms and "refined" in (result(settings, arm, seed) or {})


def _row(settings: DceacSettings, tiles: TileSet, made: list[dict[str, Any]], stage: str) -> dict[str, Any]:
    """Spread over seeds of a stage; the interval resamples whole groups of all scored tiles."""
    parts = [piece[stage] for piece in made]
    row: dict[str, Any] = {"seeds": len(parts)}
    if "colours" in parts[0]:
        row |= {"shares": [part["shares"] for part in parts], "colours": [part["colours"] for part in parts]}
    if not tiles.labelled:
        return row
    row |= {figure: spread([part[figure] for part in parts]) for figure in FIGURES}
    row["classes"] = {
        name: {figure: spread([part["classes"][name][figure] for part in parts]) for figure in figures}
        for name, figures in parts[0]["classes"].items()
    }
    if "chance" in parts[0]:
        row["chance"] = {key: float(np.mean([part["chance"][key] for part in parts])) for key in ("mean", "p95")}
    scored = np.concatenate([split(tiles, settings.data, piece["seed"]).test for piece in made])
    decided = np.eye(len(tiles.classes))[np.concatenate([part["decided"] for part in parts])]
    groups = [tiles.groups[i] for i in scored]
    for name, metric in (("accuracy", _accuracy), ("balanced_accuracy", balanced_accuracy)):
        row["pooled_" + name] = bootstrap(metric, tiles.labels[scored], decided, groups).as_dict()
    sets = np.array([tiles.sets[i] for i in scored])
    if len(set(sets.tolist())) > 1:
        row["set_nmi"] = float(np.mean([_follows(tiles, settings, piece, stage) for piece in made]))
    row["sets"] = {
        name: bootstrap(
            _accuracy,
            tiles.labels[scored][sets == name],
            decided[sets == name],
            [g for g, s in zip(groups, sets, strict=True) if s == name],
        ).as_dict()
        for name in sorted(set(tiles.sets))
    }
    if "maps" in parts[0]:
        row["maps"] = _maps([part["maps"] for part in parts], tiles.classes)
    return row


def _follows(tiles: TileSet, settings: DceacSettings, piece: dict[str, Any], stage: str) -> float:
    """Mutual information of what was decided with where the tiles come from, 0 to 1."""
    from sklearn.metrics import normalized_mutual_info_score

    rows = split(tiles, settings.data, piece["seed"]).test
    return float(normalized_mutual_info_score([tiles.sets[i] for i in rows], piece[stage]["decided"]))


def _maps(parts: list[dict[str, Any]], classes: tuple[str, ...]) -> dict[str, Any]:
    """Means over all tiles of all seeds, and the seeds' own lifts."""
    found: dict[str, Any] = {"identity": max(part["identity"] for part in parts)}
    for name in classes:
        rows = [part[name] for part in parts if name in part]
        if not rows:
            continue
        n = np.array([row["n"] for row in rows], float)
        found[name] = {"n": int(n.sum()), "by_seed": [row["lift"] for row in rows]}
        for key in ("share", "lift", "peak", "attention", "error"):
            values = [row[key] for row in rows]
            known = all(value is not None for value in values)
            found[name][key] = float((n * values).sum() / n.sum()) if known else None
    return found


def _refinement(made: list[dict[str, Any]]) -> dict[str, Any]:
    how = [piece["refinement"] for piece in made if "refinement" in piece]
    return {
        "updates": [row["updates"] for row in how],
        "stopped_by_tolerance": sum(row["stopped_by_tolerance"] for row in how),
        "revived": sum(row["revived"] for row in how),
        "error_over_step_1": [row["errors"][-1] / row["errors"][0] for row in how],
        "collapsed": [piece["collapsed"] for piece in made if "collapsed" in piece],
    }


def spread(values: list[float | None]) -> dict[str, Any]:
    """Mean, standard deviation and the values of the seeds; those that are undefined are left out."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "values": values,
    }


def _accuracy(labels: Array, shares: Array) -> float:
    return float((np.asarray(shares).argmax(1) == labels).mean())
