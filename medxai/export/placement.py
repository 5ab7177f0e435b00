"""The source image as highdicom wants it: headers whose frames stand in the order of the map's `D` axis."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from medxai.errors import ExportError
from medxai.export.provenance import shallow, source_header
from medxai.export.slide import is_slide
from medxai.study import Result, Volume

if TYPE_CHECKING:
    from pydicom import Dataset


def detached_reason(result: Result) -> str | None:
    """Return why there is no DICOM study that an object could belong to; None when there is one."""
    if result.study.kind != "dicom" or not result.study.volume.source:
        return f"the source is not DICOM ({result.study.kind}), so there is no study to attach an object to"
    return None


def unplaced_reason(result: Result) -> str | None:
    """Return why the study has no place in a patient that DICOM could state; None when it has one."""
    volume = result.study.volume
    if reason := detached_reason(result):
        return reason
    if is_slide(volume):
        return "the source is a whole slide, which has a place on the glass and none in a patient"
    if not volume.frame_of_reference:
        return "the source has no FrameOfReferenceUID, so positions in the patient are unknown"
    if volume.positions is None or volume.axes != "DHW":
        return "the source has no plane positions"
    return None


def is_multi_frame(volume: Volume) -> bool:
    """Return True when all slices come from one multi-frame object."""
    return bool(volume.frame_numbers) and len(volume.source) == 1


def placed_sources(result: Result) -> list[Dataset]:
    """Return source headers that match the map plane by plane.

    A series of single frames gives one header per slice. A multi-frame object gives one header whose per-frame
    groups are those of `frame_numbers`, in that order, so that plane ``i`` of the map is frame ``i + 1`` of the
    header; `restore_frame_numbers` undoes the renumbering in what was written.

    Raises:
        ExportError: the number of headers or frames does not match the map.
    """
    volume = result.study.volume
    depth = volume.shape[0]
    if not is_multi_frame(volume):
        if len(volume.source) != depth:
            raise ExportError(f"{len(volume.source)} source headers for {depth} slices", study=result.study.key)
        return [source_header(header) for header in volume.source]
    header = source_header(volume.source[0])
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if len(volume.frame_numbers) != depth or not groups or max(volume.frame_numbers) > len(groups):
        raise ExportError(
            f"{len(volume.frame_numbers)} frame numbers for {depth} slices and {len(groups or ())} per-frame groups "
            "(5200,9230) do not agree",
            study=result.study.key,
        )
    frames = [shallow(groups[number - 1]) for number in volume.frame_numbers]
    # highdicom completes the shared spacing in place, so these few elements are copied whole.
    shared = copy.deepcopy(header.SharedFunctionalGroupsSequence[0])
    # highdicom reads orientation and spacing from the shared groups only; scanners may repeat them per frame.
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if keyword not in shared and keyword in frames[0]:
            shared.add(copy.deepcopy(frames[0][keyword]))
            for frame in frames:
                del frame[keyword]
    header.PerFrameFunctionalGroupsSequence = frames
    header.SharedFunctionalGroupsSequence = [shared]
    header.NumberOfFrames = depth
    return [header]


def restore_frame_numbers(dataset: Dataset, volume: Volume) -> None:
    """Replace frame numbers of the reordered header by those of the real source object, in place."""
    if not is_multi_frame(volume):
        return
    # Frames of several segments share their reference items; each item is renumbered once.
    items = {id(item): item for item in (*dataset.get("SourceImageSequence", []), *_frame_references(dataset))}
    for item in items.values():
        if "ReferencedFrameNumber" in item:
            value = item.ReferencedFrameNumber
            numbers = [int(value)] if isinstance(value, (int, str)) else [int(v) for v in value]
            item.ReferencedFrameNumber = [volume.frame_numbers[number - 1] for number in numbers]


def _frame_references(dataset: Dataset) -> list[Dataset]:
    return [
        source
        for frame in dataset.get("PerFrameFunctionalGroupsSequence", [])
        for derivation in frame.get("DerivationImageSequence", [])
        for source in derivation.get("SourceImageSequence", [])
    ]


def letters(direction: np.ndarray) -> str:
    """Return where a direction of LPS space points: up to two letters of ``LRPAHF``, the main one first.

    Args:
        direction: ``[3]`` vector in LPS. An axis counts when it makes up more than a fifth of the vector
            (PS3.3 C.7.6.1.1.1 allows such compound letters).
    """
    names = (("L", "R"), ("P", "A"), ("H", "F"))
    length = float(np.linalg.norm(direction))
    if length <= 0:
        return ""
    unit = direction / length
    order = sorted(range(3), key=lambda axis: -abs(float(unit[axis])))
    return "".join(names[axis][0 if unit[axis] > 0 else 1] for axis in order if abs(float(unit[axis])) > 0.2)[:2]
