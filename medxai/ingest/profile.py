"""What the Basic Application Level Confidentiality Profile does to each attribute (PS3.15 annex E, table E.1-1).

The table is that of the dicom-anonymizer package, edition 2024b of the standard. What its codes ask for is done here:
UIDs and pseudonyms depend on the site's key, so that patients and references stay together over runs and machines.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from medxai.errors import IngestError, MedxaiError
from medxai.identity import UID_NAMESPACE

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

#: Longest shift of dates, in days.
_MOST_DAYS = 3650
#: Characteristics that the option of that name keeps.
_CHARACTERISTICS = {"PatientSex", "PatientAge", "PatientSize", "PatientWeight"}
#: Dates that are no dates of the examination: never shifted, always emptied.
_PERSONAL_DATES = {"PatientBirthDate", "PatientBirthTime", "PatientDeathDateInAlternativeCalendar"}
#: Ages above this single a person out.
_OLDEST = 89
_SHORTEST_KEY = 16


@dataclass(frozen=True)
class Profile:
    """The basic profile with its options.

    Attributes:
        key: secret of the site, at least 16 bytes; whoever has it can link pseudonyms to patients.
        shift_dates: keep the time between examinations: all dates of a patient move back by the same number of days
            (Retain Longitudinal Temporal Information with Modified Dates). Otherwise dates are removed or emptied.
        keep_characteristics: keep sex, age (90 and above as 90), size and weight.
    """

    key: bytes
    shift_dates: bool = False
    keep_characteristics: bool = False

    def __post_init__(self) -> None:
        """Check the key.

        Raises:
            IngestError: it is too short to be a secret.
        """
        if len(self.key) < _SHORTEST_KEY:
            msg = (
                f"the key has {len(self.key)} bytes; at least {_SHORTEST_KEY} are needed, for example of `openssl rand`"
            )
            raise IngestError(msg)

    def patient(self, header: Dataset) -> str:
        """Pseudonym of a patient: equal for equal PatientID and IssuerOfPatientID."""
        who = (str(header.get("PatientID", "") or ""), str(header.get("IssuerOfPatientID", "") or ""))
        if not who[0]:  # nobody else may share it
            who = (str(header.get("StudyInstanceUID", "")), "study")
        return "anon-" + self._hash("patient", *who)[:16]

    def uid(self, old: str) -> str:
        """UID in place of another one, the same for the same."""
        return f"2.25.{uuid.uuid5(UID_NAMESPACE, self._hash('uid', old)).int}"

    def days(self, patient: str) -> int:
        """Days by which the dates of a patient move back."""
        return 1 + int(self._hash("days", patient)[:8], 16) % _MOST_DAYS

    def codes(self) -> list[tuple[str, str]]:
        """Codes of CID 7050 for what is applied."""
        found = [("113100", "Basic Application Confidentiality Profile")]
        if self.shift_dates:
            found.append(("113107", "Retain Longitudinal Temporal Information Modified Dates Option"))
        if self.keep_characteristics:
            found.append(("113108", "Retain Patient Characteristics Option"))
        return found

    def _hash(self, *parts: str) -> str:
        return hmac.new(self.key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()


@dataclass
class Applied:
    """What happened to a dataset.

    Attributes:
        changes: attribute (keyword, tag, or ``private``) -> what was done, once for each.
    """

    changes: dict[str, str] = field(default_factory=dict)

    def note(self, element: DataElement, what: str) -> None:
        """Remember a change."""
        self.changes[str(element.keyword or element.tag)] = what


def apply_profile(dataset: Dataset, profile: Profile) -> Applied:
    """De-identify a dataset in place, its nested items as well; pixel data stay.

    Args:
        dataset: complete instance with file meta information.
        profile: what is done.
    """
    from pydicom.dataset import Dataset as Item

    patient, applied = profile.patient(dataset), Applied()
    days = profile.days(patient)
    private = sum(1 for element in dataset.iterall() if element.tag.is_private)
    dataset.remove_private_tags()
    if private:
        applied.changes["private"] = "removed"
    _walk(dataset, _actions(), profile, days, applied)
    _repeating(dataset, applied)
    for name in ("PatientName", "PatientID"):
        setattr(dataset, name, patient)
        applied.changes[name] = "pseudonym"
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if profile.shift_dates else "REMOVED"
    dataset.DeidentificationMethod = ["medxai", "PS3.15 Basic Profile"]
    items = []
    for value, meaning in profile.codes():
        item = Item()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning[:64]
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = items
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
                 "AccessionNumber"):  # fmt: skip
        if name not in dataset:  # type 2 in every image
            setattr(dataset, name, "")
    meta = dataset.file_meta
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for name in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ReceivingApplicationEntityTitle",
                 "PrivateInformation", "PrivateInformationCreatorUID"):  # fmt: skip
        if name in meta:
            delattr(meta, name)
    dataset.preamble = b"\0" * 128
    return applied


def _walk(dataset: Dataset, actions: dict[tuple[int, int], str], profile: Profile, days: int, applied: Applied) -> None:
    for element in list(dataset):
        action = actions.get((element.tag.group, element.tag.element), "")
        if action:
            _act(dataset, element, action, profile, days, applied)
        if element.VR == "SQ" and element.tag in dataset:
            for item in dataset[element.tag].value:
                _walk(item, actions, profile, days, applied)


def _act(dataset: Dataset, element: DataElement, action: str, profile: Profile, days: int, applied: Applied) -> None:
    name = element.keyword
    if profile.keep_characteristics and name in _CHARACTERISTICS:
        if name == "PatientAge" and (age := str(element.value or ""))[:3].isdigit() and age.endswith("Y"):
            element.value = age if int(age[:3]) <= _OLDEST else f"{_OLDEST + 1:03}Y"
        return
    if element.VR in ("DA", "DT", "TM") and profile.shift_dates and name not in _PERSONAL_DATES:
        if element.VR != "TM":
            element.value = _each(element.value, lambda value: _earlier(str(value), days))
        applied.note(element, "kept" if element.VR == "TM" else "moved back")
    elif action == "X":
        del dataset[element.tag]
        applied.note(element, "removed")
    elif "U" in action or element.VR == "UI":
        if element.VR == "UI":
            element.value = _each(element.value, lambda value: profile.uid(str(value)) if value else "")
            applied.note(element, "new UID")
        elif element.VR != "SQ":
            element.value = None
            applied.note(element, "emptied")
    elif action in ("Z", "XZ") or element.VR == "SQ":
        # An empty sequence stays valid where it is of type 2; where it is of type 1 nothing sensible can be put in.
        element.value = [] if element.VR == "SQ" else None
        applied.note(element, "emptied")
    else:
        element.value = _dummy(element.VR)
        applied.note(element, "replaced")


def _each(value: Any, change: Callable[[Any], str]) -> Any:
    many = hasattr(value, "append") and not isinstance(value, str)
    return [change(item) for item in value] if many else change(value)


def _earlier(value: str, days: int) -> str:
    """A DA or DT value so many days earlier; what cannot be read is dropped."""
    text = value.strip()
    try:
        day = datetime.strptime(text[:8], "%Y%m%d") - timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{day.year:04}{day.month:02}{day.day:02}{text[8:]}"


def _dummy(vr: str) -> Any:
    if vr in ("DA", "DT"):
        return "19000101"
    if vr == "TM":
        return "000000"
    if vr in ("DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"):
        return 0
    if vr == "AS":
        return "000Y"
    if vr in ("OB", "OW", "OF", "OD", "OL", "OV", "UN"):
        return b"\0\0"
    return "REMOVED"


def _repeating(dataset: Dataset, applied: Applied) -> None:
    """Curves and overlays (50xx, 60xx) may hold text of any kind."""
    for element in list(dataset):
        if element.tag.group & 0xFF01 in (0x5000, 0x6000):
            del dataset[element.tag]
            applied.changes["overlays and curves"] = "removed"


def _actions() -> dict[tuple[int, int], str]:
    """Code of the profile by tag.

    Raises:
        MedxaiError: dicom-anonymizer is not installed.
    """
    try:
        from dicomanonymizer.dicom_anonymization_databases import dicomfields_2024b as table
    except ImportError:
        msg = "dicom-anonymizer is not installed; de-identify after `pip install medxai[deidentify]`"
        raise MedxaiError(msg) from None
    codes = {"D_TAGS": "D", "Z_TAGS": "Z", "X_TAGS": "X", "U_TAGS": "U", "Z_D_TAGS": "ZD", "X_Z_TAGS": "XZ",
             "X_D_TAGS": "XD", "X_Z_D_TAGS": "XZD", "X_Z_U_STAR_TAGS": "XZU"}  # fmt: skip
    return {tuple(tag): code for name, code in codes.items() for tag in getattr(table, name) if len(tag) == 2}
