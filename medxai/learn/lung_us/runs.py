"""What the folds of a run predicted of every frame, with what is known of the frame: read, written, read again.

A run is a folder ``<network>-<split>-<hash>`` below the work folder with ``fold<k>/predictions.npz`` in it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from medxai.errors import SettingsError
from medxai.files import write_text
from medxai.learn.lung_us.cohort import CLASSES, UNINFORMATIVE, Recording, class_indices

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
TextArray = npt.NDArray[np.str_]

#: How a run was asked for; written beside its folds.
NOTE = "run.json"
#: Split of the runs that are reported, and of the experiment that leaks.
PATIENTS, LEAKING = "patients", "leaking"
_COLUMNS = ("recording", "place", "patient", "source_group", "kind", "label", "fold", "temperature")


@dataclass(frozen=True, eq=False)
class FrameTable:
    """Frames (or clips of the video network), each predicted by a network that did not learn from its recording.

    Attributes:
        classes: names of the logits.
        recording: ``[N]`` path of the recording below the data folder.
        place: ``[N]`` index of the frame among those taken of its recording.
        patient: ``[N]``.
        source: ``[N]`` source group.
        kind: ``[N]`` ``image`` or ``video``.
        label: ``[N]`` class index; -1 is reported apart, and was predicted by the networks of all folds.
        fold: ``[N]`` fold whose network predicted.
        logits: ``[N, K]``.
        temperature: ``[N]`` of that fold, fitted on its inner validation set.
    """

    classes: tuple[str, ...]
    recording: TextArray
    place: IntArray
    patient: TextArray
    source: TextArray
    kind: TextArray
    label: IntArray
    fold: IntArray
    logits: FloatArray
    temperature: FloatArray

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.label)

    def keep(self, which: BoolArray | IntArray) -> FrameTable:
        """Return the frames for which `which` is True, or those that it names."""
        columns = {name: getattr(self, name)[which] for name in self.__dataclass_fields__ if name != "classes"}
        return replace(self, **columns)

    def probabilities(self, *, calibrated: bool = True) -> FloatArray:
        """Return ``[N, K]`` probabilities, at the temperature of each fold or at 1."""
        divisor = self.temperature[:, None] if calibrated else 1.0
        found: FloatArray = softmax(self.logits / divisor, axis=1)
        return found

    @property
    def decided(self) -> IntArray:
        """``[N]`` class with the largest logit."""
        found: IntArray = self.logits.argmax(axis=1).astype(np.int64)
        return found

    @property
    def lungs(self) -> BoolArray:
        """``[N]`` whether the frame shows a lung of a class that is trained."""
        inside: BoolArray = (self.label >= 0) & (self.label < len(CLASSES))
        return inside

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds that have predictions."""
        return tuple(int(fold) for fold in np.unique(self.fold))


def find_runs(work: Path) -> dict[tuple[str, str], Path]:
    """Return the run of every network and split, ``(network, split) -> folder``.

    Of several the one with the most finished folds is taken, and among equals the latest.
    """
    found: dict[tuple[str, str], tuple[int, float, Path]] = {}
    for folder in sorted(work.glob("*-*-*/")):
        results = list(folder.glob("fold*/predictions.npz"))
        parts = folder.name.rsplit("-", 2)
        if not results or len(parts) != 3:
            continue
        rank = (len(results), max(path.stat().st_mtime for path in results), folder)
        found[parts[0], parts[1]] = max(rank, found.get((parts[0], parts[1]), rank))
    return {name: rank[2] for name, rank in found.items()}


def read_run(folder: Path, recordings: Sequence[Recording], negatives: Sequence[Recording] = ()) -> FrameTable:
    """Read the predictions of all finished folds of a run.

    Args:
        folder: of the run.
        recordings: of the table of lungs, in its order.
        negatives: what follows them in runs with a fourth output.

    Raises:
        SettingsError: no finished fold, or the tables are not those that the run was trained on.
    """
    stored = {path.parent.name: np.load(path) for path in sorted(folder.glob("fold*/predictions.npz"))}
    if not stored:
        msg = f"{folder.name} has no finished fold; train it with `medxai train lung_us`"
        raise SettingsError(msg)
    width = next(iter(stored.values()))["logits"].shape[1]
    known = (*recordings, *negatives) if width > len(CLASSES) else tuple(recordings)
    truth = np.array(class_indices(known, uninformative=width > len(CLASSES)))
    parts = []
    for name, found in stored.items():
        which, labels = found["recording"], found["labels"]
        if which.max(initial=-1) >= len(known) or not np.array_equal(truth[which], labels):
            msg = f"{folder.name}/{name} was trained on other tables than those of --data; train it again"
            raise SettingsError(msg)
        rows = [known[i] for i in which.tolist()]
        parts.append(
            _table(
                rows,
                found["place"],
                labels,
                np.full(len(which), int(name.removeprefix("fold"))),
                found["logits"],
                np.full(len(which), float(found["temperature"])),
            )
        )
    return _joined(parts)


