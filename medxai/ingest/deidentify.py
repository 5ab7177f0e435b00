"""A copy of DICOM files without identity, for research: never for results that go back to the clinical archive."""

from __future__ import annotations

import csv
import io
import json
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai.errors import IngestError
from medxai.files import write_dicom, write_text
from medxai.ingest.burnt_in import BurntIn, treat_text
from medxai.ingest.dicom_file import is_dicom
from medxai.ingest.profile import Applied, Profile, apply_profile

if TYPE_CHECKING:
    from pydicom import Dataset

#: Attributes whose old values must not occur anywhere in what is written.
_IDENTITY = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName",
             "OtherPatientIDs", "OtherPatientNames", "PatientAddress", "PatientTelephoneNumbers", "InstitutionName",
             "OperatorsName", "PerformingPhysicianName", "StudyInstanceUID", "SeriesInstanceUID",
             "SOPInstanceUID")  # fmt: skip
#: Shorter pieces of a name occur by chance.
_LEAST_LETTERS = 4
#: Values of digits, new UIDs among them, hold a short number by chance: within them only longer ones count.
_DIGITS = {"UI", "DS", "IS", "FL", "FD", "US", "SS", "UL", "SL", "UV", "SV", "AT"}
_NOT_BY_CHANCE = 12
_IMAGE = 0x0028


@dataclass
class Report:
    """What a run did; no old value is in it.

    Attributes:
        written: files written.
        changes: attribute -> what was done -> files.
        refused: reason -> files.
        patients: number of patients.
    """

    written: int = 0
    changes: dict[str, Counter[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    patients: int = 0

    def as_dict(self, profile: Profile, burnt_in: BurntIn) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "profile": "PS3.15 annex E, Basic Application Level Confidentiality Profile",
            "options": [meaning for _, meaning in profile.codes()[1:]],
            "burnt_in_text": burnt_in,
            "files_written": self.written,
            "patients": self.patients,
            "files_refused": dict(sorted(self.refused.items())),
            "attributes": {name: dict(sorted(done.items())) for name, done in sorted(self.changes.items())},
        }


def deidentify(
    source: Path,
    target: Path,
    profile: Profile,
    *,
    burnt_in: BurntIn = "refuse",
    crosswalk: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Copy every DICOM file below a folder without identity, as ``PATIENT/SERIES/INSTANCE.dcm`` by their new names.

    Args:
        source: file or folder.
        target: folder of the copies and of ``deidentification.json``, the report.
        profile: options and key.
        burnt_in: images that may show text of the patient: ``refuse`` leaves them out; ``mask`` blackens ultrasound
            outside its regions (SequenceOfUltrasoundRegions) and leaves others out; ``keep`` trusts whoever says it.
        crosswalk: CSV of old and new names of patients and studies, to be kept apart.
        progress: told ``(done, files)``.

    Raises:
        IngestError: no DICOM file, or the target lies inside the source.
        MedxaiError: dicom-anonymizer is not installed.
    """
    if not source.exists():
        msg = "does not exist"
        raise IngestError(msg, study=str(source))
    if target.resolve().is_relative_to(source.resolve()):
        msg = "the target must not lie inside the source"
        raise IngestError(msg, study=str(target))
    paths = [p for p in ([source] if source.is_file() else sorted(source.rglob("*"))) if p.is_file() and is_dicom(p)]
    if not paths:
        msg = "holds no DICOM file"
        raise IngestError(msg, study=str(source))
    report, names = Report(), set()
    for done, path in enumerate(paths, 1):
        try:
            names.add(_copy(path, target, profile, burnt_in, report))
        except IngestError as error:
            report.refused[error.reason] += 1
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, struct.error) as error:
            # Damage may sit in any value; what Python says of it may quote the value.
            report.refused[f"cannot be copied ({type(error).__name__}); the file is damaged or incomplete"] += 1
        if progress:
            progress(done, len(paths))
    report.patients = len({new for _, new, _, _ in names})
    write_text(target / "deidentification.json", json.dumps(report.as_dict(profile, burnt_in), indent=1) + "\n")
    if crosswalk is not None:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["patient_id", "pseudonym", "study_instance_uid", "new_study_instance_uid"])
        writer.writerows(sorted(names))
        write_text(crosswalk, lines.getvalue())
        crosswalk.chmod(0o600)
    return report


def _copy(path: Path, target: Path, profile: Profile, burnt_in: BurntIn, report: Report) -> tuple[str, str, str, str]:
    """Write one file and return old and new names of patient and study."""
    from pydicom import dcmread

    try:
        dataset = dcmread(path)
        dataset.decode()
    except Exception as error:  # pydicom raises many kinds on damaged streams
        msg = f"cannot be parsed as DICOM ({type(error).__name__}); the file is damaged or truncated"
        raise IngestError(msg) from error
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not dataset.get(name):
            msg = f"{name} is missing; repair the file with 'medxai repair SRC DST' first"
            raise IngestError(msg)
    masked = treat_text(dataset, path, burnt_in)
    old = (str(dataset.get("PatientID", "") or ""), str(dataset.StudyInstanceUID))
    words = _identity(dataset)
    applied = apply_profile(dataset, profile)
    if masked:
        applied.changes["PixelData"] = "blackened outside the ultrasound regions"
        dataset.BurnedInAnnotation = "NO"
    _check_nothing_left(dataset, words)
    patient = str(dataset.PatientID)
    place = target / patient / str(dataset.SeriesInstanceUID) / f"{dataset.SOPInstanceUID}.dcm"
    write_dicom(place, dataset)
    _count(report, applied)
    return old[0], patient, old[1], str(dataset.StudyInstanceUID)


def _count(report: Report, applied: Applied) -> None:
    report.written += 1
    for name, what in applied.changes.items():
        report.changes.setdefault(name, Counter())[what] += 1


def _identity(dataset: Dataset) -> set[str]:
    """Words of the old identity, in lower case."""
    found: set[str] = set()
    for name in _IDENTITY:
        value = dataset.get(name, None)
        if value is None:
            continue
        for item in value if hasattr(value, "append") else [value]:
            text = str(item or "").lower()
            pieces = text.replace("^", " ").replace("=", " ").split() if dataset[name].VR == "PN" else [text]
            found |= {piece for piece in pieces if len(piece) >= _LEAST_LETTERS}
    return found


def _check_nothing_left(dataset: Dataset, words: set[str]) -> None:
    """Refuse a dataset that still says who it was.

    Raises:
        IngestError: names the attribute, not the value.
    """
    for element in dataset.iterall():
        if element.VR in ("SQ", "OB", "OW", "OF", "OD", "OL", "OV") or element.value in (None, ""):
            continue
        if element.tag.group == _IMAGE and element.VR in _DIGITS:  # rows and columns: an image of 1024 is nobody
            continue
        values = element.value if element.VM > 1 else [element.value]
        by_chance = element.VR in _DIGITS
        if any(
            word == text or (word in text and not (by_chance and len(word) < _NOT_BY_CHANCE))
            for text in (str(value).lower() for value in values)
            for word in words
        ):
            msg = f"{element.keyword or element.tag} repeats a name, number or date of the patient; left out"
            raise IngestError(msg)
