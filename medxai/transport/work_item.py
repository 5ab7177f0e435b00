"""Unified Procedure Steps as this product uses them (PS3.3 section C.30; PS3.4 annex CC): pull, claim, tell, end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from medxai.errors import DeliveryError
from medxai.settings import Destination

if TYPE_CHECKING:
    from pydicom import Dataset

State = Literal["IN PROGRESS", "COMPLETED", "CANCELED"]


class HeldByOthersError(DeliveryError):
    """The step is in the hands of another performer, or has ended."""


class WorkItemNode(Protocol):
    """A node with work items: by DIMSE (`medxai.transport.ups_dimse`) or UPS-RS (`medxai.transport.ups_web`).

    Every method raises DeliveryError, of which RetryableError means that the node does not answer.
    """

    def scheduled(self, label: str) -> list[Dataset]:
        """Steps that are SCHEDULED, with the Worklist Label when it is not empty."""

    def get(self, uid: str) -> Dataset:
        """All attributes of a step."""

    def change_state(self, uid: str, transaction_uid: str, state: State) -> None:
        """Claim or end a step. Raises HeldByOthersError when it is not ours to change."""

    def update(self, uid: str, transaction_uid: str, changes: Dataset) -> None:
        """Change attributes of a step that we hold. Raises HeldByOthersError when we do not."""


@dataclass(frozen=True)
class Input:
    """What a step refers to: a study or one series of it, and the title of the node that has it, when it says so."""

    study_uid: str
    series_uid: str | None
    retrieve_aet: str


def open_node(node: Destination) -> WorkItemNode:
    """Return the work items of a node."""
    if node.kind == "dicomweb":
        from medxai.transport.ups_web import WebWorkItems

        return WebWorkItems(node)
    from medxai.transport.ups_dimse import DimseWorkItems

    return DimseWorkItems(node)


def inputs(step: Dataset) -> list[Input]:
    """What has to be fetched for a step (Input Information Sequence, PS3.3 table 10-3b).

    Raises:
        DeliveryError: it refers to nothing.
    """
    found = []
    for item in step.get("InputInformationSequence", None) or []:
        study = str(item.get("StudyInstanceUID", "") or "")
        if not study:
            continue
        places = item.get("DICOMRetrievalSequence", None) or []
        aet = str(places[0].get("RetrieveAETitle", "") or "") if places else ""
        series = str(item.get("SeriesInstanceUID", "") or "") or None
        found.append(Input(study, series, aet))
    if not found:
        msg = "the work item refers to no study (Input Information Sequence)"
        raise DeliveryError(msg)
    return list(dict.fromkeys(found))


def progress(percent: int, words: str = "") -> Dataset:
    """Changes that say how far a step is (PS3.3 table C.30.1-1)."""
    item = _dataset(ProcedureStepProgress=str(percent))
    if words:
        item.ProcedureStepProgressDescription = words[:64]
    return _dataset(ProcedureStepProgressInformationSequence=[item])


def performed(started: str, outputs: dict[tuple[str, str], list[tuple[str, str]]], holder: Destination) -> Dataset:
    """Changes that a step needs before it may be COMPLETED (PS3.4 table CC.2.5-3).

    Args:
        started: DICOM date and time.
        outputs: ``(study, series)`` -> ``(SOP class, SOP instance)`` of what was made.
        holder: the destination that it can be retrieved from.
    """
    listed = []
    for (study, series), objects in outputs.items():
        item = _dataset(TypeOfInstances="DICOM", StudyInstanceUID=study, SeriesInstanceUID=series)
        item.ReferencedSOPSequence = [
            _dataset(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=uid) for sop_class, uid in objects
        ]
        if holder.kind == "dicomweb":
            item.WADORSRetrievalSequence = [_dataset(RetrieveURL=f"{holder.url}/studies/{study}/series/{series}")]
        else:
            item.DICOMRetrievalSequence = [_dataset(RetrieveAETitle=holder.query_aet or holder.aet)]
        listed.append(item)
    done = _dataset(
        PerformedStationNameCodeSequence=[_code("MEDXAI", "99MEDXAI", "medxai")],
        PerformedWorkitemCodeSequence=[_code("110001", "DCM", "Image Processing")],
        PerformedProcedureStepStartDateTime=started,
        PerformedProcedureStepEndDateTime=moment(),
        OutputInformationSequence=listed,
    )
    changes = progress(100)
    changes.UnifiedProcedureStepPerformedProcedureSequence = [done]
    return changes


def canceled(reason: str) -> Dataset:
    """Changes that a step needs before it may be CANCELED.

    Args:
        reason: in words; never patient data.
    """
    item = _dataset(
        ProcedureStepCancellationDateTime=moment(),
        ReasonForCancellation=reason[:1024],
        ProcedureStepDiscontinuationReasonCodeSequence=[_code("110501", "DCM", "Equipment failure")],
    )
    return _dataset(ProcedureStepProgressInformationSequence=[item])


def moment() -> str:
    """Now, as a DICOM date and time."""
    return time.strftime("%Y%m%d%H%M%S+0000", time.gmtime())


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return _dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _dataset(**values: Any) -> Dataset:
    from pydicom import Dataset

    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made
