"""Key Object Selection: the slices where the evidence is strongest and the objects that show it (TID 2010)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medxai.export.naming import NOTICE, ascii_text, method_title, stem, with_evidence
from medxai.export.placement import detached_reason
from medxai.export.provenance import MANUFACTURER, equipment, moment, settle, source_header, state_body_part, uid_of
from medxai.export.reporting import observer_context, peak_place, region_place
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result

if TYPE_CHECKING:
    from highdicom.ko import KeyObjectSelectionDocument
    from pydicom import Dataset

ROLE = "key_objects"


def applies(result: Result) -> str | None:
    """Return None for DICOM sources with some evidence, otherwise the reason why not."""
    if reason := detached_reason(result):
        return reason
    if not any(explanation.map.max(initial=0.0) > 0 for explanation in result.explanations):
        return "no map has positive evidence, so no slice stands out"
    return None


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write one selection for the study, named after the first map with evidence, and return its path."""
    shown = [item for _, item in with_evidence(result, options)]
    if not shown:
        return []
    dataset = build(result, shown, _headers(folder), options)
    return [write_dicom(folder / f"{stem(ROLE, shown[0])}.dcm", dataset)]


def build(
    result: Result, shown: list[Explanation], objects: list[Dataset], options: ExportOptions
) -> KeyObjectSelectionDocument:
    """Return the selection (PS3.3 A.35.4), titled "Of Interest".

    Each source slice with a maximum is pointed at, together with the presentation state that outlines it; then the
    objects of this run: of a captured series only the captures of those slices.

    Args:
        result: study and decision.
        shown: maps with evidence.
        objects: headers of the objects written for the study.
        options: the series number.
    """
    from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
    from pydicom.sr.codedict import codes

    places = [region_place(result, peak_place(explanation)[0]) for explanation in shown]
    slices = {str(header.SOPInstanceUID): source_header(header) for header, _ in places}
    states = [item for item in objects if item.Modality == "PR"]
    others = [item for item in objects if item.Modality != "PR" and _wanted(item, places)]
    referenced = [*slices.values(), *others]
    what = "; ".join(
        f"{method_title(explanation.method)} of {explanation.class_label}, {_where(header, frames)}"
        for explanation, (header, frames) in zip(shown, places, strict=True)
    )
    content = KeyObjectSelection(
        document_title=codes.DCM.OfInterest,
        referenced_objects=referenced,
        observer_device_context=observer_context(result),
        description=ascii_text(f"Slices where evidence is strongest: {what}. {NOTICE}", 1024),
    )
    _complete(content, places, states)
    dataset = KeyObjectSelectionDocument(
        evidence=[*referenced, *states],
        content=content,
        series_instance_uid=uid_of(result, ROLE, shown[0], "series"),
        series_number=options.series_number_base + 320,
        # What is selected changes with what else was written.
        sop_instance_uid=uid_of(result, ROLE, shown[0], *sorted(str(item.SOPInstanceUID) for item in objects)),
        instance_number=1,
        manufacturer=MANUFACTURER,
        contributing_equipment=equipment(result),
        series_description=ascii_text(f"Key slices of explanations: {NOTICE}", 64),
    )
    for item in dataset.ContentSequence:
        if item.ValueType in ("IMAGE", "COMPOSITE"):
            # The library names its references; the template does not (TID 2010, rows 8 to 10).
            del item.ConceptNameCodeSequence
    when = moment(result)
    dataset.ContentDate, dataset.ContentTime = when.strftime("%Y%m%d"), when.strftime("%H%M%S")
    state_body_part(dataset, result, next(iter(slices.values())))
    settle(dataset, result)
    return dataset


def _headers(folder: Path) -> list[Dataset]:
    """Headers of the DICOM objects in a folder, in the order of their names."""
    import pydicom

    return [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.glob("*.dcm"))]


def _wanted(item: Dataset, places: list[tuple[Dataset, list[int] | None]]) -> bool:
    """False for captures of other slices than those of the maxima."""
    if not str(item.SOPClassUID).startswith("1.2.840.10008.5.1.4.1.1.7"):
        return True
    if int(item.get("NumberOfFrames") or 1) > 1:
        return True
    sources = {
        (str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 0))
        for source in item.get("SourceImageSequence", [])
    }
    return any((str(header.SOPInstanceUID), (frames or [0])[0]) in sources for header, frames in places)


def _where(header: Dataset, frames: list[int] | None) -> str:
    return f"frame {frames[0]}" if frames else f"image {header.get('InstanceNumber', '')}".strip()


def _complete(content: list[Dataset], places: list[tuple[Dataset, list[int] | None]], states: list[Dataset]) -> None:
    """Add to the references to source slices their frames and presentation states (PS3.3 table C.18.4-1), in place."""
    from pydicom.dataset import Dataset

    for item in content[0].ContentSequence:
        if item.ValueType != "IMAGE":
            continue
        reference = item.ReferencedSOPSequence[0]
        uid = str(reference.ReferencedSOPInstanceUID)
        here = [frames for header, frames in places if str(header.SOPInstanceUID) == uid]
        if not here:
            continue
        numbers = sorted({number for frames in here for number in frames or []})
        if numbers:
            reference.ReferencedFrameNumber = numbers
        for state in states:
            if uid in _outlined(state):
                other = Dataset()
                other.ReferencedSOPClassUID, other.ReferencedSOPInstanceUID = state.SOPClassUID, state.SOPInstanceUID
                reference.ReferencedSOPSequence = [other]
                break  # one state at a time can be applied to an image


def _outlined(state: Dataset) -> set[str]:
    return {
        str(image.ReferencedSOPInstanceUID)
        for series in state.get("ReferencedSeriesSequence", [])
        for image in series.ReferencedImageSequence
    }
