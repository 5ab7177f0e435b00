"""Functional MRI, as it was ingested or as a file of four axes -> one series of volumes with its repetition time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.errors import GeometryError, IngestError
from medxai.prepare.brain.image import Image, read_image, same_grid
from medxai.study import Affine, Study

if TYPE_CHECKING:
    from pydicom import Dataset

#: Repetition times in seconds that are believed.
_SHORTEST, _LONGEST = 0.1, 20.0
#: Two statements of the repetition time that differ by more than this share contradict each other.
_AGREEMENT = 0.05


@dataclass(frozen=True, eq=False)
class Bold:
    """A series of functional volumes.

    Attributes:
        data: ``[D, H, W, T]`` float32, scanner units.
        affine: index ``(d, h, w)`` -> LPS mm.
        repetition_seconds: from the start of a volume to the start of the next.
        key: pseudonym of the series, or a file name.
        space: template whose space it is in, as BIDS names them; "" for the scanner's.
        dropped: volumes left out at the start.
        notes: what reading had to decide.
    """

    data: npt.NDArray[np.float32]
    affine: Affine
    repetition_seconds: float
    key: str
    space: str = ""
    dropped: int = 0
    notes: tuple[str, ...] = ()

    @property
    def volumes(self) -> int:
        """Number of time points."""
        return int(self.data.shape[3])

    @property
    def grid(self) -> tuple[int, int, int]:
        """``(D, H, W)``."""
        d, h, w = self.data.shape[:3]
        return (d, h, w)

    def image(self, values: npt.NDArray[Any]) -> Image:
        """Values on this grid as an image."""
        return Image(values, self.affine)


def bold_of_studies(studies: Sequence[Study], repetition_seconds: float | None = None) -> Bold:
    """One series out of volumes that ingestion read one by one (time points of a DICOM series, mosaics).

    Volumes are ordered by TemporalPositionIdentifier, else AcquisitionNumber, else the earliest AcquisitionTime of
    their slices, else InstanceNumber: by the first of these that every volume has its own value of.

    Args:
        studies: one per time point, in any order.
        repetition_seconds: instead of what the headers say.

    Raises:
        GeometryError: the volumes lie on different grids.
        IngestError: nothing orders them, time points are missing, RepetitionTime is absent or contradicts the
            acquisition times.
    """
    if not studies:
        raise IngestError("no functional volume was given")
    key = min(study.key for study in studies)
    first = studies[0].volume
    for study in studies:
        volume = study.volume
        if volume.axes != "DHW" or volume.pixels.shape[0] != 1 or volume.stack is not None:
            raise GeometryError(
                "is no volume of one channel on a regular grid, as a time point must be", study=study.key
            )
        if not same_grid(volume.shape, volume.affine, first.shape, first.affine):
            words = f"volumes lie on different grids ({first.shape} and {volume.shape}, or another place)"
            raise GeometryError(f"{words}; give one functional series", study=key)
    order, name, values = _order([study.volume.source for study in studies], key)
    if name == "TemporalPositionIdentifier" and values:
        steps = np.diff(np.sort(values))
        if (steps != 1).any():
            gaps = sorted({int(v) for v in range(int(min(values)), int(max(values)) + 1)} - {int(v) for v in values})
            words = f"time points {gaps[:5]} are missing of {int(min(values))}..{int(max(values))}"
            raise IngestError(f"{words}; send the whole series again", study=key)
    seconds, notes = _repetition([studies[i].volume.source for i in order], repetition_seconds, key)
    said = _number(first.source[0].get("NumberOfTemporalPositions", None)) if first.source else None
    if said and said > len(studies):
        notes.append(f"{len(studies)} of {said:g} time points that the header promises")
    data = np.stack([studies[i].volume.pixels[0] for i in order], axis=-1)
    if name:
        notes.append(f"ordered by {name}")
    return Bold(np.ascontiguousarray(data, np.float32), first.affine, seconds, key, notes=tuple(notes))


def read_bold(path: Path, repetition_seconds: float | None = None, study: str | None = None) -> Bold:
    """A 4D NIfTI file; the sidecar beside it (same name, ``.json``) is read for RepetitionTime where there is one.

    Args:
        path: ``.nii`` or ``.nii.gz`` with time as the fourth axis.
        repetition_seconds: instead of what the sidecar and the header say.
        study: name for messages; the file's name by default.

    Raises:
        IngestError: unreadable, fewer than two volumes, no repetition time, or two that contradict each other.
    """
    name = study or path.name
    image = read_image(path, 4, name)
    if image.data.shape[3] < 2:
        raise IngestError("holds one volume; a functional series needs several", study=name)
    side = sidecar(path)
    said = _number(side.get("RepetitionTime"))
    if repetition_seconds is None and said and image.seconds and abs(said / image.seconds - 1) > _AGREEMENT:
        words = f"the sidecar says a repetition time of {said:g} s and the header {image.seconds:g} s"
        raise IngestError(f"{words}; correct one, or state the repetition time", study=name)
    seconds = repetition_seconds or said or image.seconds
    return Bold(image.data, image.affine, _believed(seconds, name), name, space=space_of(path, side))


def drop_dummies(bold: Bold, count: int) -> Bold:
    """Without the first `count` volumes, which scanners take before the magnetisation is steady.

    Raises:
        IngestError: fewer than two volumes would stay.
    """
    if count == 0:
        return bold
    if count < 0 or bold.volumes - count < 2:
        raise IngestError(f"{count} dummy volumes cannot be dropped of {bold.volumes}", study=bold.key)
    return replace(bold, data=np.ascontiguousarray(bold.data[..., count:]), dropped=bold.dropped + count)


def sidecar(path: Path) -> dict[str, Any]:
    """JSON beside a NIfTI file; empty where there is none.

    Raises:
        IngestError: it is there and is no JSON object.
    """
    side = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not side.is_file():
        return {}
    try:
        found = json.loads(side.read_text())
    except (ValueError, OSError) as error:
        raise IngestError("cannot be read as JSON", study=side.name) from error
    if not isinstance(found, dict):
        raise IngestError("is not a JSON object", study=side.name)
    return found


def space_of(path: Path, side: dict[str, Any]) -> str:
    """Template's name from the ``space-`` or ``tpl-`` entity, else from SpatialReference; "" where none is stated."""
    for part in path.name.split("_"):
        for entity in ("space-", "tpl-"):
            if part.startswith(entity):
                return part[len(entity) :].split(".")[0]
    stated = side.get("SpatialReference", "")
    return stated if isinstance(stated, str) and stated.startswith("MNI") else ""


