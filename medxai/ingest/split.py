"""One DICOM series -> the volumes in it: by orientation, size, echo, diffusion weighting, phase, repetition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.ingest.dicom_file import image_type
from medxai.ingest.diffusion import read_diffusion

if TYPE_CHECKING:
    from pydicom import Dataset

#: Directions equal within this (about 0.06 degrees) belong to one volume; scanners write six digits.
_DIRECTION_TOLERANCE = 1e-3
#: Positions along the normal that lie nearer than this are the same slice (mm).
_SAME_PLACE_MM = 1e-3
#: Attributes that are tried together.
_MOST_SIGNS = 3


@dataclass(frozen=True)
class Slice:
    """One file of a series with what tells volumes apart.

    Attributes:
        path: the file.
        size: rows and columns, and mm between them where they are stated.
        orientation: six cosines; None where the header states none that can be used.
        distance: mm along the normal; None likewise.
        words: value of every attribute that may tell repetitions of a place apart, by its plain name.
        scout: the scanner calls it a localiser.
    """

    path: Path
    size: tuple[float, ...]
    orientation: tuple[float, ...] | None
    distance: float | None
    words: dict[str, str]
    scout: bool


@dataclass(frozen=True)
class Part:
    """Slices of one volume.

    Attributes:
        files: in the order given.
        sign: what sets it apart from the other parts of its series, empty for a series that is one volume.
        scout: it consists of localiser images.
    """

    files: tuple[Path, ...]
    sign: str
    scout: bool


def read_slice(path: Path, header: Dataset) -> Slice:
    """What `split` needs to know of a file."""
    orientation = _numbers(header.get("ImageOrientationPatient", None), 6)
    position = _numbers(header.get("ImagePositionPatient", None), 3)
    distance = None
    if orientation is not None and position is not None:
        distance = float(np.cross(orientation[:3], orientation[3:]) @ np.array(position))
    kind = image_type(header)
    spacing = _numbers(header.get("PixelSpacing", None), 2) or ()
    size = _numbers((header.get("Rows", None), header.get("Columns", None)), 2) or ()
    return Slice(
        path=path,
        size=(*size, *(round(v, 4) for v in spacing)),
        orientation=orientation,
        distance=distance,
        words={name: word for name, read in _SIGNS if (word := read(header))},
        scout="LOCALIZER" in kind or "SCOUT" in kind,
    )


def split(slices: Sequence[Slice]) -> list[Part]:
    """The volumes of a series, in the order of their first slice.

    Slices of different size, spacing or orientation and localisers are never one volume. Where places are occupied
    more than once, the attributes of `_SIGNS` are tried, each alone and then two or three together, until every
    volume holds each place once; when none of them does, the slices stay together and the geometry check refuses them
    with what it found.
    """
    apart: dict[str, list[Slice]] = {}
    kinds: list[tuple[tuple[float, ...], bool, tuple[float, ...] | None]] = []
    for item in slices:
        key = next((n for n, kind in enumerate(kinds) if _alike(kind, item)), len(kinds))
        if key == len(kinds):
            kinds.append((item.size, item.scout, item.orientation))
        apart.setdefault(str(key), []).append(item)
    parts = []
    for group in apart.values():
        name = _kind_name(group[0], list(apart.values()))
        for sign, members in _repetitions(group).items():
            words = ", ".join(word for word in (name, sign) if word)
            parts.append(Part(tuple(item.path for item in members), words, group[0].scout))
    named: dict[str, int] = {}
    for part in parts:
        named[part.sign] = named.get(part.sign, 0) + 1
    if len(parts) == 1:
        return [Part(parts[0].files, "", parts[0].scout)]
    counted: dict[str, int] = {}
    found = []
    for part in parts:
        counted[part.sign] = counted.get(part.sign, 0) + 1
        several = named[part.sign] > 1
        sign = f"{part.sign} {counted[part.sign]}".strip() if several or not part.sign else part.sign
        found.append(Part(part.files, sign, part.scout))
    return found


def _alike(kind: tuple[tuple[float, ...], bool, tuple[float, ...] | None], item: Slice) -> bool:
    size, scout, orientation = kind
    if (size, scout) != (item.size, item.scout) or (orientation is None) != (item.orientation is None):
        return False
    return orientation is None or bool(np.allclose(orientation, item.orientation or (), atol=_DIRECTION_TOLERANCE))


def _kind_name(item: Slice, groups: Sequence[Sequence[Slice]]) -> str:
    """What sets a kind apart in words: only what differs between the kinds of the series."""
    firsts = [group[0] for group in groups]
    words = []
    if item.scout and not all(other.scout for other in firsts):
        words.append("localiser")
    if len({plane_name(other.orientation) for other in firsts}) > 1:
        words.append(plane_name(item.orientation))
    if len({other.size[:2] for other in firsts}) > 1:
        words.append(f"{item.size[0]:g} x {item.size[1]:g} pixels")
    if len({other.size[2:] for other in firsts}) > 1 and len(item.size) == 4:
        words.append(f"pixels of {item.size[2]:g} x {item.size[3]:g} mm")
    return " ".join(words)


def plane_name(orientation: Sequence[float] | None) -> str:
    """Axial, coronal or sagittal, whichever the plane is nearest to."""
    if orientation is None:
        return "unplaced"
    normal = np.abs(np.cross(orientation[:3], orientation[3:]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def _repetitions(group: Sequence[Slice]) -> dict[str, list[Slice]]:
    if not _occupied_twice(group):
        return {"": list(group)}
    useful = [name for name, _ in _SIGNS if len({item.words.get(name, "") for item in group}) > 1]
    for count in range(1, min(len(useful), _MOST_SIGNS) + 1):
        for names in combinations(useful, count):
            if divided := _divide(group, names):
                return divided
    return {"": list(group)}


def _divide(group: Sequence[Slice], names: Sequence[str]) -> dict[str, list[Slice]] | None:
    """Groups by these attributes; None where a place is still occupied twice, or volumes are torn into pieces."""
    found: dict[str, list[Slice]] = {}
    for item in group:
        sign = ", ".join(f"{name} {item.words[name]}" for name in names if name in item.words)
        found.setdefault(sign, []).append(item)
    if any(_occupied_twice(members) for members in found.values()):
        return None
    # An attribute that every slice has its own value of (a time, say) makes every slice a volume: that is no answer.
    return found if all(len(members) > 1 for members in found.values()) else None


def _occupied_twice(group: Sequence[Slice]) -> bool:
    distances = sorted(item.distance for item in group if item.distance is not None)
    return any(b - a < _SAME_PLACE_MM for a, b in pairwise(distances))


def _numbers(value: object, count: int) -> tuple[float, ...] | None:
    try:
        found = tuple(float(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and bool(np.isfinite(found).all()) else None


def _plain(keyword: str) -> Callable[[Dataset], str]:
    def read(header: Dataset) -> str:
        value = header.get(keyword, None)
        try:
            return "" if value is None or value == "" else f"{float(value):g}"
        except (TypeError, ValueError):  # never text, which may name somebody
            return ""

    return read


def _component(header: Dataset) -> str:
    """Magnitude, phase, real or imaginary, from ComplexImageComponent or the third value of ImageType."""
    named = str(header.get("ComplexImageComponent", "") or "").lower()
    if named:
        return named
    values = image_type(header)
    words = {"M": "magnitude", "P": "phase", "R": "real", "I": "imaginary", "PHASE": "phase", "MAGNITUDE": "magnitude"}
    return next((words[v] for v in values[2:] if v in words), "")


def _kind_of_image(header: Dataset) -> str:
    """Values of ImageType after the first two, which a derived map of the same series has of its own (ADC, FA ...)."""
    values = image_type(header)
    return " ".join(value for value in values[2:] if value.isascii() and len(value) <= 16)


def _b_value(header: Dataset) -> str:
    found = read_diffusion(header)
    return "" if found is None else f"{found.b:g} s/mm2"


def _gradient(header: Dataset) -> str:
    found = read_diffusion(header)
    if found is None or found.direction is None:
        return ""
    return "(" + ", ".join(f"{v:.3f}" for v in found.direction) + ")"


#: What tells repetitions of a place apart, in the order of trying: name for people, and how it is read.
_SIGNS: tuple[tuple[str, Callable[[Dataset], str]], ...] = (
    ("echo time", _plain("EchoTime")),
    ("echo", _plain("EchoNumbers")),
    ("component", _component),
    ("image type", _kind_of_image),
    ("b", _b_value),
    ("inversion time", _plain("InversionTime")),
    ("flip angle", _plain("FlipAngle")),
    ("time point", _plain("TemporalPositionIdentifier")),
    ("trigger time", _plain("TriggerTime")),
    ("phase of the cycle", _plain("NominalPercentageOfCardiacPhase")),
    ("acquisition", _plain("AcquisitionNumber")),
    ("direction", _gradient),
)
