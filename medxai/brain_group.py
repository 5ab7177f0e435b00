"""The mean map of a group: patients that the network finds, or all that it calls so where nobody's group is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.brain_cohort import Member
from medxai.brain_settings import ExplainSettings
from medxai.explain.brain_evidence import BrainEvidence, read_evidence
from medxai.explain.group_map import GroupMean
from medxai.export.brain.figures import write_group_figures
from medxai.export.brain.maps import write_maps
from medxai.export.brain.subject_view import SubjectView
from medxai.export.brain.tables import write_tables
from medxai.files import write_bytes, write_text
from medxai.identity import sha256_json
from medxai.prepare.brain.derivatives import read_index, read_subject
from medxai.prepare.brain.onto import in_template
from medxai.prepare.brain.subject import MODALITIES

if TYPE_CHECKING:
    from medxai.predict.fusion_bundle import FusionBundle


@dataclass(frozen=True, eq=False)
class Group:
    """A group's mean.

    Attributes:
        subjects: that count.
        maps: mean by modality; none where nobody counts.
        words: what the group is, in a sentence.
        title: the same for a legend.
        sha256: of subjects and what their maps were made from.
        figures: names of the pictures in the folder ``group``, with their titles.
    """

    subjects: tuple[str, ...]
    maps: Mapping[str, npt.NDArray[np.float64]]
    words: str
    title: str
    sha256: str
    figures: tuple[tuple[str, str], ...] = ()


def group_of(
    settings: ExplainSettings,
    model: FusionBundle,
    people: Mapping[str, Member] | None,
    subjects: tuple[str, ...],
    config: str,
) -> Group:
    """Choose who counts, take the plain mean of the maps, and write it into the folder ``group``.

    Args:
        settings: of the run.
        model: the bundle.
        people: groups of the subjects; None where participants.tsv has none.
        subjects: whose evidence lies in the output folder.
        config: hash of the settings.
    """
    everyone = {name: read_evidence(settings.output / name) for name in subjects}
    label = model.labels[model.positive]
    called = [name for name, found in everyone.items() if found.decided == model.positive]
    if people is not None and any(people.get(name, Member()).label is not None for name in subjects):
        chosen = tuple(n for n in called if people.get(n, Member()).label == model.positive)
        true = sum(people.get(n, Member()).label == model.positive for n in subjects)
        words = (
            f"Plain mean of the {len(chosen)} of {true} subjects of the group {label} that are classified correctly."
        )
    else:
        chosen = tuple(called)
        words = f"Plain mean of all {len(chosen)} subjects that are called {label}; nobody's group is known."
    keys = [json.loads((settings.output / n / "evidence.json").read_text())["key"] for n in chosen]
    digest = sha256_json([chosen, keys, words, config])
    folder, title = settings.output / "group", f"mean of {len(chosen)}"
    maps = mean_maps([everyone[name] for name in chosen])
    folder.mkdir(parents=True, exist_ok=True)
    known = _known(folder)
    if chosen and known.get("sha256") == digest:
        return Group(chosen, maps, words, title, digest, tuple((a, b) for a, b in known["figures"]))
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    if not chosen:
        words = words.replace("Plain mean of", "No group map:", 1)
        write_text(folder / "group.json", json.dumps({"words": words, "subjects": []}, indent=1) + "\n")
        return Group((), {}, words, "no group", digest)
    view = _view(settings, model, everyone[chosen[0]], chosen, maps, config)
    from safetensors.numpy import save

    kept = save({n: np.ascontiguousarray(v, np.float32) for n, v in maps.items()})
    write_bytes(folder / "maps.safetensors", kept)
    write_tables(view, folder)
    write_maps(view, folder)
    figures = write_group_figures(view, folder)
    about = {"words": words, "subjects": chosen, "sha256": digest, "figures": figures}
    write_text(folder / "group.json", json.dumps(about, indent=1, sort_keys=True) + "\n")  # last: it is whole then
    return Group(chosen, maps, words, title, digest, figures)


def _known(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "group.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def mean_maps(everyone: list[BrainEvidence]) -> dict[str, npt.NDArray[np.float64]]:
    """Plain mean by modality over those who have it, the same in any order."""
    found = {}
    for name in MODALITIES:
        mean = GroupMean()
        for evidence in everyone:
            if name in evidence.maps:
                mean.add(evidence.maps[name])
        if mean.subjects:
            found[name] = mean.mean
    return found


def _view(
    settings: ExplainSettings, model: FusionBundle, first: BrainEvidence, chosen: tuple[str, ...],
    maps: Mapping[str, npt.NDArray[np.float64]], config: str,
) -> SubjectView:  # fmt: skip
    """The group in the form of a subject, for tables and pictures: means of features and maps."""
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}
    one = read_subject(settings.features, chosen[0])
    for name in chosen:
        features = read_subject(settings.features, name)
        one = features if one.alff is None and features.alff is not None else one
        for modality in features.present:
            array = getattr(features, modality).astype(float)
            sums[modality] = array if modality not in sums else sums[modality] + array
            counts[modality] = counts.get(modality, 0) + 1
    means = {m: (sums[m] / counts[m]).astype(np.float32) if m in sums else None for m in MODALITIES}
    index = read_index(settings.features, one.subject)
    file = index["features"].get("alff") if index else None
    return SubjectView(
        features=replace(one, subject="group", **means),  # type: ignore[arg-type]
        evidence=replace(first, subject="group", maps={n: v.astype(np.float32) for n, v in maps.items()}),
        model=f"{model.name} {model.version}".strip(),
        model_sha256=model.sha256,
        config_sha256=config,
        inputs_sha256="",
        template=bool(file) and in_template(settings.features / one.subject / str(file)),
        percent=settings.percent,
    )
