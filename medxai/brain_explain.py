"""`medxai brain explain`: from features and a fusion bundle to maps, tables, pictures, DICOM objects and pages.

Three stages: the evidence of each subject, the group's mean, the files of each subject. Each is done once; a second run
finds what is finished by the hashes of features, bundle and settings, and writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai import __version__
from medxai.brain_cohort import Member, load_model, members, subjects_of
from medxai.brain_group import Group, group_of
from medxai.brain_inputs import atlas_for, read_series, series_of, transform_of
from medxai.brain_settings import ExplainSettings
from medxai.explain.brain_evidence import brain_evidence, is_current, plain, read_evidence, write_evidence
from medxai.export.brain.figures import write_figures
from medxai.export.brain.maps import write_maps, write_subject_space
from medxai.export.brain.objects import write_objects
from medxai.export.brain.page import write_index, write_page
from medxai.export.brain.subject_view import SubjectView
from medxai.export.brain.tables import write_tables
from medxai.files import write_text
from medxai.identity import sha256_file, sha256_files, sha256_json, sha256_text
from medxai.prepare.brain.atlas import Atlas, read_atlas
from medxai.prepare.brain.derivatives import read_index, read_subject
from medxai.prepare.brain.onto import in_template, own_grid, read_transform
from medxai.prepare.brain.outcome import Outcome, attempt, write_failures

if TYPE_CHECKING:
    from medxai.predict.fusion_bundle import FusionBundle

Say = Callable[[str], None]
#: Raise it when the same settings give other results.
_VERSION = "3"


@dataclass(frozen=True, eq=False)
class Run:
    """What all subjects share.

    Attributes:
        settings: of the run.
        model: bundle, its network in memory.
        atlas: image of the regions; None where none was given.
        people: groups; None where they are not known.
        subjects: in order.
        config_sha256: of everything in the settings that matters.
    """

    settings: ExplainSettings
    model: FusionBundle
    atlas: Atlas | None
    people: Mapping[str, Member] | None
    subjects: tuple[str, ...]
    config_sha256: str

    def folder(self, subject: str) -> Path:
        """Of a subject's files."""
        return self.settings.output / subject

    def features_sha256(self, subject: str) -> str:
        """Hash of a subject's index, which holds those of its files; "" where there is none."""
        path = self.settings.features / subject / f"{subject}_features.json"
        return sha256_file(path) if path.is_file() else ""

    def evidence_key(self, subject: str) -> str:
        """Hash of all that the evidence depends on."""
        return sha256_text(_VERSION, __version__, self.features_sha256(subject), self.model.sha256,
                           str(self.settings.seed))  # fmt: skip


def begin(settings: ExplainSettings, model: FusionBundle | None = None) -> Run:
    """Check what all subjects need.

    Args:
        settings: of the run.
        model: in place of the bundle that the settings name.

    Raises:
        MedxaiError: no features, no such bundle, or an atlas that cannot be read.
    """
    subjects = subjects_of(settings)
    held = model or load_model(settings)
    atlas = read_atlas(settings.atlas) if settings.atlas else None
    people = members(settings, held.labels)
    own = {"features", "output", "bundle", "allow", "subjects", "series", "transform", "atlas", "chunk"}
    values = settings.model_dump(mode="json", exclude=own)
    atlases: list[str] = []
    if settings.atlas:
        files = (settings.atlas.image, settings.atlas.table, settings.atlas.network_image)
        atlases = [sha256_file(path) for path in files if path is not None]
    config = sha256_json([values, atlases, _VERSION, __version__])
    return Run(settings, held, atlas, people, subjects, config)


def find_evidence(run: Run, subject: str, say: Say = lambda _: None) -> Outcome:
    """First stage: what the network says of a subject. A failure is an outcome and stops nobody else."""

    def make() -> str:
        folder, key = run.folder(subject), run.evidence_key(subject)
        if is_current(folder, key):
            return "done before"
        features = read_subject(run.settings.features, subject)
        run.model.check(features)
        found = brain_evidence(run.model, features, seed=run.settings.seed, chunk=run.settings.chunk)
        write_evidence(folder, found, key)
        return "done"

    return _outcome(subject, make, "explained", say)


def write_outputs(run: Run, subject: str, group: Group, say: Say = lambda _: None) -> Outcome:
    """Last stage: all files of a subject; `find_evidence` came before."""
    return _outcome(subject, lambda: _outputs(run, subject, group), "written", say)


def finish(run: Run, outcomes: list[Outcome], group: Group) -> None:
    """Write failures.tsv, the index page and the manifest of the cohort."""
    out = run.settings.output
    failures = [(o.subject, o.code, o.reason) for o in outcomes if o.state == "failed"]
    write_failures(out, outcomes)
    failed = {name for name, _, _ in failures}
    people = run.people or {}
    done = [name for name in run.subjects if name not in failed]
    everyone = [(read_evidence(run.folder(n)), people.get(n, Member()).group, n in group.subjects) for n in done]
    figures = [(title, out / "group" / name) for name, title in group.figures]
    title = f"{run.model.name} {run.model.version}".strip()
    write_index(out, title, everyone, group.words, figures, [(name, reason) for name, _, reason in failures])
    files = [out / "index.html", out / "failures.tsv", *sorted((out / "group").glob("*"))]
    files += [run.folder(name) / "manifest.json" for name in done]
    _manifest(
        out,
        files,
        {
            "model": title, "model_sha256": run.model.sha256, "config_sha256": run.config_sha256,
            "subjects": done, "group": {"words": group.words, "subjects": group.subjects},
        },
    )  # fmt: skip