def _order(sources: Sequence[tuple[Dataset, ...]], key: str) -> tuple[list[int], str, list[float]]:
    if len(sources) == 1:
        return [0], "", []
    for name in ("TemporalPositionIdentifier", "AcquisitionNumber", "AcquisitionTime", "InstanceNumber"):
        values = []
        for headers in sources:
            found = [_clock(h) if name == "AcquisitionTime" else _number(h.get(name, None)) for h in headers]
            numbers = [value for value in found if value is not None]
            values.append(min(numbers) if numbers and len(numbers) == len(headers) else None)
        known = [value for value in values if value is not None]
        if len(set(known)) == len(sources):
            return [int(i) for i in np.argsort(known, kind="stable")], name, known
    words = "nothing in the headers orders the volumes (TemporalPositionIdentifier, AcquisitionNumber, AcquisitionTime)"
    raise IngestError(f"{words}; convert the series to one file of four axes", study=key)


def _repetition(sources: Sequence[tuple[Dataset, ...]], given: float | None, key: str) -> tuple[float, list[str]]:
    if given is not None:
        return _believed(given, key), ["repetition time as given"]
    stated = {round(v, 2) for h in sources for x in h if (v := _number(x.get("RepetitionTime", None))) is not None}
    if len(stated) > 1:
        raise IngestError(f"volumes have different RepetitionTime ({sorted(stated)} ms)", study=key)
    seconds = _believed(stated.pop() / 1000 if stated else None, key)
    starts = [min((t for h in headers if (t := _clock(h)) is not None), default=None) for headers in sources]
    known = [t for t in starts if t is not None]
    if len(known) == len(starts) > 1 and len(set(known)) == len(known):
        between = float(np.median(np.diff(known)))
        # In segmented sequences RepetitionTime is that of an excitation and not of a volume.
        if abs(between / seconds - 1) > _AGREEMENT:
            words = f"RepetitionTime says {seconds:.3f} s, the volumes were taken {between:.3f} s apart"
            raise IngestError(f"{words}; state the repetition time", study=key)
    return seconds, []


def _believed(seconds: float | None, key: str) -> float:
    if seconds is None:
        words = "the repetition time is unknown (RepetitionTime in header or sidecar, or pixdim[4] with its unit)"
        raise IngestError(f"{words}; state it", study=key)
    if not _SHORTEST <= seconds <= _LONGEST:
        words = f"a repetition time of {seconds:g} s is not one of functional MRI ({_SHORTEST} to {_LONGEST:g} s)"
        raise IngestError(f"{words}; state it in seconds", study=key)
    return float(seconds)


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _clock(header: Dataset) -> float | None:
    """AcquisitionTime in seconds of the day."""
    text = str(header.get("AcquisitionTime", "") or "")
    if len(text) < 6 or not text[:6].isdigit():
        return None
    rest = _number("0" + text[6:]) if len(text) > 6 else 0.0
    return None if rest is None else int(text[:2]) * 3600 + int(text[2:4]) * 60 + int(text[4:6]) + rest
