"""The identifiers that results must refer to: what is missing or invalid, in one message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medxai.errors import GeometryError, IdentifierError

if TYPE_CHECKING:
    from pydicom import Dataset

_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
#: Modalities whose IODs contain the Frame of Reference module as mandatory (PS3.3 A.3, A.4, A.32.8).
_NEEDS_FRAME = {"CT", "MR", "PT", "SM"}


def check_identifiers(headers: Sequence[Dataset], study: str) -> None:
    """Refuse headers whose identifiers results could not refer to.

    Raises:
        IdentifierError: one message that lists the faults and the number of files that have each, and
            duplicated SOPInstanceUIDs.
    """
    counts: dict[str, int] = {}
    for header in headers:
        for fault in identifier_faults(header):
            counts[fault] = counts.get(fault, 0) + 1
    if counts:
        listed = ", ".join(f"{fault} ({n} of {len(headers)} files)" for fault, n in sorted(counts.items()))
        msg = f"{listed}: write a valid copy with 'medxai repair SRC DST' and analyse that"
        raise IdentifierError(msg, study=study)
    uids = {str(header.SOPInstanceUID) for header in headers}
    if len(uids) < len(headers):
        msg = f"{len(headers) - len(uids)} duplicate slice(s): the same SOPInstanceUID occurs more than once"
        raise GeometryError(msg, study=study)


def identifier_faults(header: Dataset) -> list[str]:
    """List what is missing or invalid among the identifiers that results must refer to.

    UIDs follow PS3.5 section 9.1: digits and dots, no leading zeros, at most 64 characters.
    """
    faults = []
    for name in _IDENTIFIERS:
        fault = _uid_fault(header, name)
        if fault:
            faults.append(fault)
    if str(header.get("Modality", "")) in _NEEDS_FRAME:
        fault = _uid_fault(header, "FrameOfReferenceUID")
        if fault:
            faults.append(fault)
    if "PatientName" not in header:
        faults.append("PatientName is absent")
    if "PatientID" not in header:
        faults.append("PatientID is absent")
    return faults


def valid_uid(value: str) -> bool:
    """True for a UID that conforms to PS3.5 section 9.1."""
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def _uid_fault(header: Dataset, name: str) -> str | None:
    value = str(header.get(name, "") or "")
    if not value:
        return f"{name} is empty" if name in header else f"{name} is absent"
    return None if valid_uid(value) else f"{name} is not a valid UID"