def read_note(folder: Path) -> dict[str, Any]:
    """Return how a run was asked for; empty when nobody noted it."""
    path = folder / NOTE
    noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return noted


def frames_csv(table: FrameTable, extra: dict[str, npt.NDArray[Any]] | None = None) -> str:
    """Return a table of all frames as CSV.

    Args:
        table: frames.
        extra: further columns ``[N]`` by name; nan becomes an empty cell.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    more = extra or {}
    writer.writerow([*_COLUMNS, *(f"logit_{name}" for name in table.classes), *more])
    for i in range(len(table)):
        label = "" if table.label[i] < 0 else table.classes[int(table.label[i])]
        head = [table.recording[i], table.place[i], table.patient[i], table.source[i], table.kind[i], label]
        cells = [f"{value:.4f}" for value in table.logits[i]]
        others = ["" if value[i] != value[i] else f"{value[i]:.4f}" for value in more.values()]
        writer.writerow([*head, table.fold[i], f"{table.temperature[i]:.4f}", *cells, *others])
    return stream.getvalue()


def read_frames(path: Path, extra: Sequence[str] = ()) -> tuple[FrameTable, dict[str, FloatArray]]:
    """Read what `frames_csv` wrote.

    Args:
        path: CSV.
        extra: further columns that are wanted; empty cells are nan.

    Raises:
        SettingsError: absent, or a column is missing.
    """
    if not path.is_file():
        msg = f"{path.name} not found; `medxai validate lung_us` writes it"
        raise SettingsError(msg)
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    logits = [name for name in (rows[0] if rows else ()) if name.startswith("logit_")]
    lacking = [name for name in (*_COLUMNS, *extra) if not rows or name not in rows[0]]
    if lacking or not logits:
        msg = f"{path.name} lacks rows or the columns {lacking or ['logit_*']}"
        raise SettingsError(msg)
    classes = tuple(name.removeprefix("logit_") for name in logits)

    def text(name: str) -> TextArray:
        return np.array([row[name] for row in rows])

    def number(name: str) -> FloatArray:
        return np.array([float(row[name] or "nan") for row in rows])

    table = FrameTable(
        classes=classes,
        recording=text("recording"),
        place=number("place").astype(np.int64),
        patient=text("patient"),
        source=text("source_group"),
        kind=text("kind"),
        label=np.array([classes.index(row["label"]) if row["label"] else -1 for row in rows]),
        fold=number("fold").astype(np.int64),
        logits=np.stack([number(name) for name in logits], axis=1),
        temperature=number("temperature"),
    )
    return table, {name: number(name) for name in extra}


def write_frames(path: Path, table: FrameTable, extra: dict[str, npt.NDArray[Any]] | None = None) -> Path:
    """Write `frames_csv` to `path`."""
    return write_text(path, frames_csv(table, extra))


def _table(
    rows: Sequence[Recording],
    place: IntArray,
    label: IntArray,
    fold: IntArray,
    logits: npt.NDArray[Any],
    temperature: FloatArray,
) -> FrameTable:
    return FrameTable(
        classes=(*CLASSES, UNINFORMATIVE)[: logits.shape[1]],
        recording=np.array([row.path for row in rows]),
        place=place,
        patient=np.array([row.patient for row in rows]),
        source=np.array([row.source_group for row in rows]),
        kind=np.array([row.kind for row in rows]),
        label=label,
        fold=fold,
        logits=logits.astype(np.float64),
        temperature=temperature,
    )


def _joined(parts: Sequence[FrameTable]) -> FrameTable:
    names = [name for name in FrameTable.__dataclass_fields__ if name != "classes"]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return FrameTable(classes=parts[0].classes, **columns)
