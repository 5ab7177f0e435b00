"""Functional and diffusion series in a folder of DICOM files, by subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from medxai.errors import IngestError
from medxai.identity import pseudonym
from medxai.ingest.dicom_file import image_type, read_header
from medxai.ingest.diffusion import read_diffusion
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.prepare.brain.bids import Scans
from medxai.prepare.brain.dwi import UNWEIGHTED_B
from medxai.study import SourceFiles, Study

if TYPE_CHECKING:
    from pydicom import Dataset

#: Several images of one place that are no series in time, by a value of ImageType.
_DERIVED = {"DERIVED", "SECONDARY"}
#: What a description may not repeat, where it is so long that it is no accident.
_PERSONAL = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "OtherPatientIDs")
_SHORTEST_PERSONAL = 3
#: Letters of a description that an error shows, and series.
_LONGEST, _MOST = 48, 8


@dataclass(frozen=True)
class Series:
    """A series of several MR volumes.

    Attributes:
        uid: SeriesInstanceUID.
        number: SeriesNumber, "" where there is none.
        description: SeriesDescription, "" where there is none or it names the patient.
        weighted: by diffusion.
        volumes: its volumes in the order of their keys.
    """

    uid: str
    number: str
    description: str
    weighted: bool
    volumes: tuple[SourceFiles, ...]

    @property
    def words(self) -> str:
        """The series as errors list it; nothing of the patient."""
        shown = f" '{self.description[:_LONGEST]}'" if self.description else ""
        return f"series {self.number or 'without number'}{shown} with {len(self.volumes)} volumes"


def scans_in(folder: Path, wanted: str | None = None) -> dict[str, Scans]:
    """Series of several MR volumes: weighted by diffusion, or else functional; other series are left alone.

    Args:
        folder: searched recursively; archives are not opened.
        wanted: which functional series, see `chosen`; None where each subject has one.

    Returns:
        By subject, ``sub-`` and twelve digits derived from PatientID (StudyInstanceUID where it is empty).

    Raises:
        IngestError: no such series. Several of a kind of one subject, or none that is wanted, are its own fault and no
            other's.
    """
    with TemporaryDirectory() as workspace:
        sources = discover([folder], Path(workspace)).sources
    found: dict[tuple[str, str], list[tuple[SourceFiles, Dataset]]] = {}
    for source in sources:
        if source.kind != "dicom" or not source.files[0].is_relative_to(folder):
            continue
        header = read_header(source.files[0])
        if str(header.get("Modality", "")) == "MR" and not set(image_type(header)) & _DERIVED:
            key = (_subject(header), str(header.get("SeriesInstanceUID", "")))
            found.setdefault(key, []).append((source, header))
    people: dict[str, list[Series]] = {}
    for (subject, uid), volumes in sorted(found.items()):
        if len(volumes) > 1:
            people.setdefault(subject, []).append(_series(uid, volumes))
    if not people:
        raise IngestError("holds no sub-* folder and no DICOM series of several MR volumes", study=str(folder))
    return {subject: _scans(subject, series, wanted) for subject, series in people.items()}


def chosen(series: Sequence[Series], wanted: str) -> tuple[Series, ...]:
    """Those that a text means: by SeriesInstanceUID, else SeriesNumber, else the whole SeriesDescription, else a part.

    Upper and lower case are one in descriptions.
    """
    text = wanted.strip().casefold()
    for fits in (
        lambda s: s.uid == text,
        lambda s: bool(s.number) and s.number == text,
        lambda s: s.description.casefold() == text,
        lambda s: text in s.description.casefold(),
    ):
        found = tuple(item for item in series if text and fits(item))
        if found:
            return found
    return ()


def read_volumes(sources: Sequence[SourceFiles]) -> list[Study]:
    """Ingest the volumes of one series.

    Raises:
        MedxaiError: one of them cannot be read.
    """
    return [read_study(source) for source in sources]


def _scans(subject: str, series: Sequence[Series], wanted: str | None) -> Scans:
    bold = [item for item in series if not item.weighted]
    dwi = [item for item in series if item.weighted]
    if len(dwi) > 1:
        return Scans(subject, fault=f"has several diffusion series: {_listed(dwi)}; give a folder with one of them")
    fitting = bold if wanted is None else chosen(bold, wanted)
    if bold and not fitting:
        return Scans(subject, fault=f"has no functional series {wanted!r}, but {_listed(bold)}; choose by --series")
    if len(fitting) > 1:
        words = "has several functional series" + ("" if wanted is None else f" {wanted!r}")
        how = "choose by --series NUMBER, description or UID"
        return Scans(subject, fault=f"{words}: {_listed(fitting)}; {how}")
    return Scans(
        subject,
        bold_volumes=fitting[0].volumes if fitting else (),
        dwi_volumes=dwi[0].volumes if dwi else (),
    )


def _listed(series: Sequence[Series]) -> str:
    ordered = sorted(series, key=lambda s: (not s.number.isdigit(), s.number.zfill(12), s.description, s.uid))
    rest = f" and {len(ordered) - _MOST} more" if len(ordered) > _MOST else ""
    return ", ".join(item.words for item in ordered[:_MOST]) + rest


def _series(uid: str, volumes: Sequence[tuple[SourceFiles, Dataset]]) -> Series:
    known = [read_diffusion(header) for _, header in volumes]
    weighted = any(item is not None and item.b > UNWEIGHTED_B for item in known)
    ordered = sorted(volumes, key=lambda item: item[0].key)
    header = ordered[0][1]
    number = str(header.get("SeriesNumber", "") or "").strip()
    return Series(uid, number, _description(header), weighted, tuple(source for source, _ in ordered))


def _description(header: Dataset) -> str:
    """SeriesDescription in one line; empty where somebody wrote the patient into it."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(header.get("SeriesDescription", ""))).split())
    parts = " ".join(str(header.get(name, "") or "") for name in _PERSONAL).replace("^", " ").replace("=", " ").split()
    personal = [part.casefold() for part in parts if len(part) >= _SHORTEST_PERSONAL]
    return "" if any(part in text.casefold() for part in personal) else text


def _subject(header: Dataset) -> str:
    name = str(header.get("PatientID", "") or "") or str(header.get("StudyInstanceUID", ""))
    return f"sub-{pseudonym('brain-subject', name)}"
