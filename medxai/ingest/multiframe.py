"""An enhanced multi-frame CT or MR instance -> Volume (PS3.3 A.36, A.38)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai.errors import GeometryError, IngestError
from medxai.ingest.dicom_file import read_header, read_pixels
from medxai.ingest.geometry import Plane, stack_planes
from medxai.ingest.identifiers import check_identifiers
from medxai.study import Volume

if TYPE_CHECKING:
    from pydicom import Dataset


def read_multiframe(path: Path, study: str, largest_gap_mm: float | None = None) -> tuple[Volume, tuple[str, ...]]:
    """Read one enhanced multi-frame instance as ``[1, D, H, W]``, ``D`` ascending along the slice normal.

    The geometry and the rescale of each frame come from its functional groups (per-frame before shared);
    `largest_gap_mm` as in `read_series`.

    Raises:
        IdentifierError: identifiers are missing or invalid.
        GeometryError: a frame has no position, or the frames are not one regular grid.
        IngestError: damaged or undecodable pixel data.
    """
    header = read_header(path)
    check_identifiers([header], study)
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if len(header.get("PerFrameFunctionalGroupsSequence", [])) != frames:
        msg = "the number of per-frame functional groups differs from NumberOfFrames"
        raise GeometryError(msg, study=study)
    size = (int(header.Rows), int(header.Columns))
    planes = [_plane(header, i, size, study) for i in range(frames)]
    thickness = _group(header, 0, "PixelMeasuresSequence", "SliceThickness")
    stacked = stack_planes(planes, study, float(thickness) if thickness else None, largest_gap_mm)
    order = stacked.order
    notes = []
    if stacked.stack is not None:
        notes.append(f"straightened for the model: {stacked.stack.words}; maps lie on the slices as they were taken")
    _, array = read_pixels(path)
    array = array[None] if frames == 1 and array.ndim == 2 else array
    if array.shape != (frames, *size):
        msg = f"pixel data has shape {array.shape}, the header says {frames} grey frames of {size}"
        raise IngestError(msg, study=study)
    pixels = np.empty((1, frames, *size), dtype=np.float32)
    for d, index in enumerate(order):
        slope = _group(header, index, "PixelValueTransformationSequence", "RescaleSlope")
        intercept = _group(header, index, "PixelValueTransformationSequence", "RescaleIntercept")
        pixels[0, d] = array[index].astype(np.float32) * float(slope or 1) + float(intercept or 0)
    anatomy = _group(header, 0, "FrameAnatomySequence", "AnatomicRegionSequence")
    region = str(anatomy[0].get("CodeMeaning", "")).upper() if anatomy else ""
    return (
        Volume(
            pixels=pixels,
            axes="DHW",
            affine=stacked.affine,
            positions=stacked.positions,
            stack=stacked.stack,
            frame_of_reference=str(header.FrameOfReferenceUID),
            modality=str(header.get("Modality", "OT")),
            body_part=str(header.get("BodyPartExamined", "") or region).upper(),
            source=(header,),
            frame_numbers=tuple(index + 1 for index in order),
        ),
        tuple(notes),
    )


def _group(header: Dataset, frame: int, sequence: str, attribute: str) -> Any:
    """Value of an attribute in a functional group: per-frame first, then shared; None when absent."""
    groups = [header.PerFrameFunctionalGroupsSequence[frame], *header.get("SharedFunctionalGroupsSequence", [])]
    for group in groups:
        items = group.get(sequence, None)
        if items:
            value = items[0].get(attribute, None)
            if value is not None:
                return value
    return None


def _plane(header: Dataset, frame: int, size: tuple[int, int], study: str) -> Plane:
    position = _group(header, frame, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _group(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _group(header, frame, "PixelMeasuresSequence", "PixelSpacing")
    if not position or not orientation or not spacing:
        msg = f"frame {frame + 1} has no position, orientation or pixel spacing in its functional groups"
        raise GeometryError(msg, study=study)
    x, y, z = (float(v) for v in position)
    rows, columns = (float(v) for v in spacing)
    return Plane((x, y, z), tuple(float(v) for v in orientation), (rows, columns), size)
