"""The recordings of lung ultrasound and what is known of each, and images that show no lung.

Classes stand in the order of the publication (Born et al. 2021, arXiv:2009.06116). Viral pneumonia has two clips: it
is never trained on and reported apart. `uninformative` pictures let the network decline what is no lung
ultrasound: the publication took photographs and nerve ultrasound, here they are breast ultrasound, brain MR, chest CT
and histology of the same data folder. ``us_dicom`` stays out, so that rejection can be tried on it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from medxai.errors import SettingsError

#: Classes that are trained, in the order of the publication's outputs.
CLASSES = ("covid", "bacterial_pneumonia", "healthy")
#: The fourth output, when there is one.
UNINFORMATIVE = "uninformative"
#: Class of the table that is never trained on.
REPORTED_APART = "viral_pneumonia"
#: Findings that the table flags, as its columns name them.
FINDINGS = ("effusion", "consolidations", "b_lines", "a_lines", "pleural_irregularities")

FOLDER = "us_lung"
_COLUMNS = ("path", "label", "kind", "source_group", "licence", "frames", "width", "height", "patient", "framerate")
#: Sources of negatives in the general table, beside breast ultrasound with its own.
_NEGATIVE_FOLDERS = ("mr_brain_tumor_brisc", "ct_covid_infection_2d", "histo_camelyon", "histo_ocdc")
_BREAST = "us_breast_busi"


@dataclass(frozen=True)
class Recording:
    """One still or clip.

    Attributes:
        path: file, relative to the data folder.
        label: one of `CLASSES`, `REPORTED_APART` or `UNINFORMATIVE`.
        kind: ``image`` or ``video``.
        patient: who was examined; recordings of one patient never lie on both sides of a split.
        source_group: clinic, collection or article it comes from; confounded with the class.
        licence: of the file.
        frames: number of frames; 1 for a still.
        size: ``(rows, columns)`` in pixels.
        frame_rate: frames per second of a clip; None for a still.
        findings: flag per name of `FINDINGS`; only those that an expert filled in.
    """

    path: str
    label: str
    kind: Literal["image", "video"]
    patient: str
    source_group: str
    licence: str
    frames: int
    size: tuple[int, int]
    frame_rate: float | None = None
    findings: Mapping[str, bool] = field(default_factory=dict)


def read_recordings(data: Path) -> tuple[Recording, ...]:
    """Read ``us_lung/labels.csv`` below `data`, in the order of the table.

    Raises:
        SettingsError: the table is absent, lacks a column, or a row names another class or kind or no patient.
    """
    rows = _rows(data / FOLDER / "labels.csv", (*_COLUMNS, *FINDINGS))
    recordings = tuple(_recording(row, number) for number, row in enumerate(rows, start=2))
    paths = [recording.path for recording in recordings]
    if len(set(paths)) < len(paths):
        msg = "labels.csv of us_lung names a file twice; every recording must be one row"
        raise SettingsError(msg)
    return recordings


def read_negatives(data: Path, breast: int = 60, seed: int = 0) -> tuple[Recording, ...]:
    """Read pictures of other organs and modalities as `UNINFORMATIVE`.

    Breast ultrasound is drawn by groups of near-duplicates. The other sources name no patients, so each of them is one
    group and stays on one side of a split: held out, it is a modality that the network has not seen.

    Args:
        data: folder that holds the tables.
        breast: breast ultrasound images to draw, one of each group; of the other sources all are taken.
        seed: of the draw.

    Raises:
        SettingsError: a table is absent or lacks a column.
    """
    general = _rows(data / "MANIFEST.csv", ("path", "format", "licence"))
    pictures = [
        Recording(
            path=row["path"],
            label=UNINFORMATIVE,
            kind="image",
            patient=Path(row["path"]).parts[0],
            source_group=Path(row["path"]).parts[0],
            licence=row["licence"],
            frames=1,
            size=(0, 0),
        )
        for row in general
        if Path(row["path"]).parts[0] in _NEGATIVE_FOLDERS and not Path(row["path"]).name.startswith("masks_")
    ]
    busi = _rows(data / _BREAST / "labels.csv", ("path", "duplicate_group", "width", "height"))
    first = {row["duplicate_group"]: row for row in reversed(busi)}
    groups = np.random.default_rng(seed).permutation(sorted(first, key=int))[:breast].tolist()
    drawn = [
        Recording(
            path=f"{_BREAST}/{first[group]['path']}",
            label=UNINFORMATIVE,
            kind="image",
            patient=f"{_BREAST}:{group}",
            source_group=_BREAST,
            licence="CC BY 4.0",
            frames=1,
            size=(int(first[group]["height"]), int(first[group]["width"])),
        )
        for group in sorted(groups, key=int)
    ]
    return (*drawn, *pictures)


def class_indices(recordings: Sequence[Recording], *, uninformative: bool = False) -> list[int]:
    """Return the output index of each recording; -1 for those that are reported apart.

    Raises:
        SettingsError: a negative among them while the network has no output for it.
    """
    order = (*CLASSES, UNINFORMATIVE) if uninformative else CLASSES
    indices = []
    for recording in recordings:
        if recording.label == REPORTED_APART:
            indices.append(-1)
        elif recording.label in order:
            indices.append(order.index(recording.label))
        else:
            msg = f"class {recording.label} is none of {list(order)}"
            raise SettingsError(msg)
    return indices


def _recording(row: Mapping[str, str], line: int) -> Recording:
    where = f"labels.csv of us_lung, line {line}"
    if row["label"] not in {*CLASSES, REPORTED_APART}:
        msg = f"{where}: class {row['label']!r} is none of {[*CLASSES, REPORTED_APART]}"
        raise SettingsError(msg)
    if row["kind"] not in {"image", "video"} or not row["patient"].strip():
        msg = f"{where}: needs a kind (image or video) and a patient, without which no split is safe"
        raise SettingsError(msg)
    try:
        frames, size = int(row["frames"]), (int(row["height"]), int(row["width"]))
        rate = float(row["framerate"]) if row["kind"] == "video" else None
    except ValueError as error:
        msg = f"{where}: frames, width, height and framerate must be numbers"
        raise SettingsError(msg) from error
    if frames < 1 or (rate is not None and not rate > 0):
        msg = f"{where}: a recording has at least one frame, a clip a frame rate above 0"
        raise SettingsError(msg)
    return Recording(
        path=f"{FOLDER}/{row['path']}",
        label=row["label"],
        kind="video" if row["kind"] == "video" else "image",
        patient=f"{FOLDER}:{row['patient'].strip()}",
        source_group=row["source_group"],
        licence=row["licence"],
        frames=frames,
        size=size,
        frame_rate=rate,
        findings={name: row[name] == "1" for name in FINDINGS if row[name] in {"0", "1"}},
    )


def _rows(table: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    where = f"{table.parent.name}/{table.name}"
    if not table.is_file():
        msg = f"{where} not found; --data must be the folder that holds it"
        raise SettingsError(msg)
    with table.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        lacking = [name for name in columns if name not in (reader.fieldnames or ())]
        if lacking:
            msg = f"{where} lacks the columns {lacking}"
            raise SettingsError(msg)
        return list(reader)
