"""`medxai brain ablate`: what a fusion network owes to each functional network, on a labelled cohort."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai import __version__
from medxai.brain_cohort import Held, Member, load_model, members, subjects_of, unlabelled
from medxai.brain_settings import AblateSettings
from medxai.errors import MedxaiError, MismatchError
from medxai.files import write_text
from medxai.identity import sha256_file, sha256_json
from medxai.prepare.brain.derivatives import read_subject
from medxai.prepare.brain.subject import SubjectFeatures

if TYPE_CHECKING:
    from medxai.trust.network_ablation import NetworkEffect

Say = Callable[[str], None]
_METRICS = {"log_probability": "log-probability of the true class", "auroc": "AUROC"}
_MODES = {"without": "Drop", "only": "Gain"}
_VERSION = "1"


@dataclass(frozen=True, eq=False)
class Cohort:
    """Labelled subjects.

    Attributes:
        subjects: their features.
        truth: index of the class of each.
        left_out: subjects without a class, without a modality or unreadable, and why.
    """

    subjects: tuple[SubjectFeatures, ...]
    truth: tuple[int, ...]
    left_out: Mapping[str, str]


def read_cohort(settings: AblateSettings, model: Held) -> Cohort:
    """Read the labelled subjects.

    Raises:
        MismatchError: nobody's class is known, all are of one, or their regions have no networks.
        IngestError: no features.
    """
    names = subjects_of(settings)
    people = members(settings, model.labels)
    if people is None:
        raise MismatchError(unlabelled(settings.features / "participants.tsv"))
    subjects: list[SubjectFeatures] = []
    truth: list[int] = []
    left_out: dict[str, str] = {}
    for name in names:
        member = people.get(name, Member())
        if member.label is None:
            left_out[name] = f"group {member.group or 'n/a'} is no class of the bundle"
            continue
        try:
            features = read_subject(settings.features, name)
            model.check(features)
            model.scaling().scaled(features)
            if subjects and features.regions != subjects[0].regions:
                raise MismatchError(f"{len(features.regions)} regions, others have {len(subjects[0].regions)}")
        except MedxaiError as error:
            left_out[name] = error.reason
            continue
        subjects.append(features)
        truth.append(member.label)
    if len({*truth}) < 2:
        groups = ", ".join(sorted({m.group for m in people.values() if m.group})) or "none"
        words = f"{len(truth)} subjects can be scored, of {len({*truth})} classes; ablation needs two. The groups are "
        words += f"{groups}, the bundle's classes {', '.join(model.labels)}; 'groups' of the settings maps them"
        raise MismatchError(words)
    if not any(subjects[0].networks):
        words = "no region has a functional network; name them in the atlas's table or give --networks to features"
        raise MismatchError(words)
    return Cohort(tuple(subjects), tuple(truth), left_out)


def ablate(settings: AblateSettings, say: Say = lambda _: None, model: Held | None = None) -> Path:
    """Ablate all networks; returns the path of ``ablation.json``. Done before with the same inputs, it is left alone.

    Raises:
        MedxaiError: no features, no such bundle, or no cohort that can be scored.
    """
    from medxai.explain.brain_evidence import MATRICES
    from medxai.export.ablation_chart import effect_chart, synergy_picture
    from medxai.trust.fusion_ablation import FusionAblation, auroc, log_probability
    from medxai.trust.network_ablation import NetworkAblation

    held, out = model or load_model(settings), settings.output
    cohort = read_cohort(settings, held)
    key = _key(settings, held, cohort)
    if _whole(out, key):
        say("done before")
        return out / "ablation.json"
    for name, reason in cohort.left_out.items():
        say(f"{name} left out: {reason}")
    score = FusionAblation(held, cohort.subjects, cohort.truth, settings.operator, settings.batch, settings.seed)
    networks = cohort.subjects[0].networks
    found: dict[str, Any] = {}
    files: list[Path] = []
    for metric, function in (("log_probability", log_probability), ("auroc", auroc)):
        ablation = NetworkAblation(score, networks, function)
        effects = {}
        for mode in _MODES if settings.only else ("without",):
            say(f"{_METRICS[metric]}: {len(ablation.networks)} networks, {mode}")
            effects[mode] = ablation.effects(mode, settings.draws, settings.seed, resamples=settings.resamples)  # type: ignore[arg-type]
            files.append(out / f"{metric}_{mode}.png")
            out.mkdir(parents=True, exist_ok=True)
            effect_chart(effects[mode], files[-1], _METRICS[metric], _MODES[mode])
        pairs = ablation.synergy()
        files.append(out / f"{metric}_synergy.png")
        synergy_picture(pairs, ablation.networks, files[-1])
        say(f"{_METRICS[metric]}: exact Shapley values of {2 ** len(ablation.networks)} sets")
        found[metric] = {"effects": effects, "synergy": pairs, "shapley": ablation.shapley(),
                         "networks": ablation.networks}  # fmt: skip
    untouched = [n for n in held.network().modalities if n not in score.matrices]
    about: dict[str, Any] = {
        "key": key, "model": f"{held.name} {held.version}".strip(), "model_sha256": held.sha256,
        "software": f"medxai {__version__}", "operator": settings.operator, "draws": settings.draws,
        "subjects": [s.subject for s in cohort.subjects], "left_out": dict(cohort.left_out),
        "taken_from": score.matrices, "left_in": untouched,
        "fa_left_in": "fa" in untouched and "fa" in MATRICES,
        "metrics": {name: _plain(item) for name, item in found.items()},
    }  # fmt: skip
    files += [_table(out, found), _scores(out, cohort, held, score), _page(out, about, found)]
    about["outputs"] = [{"path": p.name, "sha256": sha256_file(p), "size": p.stat().st_size} for p in sorted(files)]
    return write_text(out / "ablation.json", json.dumps(about, indent=1, sort_keys=True) + "\n")


def _key(settings: AblateSettings, held: Held, cohort: Cohort) -> str:
    own = {"features", "output", "bundle", "allow", "batch", "subjects"}
    indices = [sha256_file(settings.features / s.subject / f"{s.subject}_features.json") for s in cohort.subjects]
    return sha256_json([_VERSION, __version__, held.sha256, settings.model_dump(mode="json", exclude=own), indices,
                        list(cohort.truth)])  # fmt: skip


def _whole(out: Path, key: str) -> bool:
    try:
        known = json.loads((out / "ablation.json").read_text())
        return known["key"] == key and all(sha256_file(out / r["path"]) == r["sha256"] for r in known["outputs"])
    except (OSError, ValueError, KeyError):
        return False


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    names: tuple[str, ...] = item["networks"]
    return {
        "effects": {
            mode: [{**_row(e), "null_mean": float(e.null.mean()), "sentence": sentence(e, mode)} for e in effects]
            for mode, effects in item["effects"].items()
        },
        "shapley": dict(item["shapley"]),
        "synergy": {"networks": names, "matrix": np.asarray(item["synergy"]).tolist()},
    }


def _row(effect: NetworkEffect) -> dict[str, Any]:
    names = ("network", "regions", "reference", "metric", "effect", "low", "high", "z", "p", "p_holm")
    values = {name: getattr(effect, name) for name in names}
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in values.items()}


def sentence(effect: NetworkEffect, mode: str, what: str = "the score") -> str:
    """An effect in words: the sentence of `NetworkEffect`, turned round for a network alone."""
    if mode == "without":
        return effect.sentence(what)
    random = effect.reference + float(effect.null.mean())
    return (
        f"The {effect.network} network alone changed {what} from {effect.reference:.3f} (nothing) to "
        f"{effect.metric:.3f} (corrected p={effect.p_holm:.3f}); random sets of the same size changed it to "
        f"{random:.3f} on average."
    )


def _table(out: Path, found: Mapping[str, Any]) -> Path:
    heads = ("metric", "mode", "network", "regions", "reference", "value", "effect", "low", "high", "null_mean", "z",
             "p", "p_holm", "shapley")  # fmt: skip
    rows = []
    for metric, item in found.items():
        for mode, effects in item["effects"].items():
            for e in effects:
                numbers = (e.reference, e.metric, e.effect, e.low, e.high, float(e.null.mean()), e.z, e.p, e.p_holm,
                           item["shapley"][e.network])  # fmt: skip
                rows.append((metric, mode, e.network, e.regions, *(_number(v) for v in numbers)))
    return _tsv(out / "networks.tsv", heads, rows)


def _scores(out: Path, cohort: Cohort, held: Held, score: Callable[[Any], Any]) -> Path:
    """One row a subject: log-probability of the true class, with all regions and without each network."""
    labels = np.array(cohort.subjects[0].networks)
    names = sorted({*labels.tolist()} - {""})
    masks = [np.zeros(len(labels), bool), *(labels == name for name in names)]
    columns = [score(mask)[:, 0] for mask in masks]
    rows = [
        (s.subject, held.labels[t], *(_number(float(column[n])) for column in columns))
        for n, (s, t) in enumerate(zip(cohort.subjects, cohort.truth, strict=True))
    ]
    return _tsv(out / "subjects.tsv", ("participant_id", "class", "all", *(f"without_{n}" for n in names)), rows)


def _page(out: Path, about: Mapping[str, Any], found: Mapping[str, Any]) -> Path:
    """``ablation.md``: sentences, tables and pictures."""
    lines = [
        "# Ablation of functional networks", "",
        f"{about['model']}, {len(about['subjects'])} subjects. Regions are taken from {', '.join(about['taken_from'])}"
        f" ({about['operator']}); left as they are: {', '.join(about['left_in']) or 'nothing'}. Null: "
        f"{about['draws']} random sets as large; p corrected after Holm; 95 % intervals over subjects.",
        "", "Research marker, not a diagnosis.", "",
    ]  # fmt: skip
    if about["fa_left_in"]:
        lines += ["FA is over other regions than functional connectivity, so that networks stay in it.", ""]
    for metric, item in found.items():
        lines += [f"## {_METRICS[metric].capitalize() if metric != 'auroc' else 'AUROC'}", ""]
        for mode, effects in item["effects"].items():
            lines += [f"- {sentence(e, mode, _METRICS[metric])}" for e in effects]
            lines += ["", f"![Effects]({metric}_{mode}.png)", ""]
        lines += ["| network | Shapley value |", "|---|---|"]
        lines += [f"| {name} | {value:+.4f} |" for name, value in item["shapley"].items()]
        lines += ["", f"![What two do together]({metric}_synergy.png)", ""]
    return write_text(out / "ablation.md", "\n".join(lines))


def _tsv(path: Path, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    return write_text(path, "\n".join(["\t".join(heads), *("\t".join(map(str, row)) for row in rows)]) + "\n")


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.6g}"
