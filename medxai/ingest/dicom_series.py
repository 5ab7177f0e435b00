"""A series of single-frame DICOM images -> Volume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.errors import GeometryError, IngestError
from medxai.ingest.dicom_file import read_header, read_pixels, rescaled
from medxai.ingest.geometry import Plane, stack_planes
from medxai.ingest.identifiers import check_identifiers
from medxai.ingest.overlays import overlay_note
from medxai.ingest.slices import for_each_slice
from medxai.study import Volume

if TYPE_CHECKING:
    from pydicom import Dataset


def read_series(
    files: Sequence[Path], study: str, largest_gap_mm: float | None = None, threads: int | None = None
) -> tuple[Volume, tuple[str, ...]]:
    """Read one series, in any file order, as ``[1, D, H, W]`` with ``D`` ascending along the slice normal.

    Args:
        files: the instances of one series.
        study: pseudonymous name for messages.
        largest_gap_mm: straighten tilted and unevenly spaced slices that are at most so far apart, and drop slices
            that another one repeats voxel by voxel; None refuses such series.
        threads: that read slices; None for as many as there are processors, at most four.

    Returns:
        The volume and notes on what was decided.

    Raises:
        IdentifierError: identifiers are missing or invalid; every fault is listed once.
        GeometryError: the slices are not a regular grid.
        IngestError: damaged or undecodable files, colour, or a mosaic.
    """
    headers = [read_header(path) for path in files]
    notes: list[str] = []
    if largest_gap_mm is not None:
        files, headers, repeated = _without_repeats(files, headers)
        if repeated:
            notes.append(f"{repeated} slices were dropped that another one repeats voxel by voxel")
    check_identifiers(headers, study)
    _check_kind(headers, study)
    planes = [_plane(header, study) for header in headers]
    thickness = headers[0].get("SliceThickness", None)
    stacked = stack_planes(planes, study, float(thickness) if thickness else None, largest_gap_mm)
    order, positions = stacked.order, stacked.positions
    if stacked.stack is not None:
        notes.append(f"straightened for the model: {stacked.stack.words}; maps lie on the slices as they were taken")
    first = headers[order[0]]
    pixels = np.empty((1, len(files), int(first.Rows), int(first.Columns)), dtype=np.float32)
    inverted = str(first.get("PhotometricInterpretation", "")) == "MONOCHROME1"

    def read(d: int, path: Path) -> None:
        dataset, array = read_pixels(path)
        if array.ndim != 2:
            msg = f"a slice has shape {array.shape}; grey single-frame images are needed"
            raise IngestError(msg, study=study)
        pixels[0, d] = rescaled(array, dataset)

    for_each_slice((files[index] for index in order), read, threads)
    if inverted:
        pixels = pixels.max() + pixels.min() - pixels
        notes.append("MONOCHROME1 inverted")
    notes.extend(overlay_note(first))
    notes.extend(_order_notes([headers[i] for i in order], positions, thickness))
    return (
        Volume(
            pixels=pixels,
            axes="DHW",
            affine=stacked.affine,
            positions=positions,
            stack=stacked.stack,
            frame_of_reference=str(first.FrameOfReferenceUID),
            modality=str(first.get("Modality", "OT")),
            body_part=str(first.get("BodyPartExamined", "") or "").upper(),
            source=tuple(headers[i] for i in order),
        ),
        tuple(notes),
    )


def _without_repeats(files: Sequence[Path], headers: Sequence[Dataset]) -> tuple[list[Path], list[Dataset], int]:
    """Files and headers without those whose place and pixels another one has; how many there were."""
    places: dict[tuple[str, ...], list[int]] = {}
    for number, header in enumerate(headers):
        values = [
            *(header.get("ImagePositionPatient", None) or []),
            *(header.get("ImageOrientationPatient", None) or []),
        ]
        places.setdefault(tuple(map(str, values)) or (str(number),), []).append(number)
    dropped: set[int] = set()
    for same in places.values():
        seen: set[str] = set()
        for number in same if len(same) > 1 else ():
            dataset, array = read_pixels(files[number])
            digest = hashlib.sha256(rescaled(array, dataset).tobytes()).hexdigest()
            dropped |= {number} if digest in seen else set()
            seen.add(digest)
    kept = [number for number in range(len(files)) if number not in dropped]
    return [files[n] for n in kept], [headers[n] for n in kept], len(dropped)


def _check_kind(headers: Sequence[Dataset], study: str) -> None:
    for header in headers:
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
