"""A series of single-frame DICOM images -> Volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.errors import GeometryError, IngestError
from medxai.ingest.dicom_file import read_header, read_pixels, rescaled
from medxai.ingest.geometry import Plane, stack_planes
from medxai.ingest.identifiers import check_identifiers
from medxai.study import Volume

if TYPE_CHECKING:
    from pydicom import Dataset


def read_series(files: Sequence[Path], study: str) -> tuple[Volume, tuple[str, ...]]:
    """Read one series, in any file order, as ``[1, D, H, W]`` with ``D`` ascending along the slice normal.

    Args:
        files: the instances of one series.
        study: pseudonymous name for messages.

    Returns:
        The volume and notes on what was decided.

    Raises:
        IdentifierError: identifiers are missing or invalid; every fault is listed once.
        GeometryError: the slices are not a regular grid.
        IngestError: damaged or undecodable files, colour, or a mosaic.
    """
    headers = [read_header(path) for path in files]
    check_identifiers(headers, study)
    _check_kind(headers, study)
    planes = [_plane(header, study) for header in headers]
    thickness = headers[0].get("SliceThickness", None)
    order, affine, positions = stack_planes(planes, study, float(thickness) if thickness else None)
    first = headers[order[0]]
    pixels = np.empty((1, len(files), int(first.Rows), int(first.Columns)), dtype=np.float32)
    notes = []
    inverted = str(first.get("PhotometricInterpretation", "")) == "MONOCHROME1"
    for d, index in enumerate(order):
        dataset, array = read_pixels(files[index])
        if array.ndim != 2:
            msg = f"a slice has shape {array.shape}; grey single-frame images are needed"
            raise IngestError(msg, study=study)
        pixels[0, d] = rescaled(array, dataset)
    if inverted:
        pixels = pixels.max() + pixels.min() - pixels
        notes.append("MONOCHROME1 inverted")
    notes.extend(_order_notes([headers[i] for i in order], positions, thickness))
    return (
        Volume(
            pixels=pixels,
            axes="DHW",
            affine=affine,
            positions=positions,
            frame_of_reference=str(first.FrameOfReferenceUID),
            modality=str(first.get("Modality", "OT")),
            body_part=str(first.get("BodyPartExamined", "") or "").upper(),
            source=tuple(headers[i] for i in order),
        ),
        tuple(notes),
    )


def _check_kind(headers: Sequence[Dataset], study: str) -> None:
    for header in headers:
        if "MOSAIC" in [str(v) for v in header.get("ImageType", [])]:
            msg = "is a Siemens mosaic, many slices tiled in one image: convert it to a volume first"
            raise IngestError(msg, study=study)
        if "PhotometricInterpretation" not in header or "Rows" not in header:
            msg = "has instances without image attributes (Rows, PhotometricInterpretation)"
            raise IngestError(msg, study=study)


def _plane(header: Dataset, study: str) -> Plane:
    missing = [
        name
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        if header.get(name, None) in (None, "", [])
    ]
    if missing:
        msg = f"{', '.join(missing)} missing: the place of the slices in the patient is unknown"
        raise GeometryError(msg, study=study)
    try:
        position = tuple(float(v) for v in header.ImagePositionPatient)
        orientation = tuple(float(v) for v in header.ImageOrientationPatient)
        spacing = tuple(float(v) for v in header.PixelSpacing)
        if len(position) != 3 or len(orientation) != 6 or len(spacing) != 2 or min(spacing) <= 0:
            raise ValueError
    except (TypeError, ValueError) as error:
        msg = "ImagePositionPatient, ImageOrientationPatient or PixelSpacing hold no valid numbers"
        raise GeometryError(msg, study=study) from error
    return Plane(position, orientation, spacing, (int(header.Rows), int(header.Columns)))


def _order_notes(headers: Sequence[Dataset], positions: np.ndarray, thickness: object) -> list[str]:
    notes = []
    numbers = [header.get("InstanceNumber", None) for header in headers]
    if all(number is not None for number in numbers) and len(numbers) > 1:
        steps = np.diff([int(number) for number in numbers])
        if (steps < 0).all():
            notes.append("InstanceNumber descends along the normal; sorted by position")
        elif not (steps > 0).all():
            notes.append("InstanceNumber does not follow position; sorted by position")
    if thickness and len(positions) > 1:
        gap = float(np.linalg.norm(positions[1] - positions[0]))
        if gap > 2 * float(str(thickness)):
            notes.append(f"slices {float(str(thickness)):g} mm thick are {gap:g} mm apart: the space between is unseen")
    return notes
