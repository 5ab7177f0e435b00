"""A valid copy of badly de-identified DICOM: derived identifiers, nothing else changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai.errors import IngestError
from medxai.files import write_dicom, write_text
from medxai.identity import derive_uid, sha256_file
from medxai.ingest.dicom_file import is_dicom
from medxai.ingest.identifiers import identifier_faults, valid_uid

if TYPE_CHECKING:
    from pydicom import Dataset

#: Type 2 attributes of the patient, study and series modules (PS3.3 C.7.1-C.7.3): present, if empty.
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "SeriesNumber",
    "InstanceNumber",
    "Manufacturer",
    "PositionReferenceIndicator",
)


@dataclass(frozen=True)
class RepairReport:
    """Number of files copied and changed, and where the mapping lies."""

    files: int
    changed: int
    mapping: Path


def repair(source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> RepairReport:
    """Copy every DICOM file below `source` to `target` with valid identifiers.

    Study, series and frame-of-reference UIDs are derived from the invalid values (or from the folder when
    there are none), instance UIDs from the file's content, so that a second repair gives the same UIDs and
    references inside the series stay consistent. Pixel data are untouched. ``repair_mapping.json`` lists
    old and new values per file.

    Raises:
        IngestError: no DICOM file below `source`, a damaged one, or `target` lies inside `source`.
    """
    if not source.exists():
        msg = "does not exist"
        raise IngestError(msg, study=str(source))
    if target.resolve().is_relative_to(source.resolve()):
        msg = f"the target must not lie inside the source {source}"
        raise IngestError(msg, study=str(target))
    base = source if source.is_dir() else source.parent
    paths = [p for p in ([source] if source.is_file() else sorted(source.rglob("*"))) if p.is_file() and is_dicom(p)]
    if not paths:
        msg = "holds no DICOM file"
        raise IngestError(msg, study=str(source))
    mapping: dict[str, Any] = {}
    for done, path in enumerate(paths, 1):
        relative = path.relative_to(base)
        changes = _repair_file(path, target / relative, str(relative.parent))
        if changes:
            mapping[str(relative)] = changes
        if progress:
            progress(done, len(paths))
    listing = {"files": len(paths), "changed": len(mapping), "changes": mapping}
    written = write_text(target / "repair_mapping.json", json.dumps(listing, indent=1, sort_keys=True) + "\n")
    return RepairReport(len(paths), len(mapping), written)


def _repair_file(path: Path, target: Path, folder: str) -> dict[str, dict[str, str]]:
    from pydicom import dcmread

    try:
        dataset = dcmread(path)
    except Exception as error:
        msg = f"cannot be parsed as DICOM ({type(error).__name__})"
        raise IngestError(msg, study=path.name) from error
    changes: dict[str, dict[str, str]] = {}

    def put(name: str, value: str) -> None:
        old = str(dataset.get(name, "") or "") if name in dataset else "(absent)"
        setattr(dataset, name, value)
        changes[name] = {"old": old, "new": value}

    if identifier_faults(dataset):
        old_series = str(dataset.get("SeriesInstanceUID", "") or folder)
        _put_uid(dataset, "StudyInstanceUID", put, "study", str(dataset.get("StudyInstanceUID", "") or folder))
        _put_uid(dataset, "SeriesInstanceUID", put, "series", old_series)
        _put_uid(dataset, "FrameOfReferenceUID", put, "frame", old_series)
        _put_uid(dataset, "SOPInstanceUID", put, "instance", sha256_file(path))
        if not valid_uid(str(dataset.get("SOPClassUID", ""))):
            put("SOPClassUID", str(dataset.file_meta.MediaStorageSOPClassUID))
        for name in _TYPE_2:
            if name not in dataset:
                put(name, "")
        _drop_empty_uids(dataset, changes)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    write_dicom(target, dataset)
    return changes


def _put_uid(dataset: Dataset, name: str, put: Callable[[str, str], None], kind: str, seed: str) -> None:
    if not valid_uid(str(dataset.get(name, "") or "")):
        put(name, derive_uid("repair", kind, seed))


def _drop_empty_uids(dataset: Dataset, changes: dict[str, dict[str, str]]) -> None:
    """Remove references and optional UIDs without a value: an empty UID is invalid where it is type 1."""
    for element in list(dataset):
        if element.VR == "UI" and not element.value:
            changes[element.keyword or str(element.tag)] = {"old": "", "new": "(removed)"}
            del dataset[element.tag]
        elif element.VR == "SQ" and any(_has_empty_reference(item) for item in element.value):
            changes[element.keyword or str(element.tag)] = {"old": "reference without UID", "new": "(removed)"}
            del dataset[element.tag]


def _has_empty_reference(item: Dataset) -> bool:
    return "ReferencedSOPInstanceUID" in item and not item.ReferencedSOPInstanceUID
