"""`medxai brain ablate`: what a fusion network owes to each functional network, on a labelled cohort."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai import __version__
from medxai.brain_cohort import Member, load_model, members, subjects_of, unlabelled
from medxai.brain_settings import AblateSettings
from medxai.errors import MedxaiError, MismatchError
from medxai.files import write_text
from medxai.identity import sha256_file, sha256_json
from medxai.prepare.brain.derivatives import read_subject
from medxai.prepare.brain.subject import SubjectFeatures

if TYPE_CHECKING:
    from medxai.export.ablation_page import Findings
    from medxai.networks.hierarchical_fusion import HierarchicalFusion
    from medxai.predict.fusion_bundle import FusionBundle
    from medxai.trust.network_ablation import Mode, NetworkEffect, Score
    from medxai.trust.remembered_score import Remembered

Say = Callable[[str], None]
#: Raise it when the same settings give other results.
_VERSION = "2"
#: Columns of participants.tsv that tell who is not split over folds.
_KIN = ("carrier", "family")
#: Seconds between two lines of progress.
_SAY_EVERY = 10.0


@dataclass(frozen=True, eq=False)
class Cohort:
    """Labelled subjects.

    Attributes:
        subjects: their features.
        truth: index of the class of each.
        left_out: subjects without a class, without a modality or unreadable, and why.
        sha256: of the indices of their features.
    """

    subjects: tuple[SubjectFeatures, ...]
    truth: tuple[int, ...]
    left_out: Mapping[str, str]
    sha256: str


def read_cohort(settings: AblateSettings, model: FusionBundle) -> Cohort:
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
    indices = [sha256_file(settings.features / s.subject / f"{s.subject}_features.json") for s in subjects]
    return Cohort(tuple(subjects), tuple(truth), left_out, sha256_json(indices))


def read_kin(settings: AblateSettings, subjects: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """Column of participants.tsv that keeps subjects in one fold, and what it says of each; None without one.

    Who has no entry there is alone.

    Raises:
        MismatchError: the column of the settings does not exist.
    """
    lines = (settings.features / "participants.tsv").read_text(encoding="utf-8-sig").splitlines()
    rows = list(csv.DictReader(lines, delimiter="\t"))
    has = rows[0].keys() if rows else ()
    column = settings.group_by or next((name for name in _KIN if name in has), None)
    if column is None:
        return None
    if column not in has:
        raise MismatchError(f"participants.tsv has no column {column!r}, which 'group_by' of the settings names")
    known = {}
    for row in rows:
        name, value = str(row["participant_id"] or "").strip(), str(row[column] or "").strip()
        known[name if name.startswith("sub-") else f"sub-{name}"] = "" if value == "n/a" else value
    return column, tuple(known.get(subject) or subject for subject in subjects)


def ablate(settings: AblateSettings, say: Say = lambda _: None, model: FusionBundle | None = None) -> Path:
    """Ablate all networks; returns the path of ``ablation.json``. Done before with the same inputs, it is left alone.

    What the model answered is kept beside it, so that an interrupted run goes on.

    Raises:
        MedxaiError: no features, no such bundle, or no cohort that can be scored.
    """
    from medxai.export.ablation_page import write_page, write_pictures, write_table
    from medxai.trust.fusion_ablation import FusionAblation
    from medxai.trust.remembered_score import Remembered

    held, out = model or load_model(settings), settings.output
    cohort = read_cohort(settings, held)
    kin = None if settings.retrain == "none" else read_kin(settings, [s.subject for s in cohort.subjects])
    key = _key(settings, held, cohort, kin)
    if _whole(out, key):
        say("done before")
        return out / "ablation.json"
    for name, reason in cohort.left_out.items():
        say(f"{name} left out: {reason}")
    score = FusionAblation(held, cohort.subjects, cohort.truth, settings.operator, settings.batch, settings.seed)
    drawn = None if settings.operator == "mean" else settings.seed
    answers = out / "answers.safetensors"
    trained = Remembered(score, answers, _asked(held, cohort, settings.operator, drawn))
    found = _measured(trained, "trained", cohort, settings, settings.draws, say)
    files = [answers]
    about: dict[str, Any] = {
        "key": key, "model": f"{held.name} {held.version}".strip(), "model_sha256": held.sha256,
        "software": f"medxai {__version__}", "operator": settings.operator, "draws": settings.draws,
        "subjects": [s.subject for s in cohort.subjects], "left_out": dict(cohort.left_out),
        "classes": {label: cohort.truth.count(n) for n, label in enumerate(held.labels) if n in cohort.truth},
        "positive": held.labels[held.positive], "taken_from": score.matrices,
        "left_in": [n for n in held.network().modalities if n not in score.matrices], "retrained": None,
        "metrics": {item.metric: item.plain() for item in found},
    }  # fmt: skip
    about["fa_left_in"] = "fa" in about["left_in"]
    if settings.retrain != "none":
        files.append(out / "answers_retrained.safetensors")
        more, how = _retrained(settings, held, cohort, score.matrices, kin, say)
        about["retrained"] = {**how, "metrics": {item.metric: item.plain() for item in more}}
        found += more
    files += [*write_pictures(out, found, len(cohort.subjects)), write_table(out / "networks.tsv", found),
              _scores(out, cohort, held, trained), write_page(out / "ablation.md", about, found)]  # fmt: skip
    about["outputs"] = [{"path": p.name, "sha256": sha256_file(p), "size": p.stat().st_size} for p in sorted(files)]
    return write_text(out / "ablation.json", json.dumps(about, indent=1, sort_keys=True) + "\n")


def _retrained(
    settings: AblateSettings, held: FusionBundle, cohort: Cohort, matrices: tuple[str, ...],
    kin: tuple[str, tuple[str, ...]] | None, say: Say,
) -> tuple[list[Findings], dict[str, Any]]:  # fmt: skip
    """Findings of a model trained anew, and how it was trained."""
    from medxai.learn.fusion_retraining import FusionRetraining
    from medxai.trust.linear_retraining import LinearRetraining
    from medxai.trust.remembered_score import Remembered

    folds = _folds(cohort, kin[1] if kin else None, settings)
    how: dict[str, Any] = {"kind": settings.retrain, "folds": int(folds.max()) + 1, "group_by": kin[0] if kin else None}
    common = (cohort.subjects, matrices, cohort.truth, held.positive, folds)
    score: Score
    if settings.retrain == "linear":
        how |= {"strength": settings.retrain_strength, "draws": settings.draws}
        score = LinearRetraining(*common, strength=settings.retrain_strength)
    else:
        how |= {"epochs": settings.retrain_epochs, "draws": settings.retrain_draws}
        score = FusionRetraining(lambda: _fresh(settings), *common, epochs=settings.retrain_epochs, seed=settings.seed)
    own = {name: value for name, value in how.items() if name != "draws"}
    key = _asked(held, cohort, own, folds.tolist(), settings.seed, matrices)
    asked = Remembered(score, settings.output / "answers_retrained.safetensors", key)
    return _measured(asked, settings.retrain, cohort, settings, how["draws"], say), how


def _folds(cohort: Cohort, kin: Sequence[str] | None, settings: AblateSettings) -> npt.NDArray[np.int64]:
    """Fold of each subject: classes alike, kin together; fewer folds where a class has fewer subjects or kin.

    Raises:
        MismatchError: a class has one subject or family alone.
    """
    from medxai.learn.splits import grouped_folds

    groups = [s.subject for s in cohort.subjects] if kin is None else list(kin)
    of_class = [{g for g, t in zip(groups, cohort.truth, strict=True) if t == label} for label in {*cohort.truth}]
    fewest = min(len(found) for found in of_class)
    if fewest < 2:
        raise MismatchError("a class has one subject or family alone; training anew needs two of every class")
    return grouped_folds(cohort.truth, groups, min(settings.retrain_folds, fewest), settings.seed)


def _fresh(settings: AblateSettings) -> HierarchicalFusion:
    """The bundle's network with random weights; its definition was checked when it was loaded."""
    from medxai.networks.hierarchical_fusion import HierarchicalFusion
    from medxai.predict.build import read_config
    from medxai.predict.bundle import locate_bundle

    definition = read_config(locate_bundle(settings.bundle))["network_def"]
    return HierarchicalFusion(**{name: value for name, value in definition.items() if not name.startswith("_")})