def explain_cohort(
    settings: ExplainSettings, say: Say = lambda _: None, model: FusionBundle | None = None
) -> list[Outcome]:
    """Explain all subjects, one after the other; finished ones are found.

    Raises:
        MedxaiError: no features, no such bundle, or an atlas that cannot be read.
    """
    run = begin(settings, model)
    found = {name: find_evidence(run, name, say) for name in run.subjects}
    good = tuple(name for name, outcome in found.items() if outcome.state != "failed")
    group = make_group(run, good)
    outcomes = [write_outputs(run, n, group, say) if n in good else found[n] for n in run.subjects]
    finish(run, outcomes, group)
    return outcomes


def make_group(run: Run, subjects: tuple[str, ...]) -> Group:
    """Second stage: the group's mean over those of `subjects` that count; its files lie in ``group``."""
    return group_of(run.settings, run.model, run.people, subjects, run.config_sha256)


def _outputs(run: Run, subject: str, group: Group) -> str:
    settings, folder = run.settings, run.folder(subject)
    series, transform_file = series_of(settings, subject, run.subjects), transform_of(settings, subject, run.subjects)
    files = sorted(p for p in series.rglob("*") if p.is_file()) if series is not None and series.is_dir() else []
    keys = {
        "evidence_key": run.evidence_key(subject),
        "features_sha256": run.features_sha256(subject),
        "model_sha256": run.model.sha256,
        "config_sha256": run.config_sha256,
        "group_sha256": group.sha256,
        "series_sha256": sha256_files(files) if files else "",
        "transform_sha256": sha256_file(transform_file) if transform_file is not None else "",
    }
    if _is_whole(folder, keys):
        return "done before"
    features, found = read_subject(settings.features, subject), read_evidence(folder)
    labels = None
    if run.atlas is not None:
        labels = atlas_for(run.atlas, features)
    view = SubjectView(
        features=features,
        evidence=found,
        model=f"{run.model.name} {run.model.version}".strip(),
        model_sha256=run.model.sha256,
        config_sha256=run.config_sha256,
        inputs_sha256=keys["features_sha256"],
        template=_in_template(settings.features, subject),
        percent=settings.percent,
        atlas=run.atlas,
        labels=labels,
    )
    for path in folder.iterdir():  # of an earlier run; what this one does not write must not stay
        if path.is_file() and path.name not in ("evidence.json", "maps.safetensors"):
            path.unlink()
    transform = read_transform(transform_file) if transform_file is not None else None
    notes = [f"NIfTI maps are in {view.space}."]
    write_tables(view, folder)
    write_maps(view, folder)
    write_figures(view, folder, group.maps, group.title)
    if series is not None:
        study, said = read_series(series, subject, (keys["features_sha256"], keys["transform_sha256"]))
        notes += said
        parameters = {**run.model.marking, "modality": "alff"}
        layer = ", ".join(f"{k} {v}" for k, v in run.model.layers.items())
        notes += write_objects(
            view, study, transform, folder, created=_created(study), top=settings.top_regions,
            series_number=settings.series_number, parameters=parameters, layer=layer,
            send_withheld=settings.send_withheld,
        )[1]  # fmt: skip
    elif transform is not None and features.alff is not None and features.affine is not None:
        shape, affine = own_grid(features.alff.shape, features.affine, transform)
        write_subject_space(view, shape, affine, transform, folder)
        notes.append("alff_map_subject.nii.gz is in the subject's own space, through the transform that was given.")
    elif view.template:
        notes.append("No map in the subject's own space: neither a transform nor a series was given.")
    else:
        notes.append("The features are in the subject's own space, and so is alff_map.nii.gz.")
    write_page(view, folder, group.words, notes)
    outputs = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "manifest.json" and p.name[0] != ".")
    about = {**keys, "subject": subject, "model": view.model, "software": f"medxai {__version__}", "notes": notes}
    _manifest(folder, outputs, {**about, "summary": _summary(view, group)})
    return "done"


def _summary(view: SubjectView, group: Group) -> dict[str, Any]:
    from medxai.explain.brain_evidence import sentences

    known = plain(view.evidence)
    kept = ("probabilities", "labels", "decided", "missing", "shares", "pairs", "map_synergy", "order_dependence")
    return {**{name: known[name] for name in kept}, "sentences": sentences(view.evidence), "group": group.words}


def _manifest(folder: Path, files: list[Path], about: Mapping[str, Any]) -> None:
    rows = [
        {"path": path.relative_to(folder).as_posix(), "sha256": sha256_file(path), "size": path.stat().st_size}
        for path in files
        if path.is_file()
    ]
    text = json.dumps({**about, "outputs": rows}, indent=1, sort_keys=True, default=_jsonable)
    write_text(folder / "manifest.json", text + "\n")


def _jsonable(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else list(value)


def _is_whole(folder: Path, keys: Mapping[str, str]) -> bool:
    try:
        known = json.loads((folder / "manifest.json").read_text())
        same = all(known[name] == value for name, value in keys.items())
        return same and all(sha256_file(folder / row["path"]) == row["sha256"] for row in known["outputs"])
    except (OSError, ValueError, KeyError):
        return False


def _in_template(features: Path, subject: str) -> bool:
    index = read_index(features, subject)
    name = index["features"].get("alff") if index else None
    return bool(name) and in_template(features / subject / str(name))


def _created(study: Any) -> str:
    from medxai.pipeline import created

    return created(study)


def _outcome(subject: str, make: Callable[[], str], what: str, say: Say) -> Outcome:
    outcome = attempt(subject, lambda: Outcome(subject, make()), f"it was {what}")
    if outcome.state == "failed":
        say(f"{subject} failed: {outcome.reason}")
    else:
        say(f"{subject} {what}" + (" before" if outcome.state == "done before" else ""))
    return outcome
