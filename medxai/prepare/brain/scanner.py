"""Functional and diffusion series in a folder of DICOM files, by subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from medxai.errors import IngestError
from medxai.identity import pseudonym
from medxai.ingest.dicom_file import read_header
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


def scans_in(folder: Path) -> dict[str, Scans]:
    """Series of several MR volumes: weighted by diffusion, or else functional; other series are left alone.

    Args:
        folder: searched recursively; archives are not opened.

    Returns:
        By subject, ``sub-`` and twelve digits derived from PatientID (StudyInstanceUID where it is empty).

    Raises:
        IngestError: no such series. Several of a kind of one subject are its own fault and no other's.
    """
    with TemporaryDirectory() as workspace:
        sources = discover([folder], Path(workspace)).sources
    series: dict[tuple[str, str], list[tuple[SourceFiles, Dataset]]] = {}
    for source in sources:
        if source.kind != "dicom" or not source.files[0].is_relative_to(folder):
            continue
        header = read_header(source.files[0])
        values = {str(value).upper() for value in header.get("ImageType", None) or []}
        if str(header.get("Modality", "")) == "MR" and not values & _DERIVED:
            subject = _subject(header)
            series.setdefault((subject, str(header.get("SeriesInstanceUID", ""))), []).append((source, header))
    found: dict[str, Scans] = {}
    for (subject, _), volumes in sorted(series.items()):
        if len(volumes) < 2:
            continue
        known = [read_diffusion(header) for _, header in volumes]
        weighted = any(item is not None and item.b > UNWEIGHTED_B for item in known)
        scans = found.get(subject, Scans(subject))
        if scans.dwi_volumes if weighted else scans.bold_volumes:
            words = f"has several {'diffusion' if weighted else 'functional'} series of several volumes"
            found[subject] = replace(scans, fault=f"{words}; give a folder with one of them")
            continue
        ordered = tuple(source for source, _ in sorted(volumes, key=lambda item: item[0].key))
        found[subject] = replace(scans, dwi_volumes=ordered) if weighted else replace(scans, bold_volumes=ordered)
    if not found:
        raise IngestError("holds no sub-* folder and no DICOM series of several MR volumes", study=str(folder))
    return found


def read_volumes(sources: Sequence[SourceFiles]) -> list[Study]:
    """Ingest the volumes of one series.

    Raises:
        MedxaiError: one of them cannot be read.
    """
    return [read_study(source) for source in sources]


def _subject(header: Dataset) -> str:
    name = str(header.get("PatientID", "") or "") or str(header.get("StudyInstanceUID", ""))
    return f"sub-{pseudonym('brain-subject', name)}"