def _measured(
    score: Remembered, kind: str, cohort: Cohort, settings: AblateSettings, draws: int, say: Say
) -> list[Findings]:
    """Both metrics of one kind of ablation. A network is trained too long for more than being left out."""
    from medxai.export.ablation_page import KINDS, METRICS, Findings
    from medxai.trust.fusion_ablation import auroc, log_probability
    from medxai.trust.network_ablation import NetworkAblation

    whole = kind != "network"
    modes: tuple[Mode, ...] = ("without", "only") if settings.only and whole else ("without",)
    networks = cohort.subjects[0].networks
    sets = NetworkAblation(score, networks).sets(modes, draws, settings.seed, pairs=whole, all_sets=whole)
    score.ask(sets, _Progress(say, KINDS[kind]))
    found = []
    for metric, function in zip(METRICS, (log_probability, auroc), strict=True):
        ablation = NetworkAblation(score, networks, function)
        effects: dict[str, Sequence[NetworkEffect]] = {
            mode: ablation.effects(mode, draws, settings.seed, resamples=settings.resamples) for mode in modes
        }
        pairs, worth = (ablation.synergy(), ablation.shapley()) if whole else (None, None)
        found.append(Findings(kind, metric, ablation.networks, effects, pairs, worth))
    return found


class _Progress:
    """Says now and then how many sets are done and how long the rest takes."""

    def __init__(self, say: Say, what: str) -> None:
        self._say, self._what, self._started, self._first = say, what, time.monotonic(), -1
        self._said = self._started

    def __call__(self, done: int, of: int) -> None:
        if self._first < 0:
            self._first = done - 1
        now = time.monotonic()
        if done < of and now - self._said < _SAY_EVERY:
            return
        self._said = now
        left = (now - self._started) / (done - self._first) * (of - done)
        self._say(f"{self._what}: {done} of {of} sets of regions" + (f", {left:.0f} s left" if done < of else ""))


