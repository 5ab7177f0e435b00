"""What explaining and ablating share: subjects of a data set of features, their groups, and the bundle."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medxai.errors import IngestError, MismatchError
from medxai.prepare.brain.derivatives import read_index

if TYPE_CHECKING:
    from medxai.brain_settings import CohortSettings
    from medxai.predict.fusion_bundle import FusionBundle


def load_model(settings: CohortSettings) -> FusionBundle:
    """The bundle of a fusion network.

    Raises:
        BundleError: not found, of another kind, or not trusted.
    """
    from medxai.predict.bundle import AllowList
    from medxai.predict.fusion_bundle import load_fusion

    allow = AllowList.read(settings.allow).joined(AllowList.shipped()) if settings.allow else None
    return load_fusion(settings.bundle, allow)


def subjects_of(settings: CohortSettings) -> tuple[str, ...]:
    """Subjects of the data set that are finished, or those that are asked for.

    Raises:
        IngestError: there are none.
    """
    folder = settings.features
    if settings.subjects:
        return tuple(sorted({s if s.startswith("sub-") else f"sub-{s}" for s in settings.subjects}))
    found = tuple(sorted(p.name for p in folder.glob("sub-*") if p.is_dir() and read_index(folder, p.name)))
    if not found:
        raise IngestError("holds no features; it is the folder that 'medxai brain features' wrote", study=folder.name)
    return found


@dataclass(frozen=True)
class Member:
    """What participants.tsv says of a subject.

    Attributes:
        group: as it stands there, "" for nothing.
        label: index of the class, None where it is none of the bundle's.
    """

    group: str = ""
    label: int | None = None


def members(settings: CohortSettings, labels: tuple[str, ...]) -> Mapping[str, Member] | None:
    """Groups of the subjects; None where participants.tsv has no column ``group``.

    Raises:
        MismatchError: a group of the settings is none of the bundle's labels.
    """
    wrong = sorted(set(settings.groups.values()) - set(labels))
    if wrong:
        raise MismatchError(f"groups name {', '.join(wrong)}; the bundle's classes are {', '.join(labels)}")
    path = settings.features / "participants.tsv"
    if not path.is_file():
        return None
    rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
    if not rows or "group" not in rows[0] or "participant_id" not in rows[0]:
        return None
    index = {label.lower(): number for number, label in enumerate(labels)}
    known = {group.strip().lower(): index[label.lower()] for group, label in settings.groups.items()}
    found = {}
    for row in rows:
        name, group = str(row["participant_id"] or "").strip(), str(row["group"] or "").strip()
        number = known.get(group.lower(), index.get(group.lower()))
        found[name if name.startswith("sub-") else f"sub-{name}"] = Member("" if group == "n/a" else group, number)
    return found


def unlabelled(path: Path) -> str:
    """What to say where groups are needed and there are none."""
    return f"{path.name} has no column 'group', and without the true classes nothing can be scored"
