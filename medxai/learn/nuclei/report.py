"""Figures of a comparison as JSON, pictures, and the page that is written from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medxai.errors import SettingsError
from medxai.files import write_text
from medxai.learn.clustering.report import spread
from medxai.learn.metrics import bootstrap
from medxai.learn.nuclei.comparison import fields_of, result, segmented, trained
from medxai.learn.nuclei.data import read_fields
from medxai.learn.nuclei.page import page
from medxai.learn.nuclei.pictures import draw_fields, draw_labels, draw_training
from medxai.learn.nuclei.scores import NAMES
from medxai.learn.nuclei.settings import Arm, NucleiSettings
from medxai.learn.nuclei.truth import read_masked
from medxai.predict.nuclei import NucleiField

Say = Callable[[str], None]
#: Compared in pairs on the same fields: (name, arm, arm it is compared with).
GAINS: tuple[tuple[str, Arm, Arm], ...] = (
    ("full over fixed", "full", "fixed"),
    ("full over kept", "full", "kept"),
    ("dcs over fixed", "dcs", "fixed"),
    ("dcs over kept", "dcs", "kept"),
    ("dcs_ccl over dcs", "dcs_ccl", "dcs"),
    ("full over dcs_ccl", "full", "dcs_ccl"),
    ("dcs over block", "dcs", "block"),
    ("full over fixed, strong jitter", "full_jitter", "fixed_jitter"),
    ("supervised over full", "supervised", "full"),
)
GAIN_FIGURES = ("dice", "aji", "pq")
#: Fields in the picture.
SHOWN = 4


def collect(settings: NucleiSettings) -> dict[Arm, list[dict[str, Any]]]:
    """Finished pieces by arm, in the order of the seeds.

    Raises:
        SettingsError: there is none.
    """
    made = {arm: [found for seed in settings.seeds if (found := result(settings, arm, seed))] for arm in settings.arms}
    if not any(made.values()):
        raise SettingsError("nothing is trained yet; run without --list", study=str(settings.output))
    return {arm: found for arm, found in made.items() if found}


def summary(settings: NucleiSettings) -> dict[str, Any]:
    """All figures as JSON."""
    found = collect(settings)
    stated = settings.model_dump(mode="json", exclude={"output"})
    for name in ("train", "test"):
        path = getattr(settings.data, name)
        stated["data"][name] = None if path is None else path.name
    folders = fields_of(settings)
    learnt, scored = read_fields(folders.train, 1), read_masked(folders.test)
    return {
        "settings": stated,
        "fields": {
            "train": len(learnt),
            "points": sum(len(field.points) for field in learnt),
            "test": len(scored),
            "nuclei": sum(int(field.instances.max()) for field in scored),
        },
        "cpu_seconds": sum(float(piece["cpu_seconds"]) for rows in found.values() for piece in rows),
        "arms": {arm: _row(pieces) for arm, pieces in found.items()},
        "gains": {
            name: {figure: _gain(found[one], found[other], figure) for figure in GAIN_FIGURES}
            for name, one, other in GAINS
            if one in found and other in found
        },
        "history": {arm: [piece["history"] for piece in rows] for arm, rows in found.items() if rows[0]["history"]},
    }


def write_report(settings: NucleiSettings, out: Path, say: Say) -> list[Path]:
    """Write ``nuclei.md``, ``evidence/nuclei.json`` and pictures below `out`; returns what was written.

    Raises:
        SettingsError: nothing is trained yet.
    """
    found = summary(settings)
    best: tuple[Arm, ...] = ("full", "dcs_ccl", "dcs", "kept", "fixed")
    shown = next((arm for arm in best if arm in found["arms"]), None)
    paths = []
    if shown is not None:
        network = trained(settings, shown, collect(settings)[shown][0]["seed"])
        every = read_masked(fields_of(settings).test)
        answers = [segmented(network, field) for field in every]
        found["shown"] = {"arm": shown} | audit(answers, settings.network.mpp)
        target = out / "images" / "nuclei.png"
        paths.append(draw_fields(every[:SHOWN], answers[:SHOWN], settings.network.mpp, target))
        learnt = read_fields(fields_of(settings).train, settings.training.crop)[:SHOWN]
        paths.append(draw_labels(network, learnt, settings, out / "images" / "nuclei_labels.png"))
        if shown in found["history"]:
            paths.append(draw_training(found["history"][shown], out / "images" / "nuclei_training.png"))
        say("pictures drawn")
    paths.append(write_text(out / "evidence" / "nuclei.json", json.dumps(found, indent=1, allow_nan=False) + "\n"))
    return [*paths, write_text(out / "nuclei.md", page(found))]


def audit(answers: Sequence[NucleiField], mpp: float) -> dict[str, Any]:
    """What a reader is told of each field: count, nuclei per square millimetre, block, its agreement, doubts."""
    rows = []
    for answer in answers:
        words = [word for flags in answer.flags for word in flags.split()]
        area = answer.labels.size * (mpp / 1000) ** 2
        rows.append(
            {
                "count": len(answer.flags),
                "per_mm2": len(answer.flags) / area,
                "block": answer.block,
                "agreement": answer.agreement,
                "flags": {word: words.count(word) for word in ("unseeded", "uncertain", "merged?", "split?")},
            }
        )
    return {"fields": rows}


def _row(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """Every figure: spread over seeds of the mean over fields, and an interval that resamples fields."""
    row: dict[str, Any] = {"seeds": len(pieces), "fixed_block": [piece["fixed_block"] for piece in pieces]}
    for name in NAMES:
        values = _by_field(pieces, name)
        row[name] = spread([float(np.mean(piece["scores"][name])) for piece in pieces])
        row[name]["interval"] = _interval(values)
    return row


def _by_field(pieces: list[dict[str, Any]], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean over seeds ``[fields]``."""
    return np.asarray(np.mean([piece["scores"][name] for piece in pieces], axis=0))


def _gain(one: list[dict[str, Any]], other: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Difference on the same fields and seeds."""
    seeds = [piece["seed"] for piece in other]
    mine = [piece for piece in one if piece["seed"] in seeds]
    theirs = [next(p for p in other if p["seed"] == piece["seed"]) for piece in mine]
    by_seed = [
        float(np.mean(a["scores"][name]) - np.mean(b["scores"][name])) for a, b in zip(mine, theirs, strict=True)
    ]
    return _interval(_by_field(mine, name) - _by_field(theirs, name)) | {"by_seed": by_seed}


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float | int]:
    names = [str(number) for number in range(len(values))]
    return bootstrap(lambda a, _: float(np.asarray(a, float).mean()), values, values, names).as_dict()