def _key(settings: AblateSettings, held: FusionBundle, cohort: Cohort, kin: object) -> str:
    own = {"features", "output", "bundle", "allow", "batch", "subjects"}
    return sha256_json([_asked(held, cohort), settings.model_dump(mode="json", exclude=own), kin])


def _asked(held: FusionBundle, cohort: Cohort, *more: object) -> str:
    """Hash of what answers depend on."""
    return sha256_json([_VERSION, __version__, held.sha256, cohort.sha256, list(cohort.truth), *more])


def _whole(out: Path, key: str) -> bool:
    try:
        known = json.loads((out / "ablation.json").read_text())
        return known["key"] == key and all(sha256_file(out / r["path"]) == r["sha256"] for r in known["outputs"])
    except (OSError, ValueError, KeyError):
        return False


def _scores(out: Path, cohort: Cohort, held: FusionBundle, score: Remembered) -> Path:
    """One row a subject: log-probability of the true class, with all regions and without each network."""
    from medxai.export.ablation_page import number, write_tsv

    labels = np.array(cohort.subjects[0].networks)
    names = sorted({*labels.tolist()} - {""})
    masks = [np.zeros(len(labels), bool), *(labels == name for name in names)]
    columns = [score(mask)[:, 0] for mask in masks]
    rows = [
        (s.subject, held.labels[t], *(number(float(column[n])) for column in columns))
        for n, (s, t) in enumerate(zip(cohort.subjects, cohort.truth, strict=True))
    ]
    return write_tsv(out / "subjects.tsv", ("participant_id", "class", "all", *(f"without_{n}" for n in names)), rows)
