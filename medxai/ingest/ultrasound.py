"""DICOM ultrasound and other images without a place in the patient: still -> HW, cine -> THW."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.errors import IngestError
from medxai.ingest.dicom_file import read_header, read_pixels, rescaled
from medxai.ingest.identifiers import check_identifiers
from medxai.ingest.overlays import overlay_note
from medxai.study import Volume, image_affine

if TYPE_CHECKING:
    from pydicom import Dataset

#: Physical units code of centimetres (PS3.3 C.8.5.5.1.15).
_CENTIMETRE = 3


def read_image(path: Path, study: str) -> tuple[Volume, tuple[str, ...]]:
    """Read a still ``[C, H, W]`` or cine ``[C, T, H, W]``; colour as RGB 0..255, grey after the rescale.

    Spacing comes from the largest calibrated 2D region (SequenceOfUltrasoundRegions, PS3.3 C.8.5.5) or
    from PixelSpacing; without either the image is uncalibrated and its affine is in pixels.

    Raises:
        IdentifierError: identifiers are missing or invalid.
        IngestError: damaged or undecodable pixel data.
    """
    header = read_header(path)
    check_identifiers([header], study)
    dataset, array = read_pixels(path)
    frames = int(header.get("NumberOfFrames", 1) or 1)
    colour = int(header.get("SamplesPerPixel", 1)) == 3 or str(header.PhotometricInterpretation) == "PALETTE COLOR"
    array = array[None] if frames == 1 and array.ndim == (3 if colour else 2) else array
    if array.ndim != (4 if colour else 3):
        msg = f"pixel data has shape {array.shape}, which is neither a still nor a cine"
        raise IngestError(msg, study=study)
    notes = overlay_note(header)
    if colour:
        pixels = array.astype(np.float32).transpose(3, 0, 1, 2)
        if np.array_equal(array[..., 0], array[..., 1]) and np.array_equal(array[..., 0], array[..., 2]):
            pixels = pixels[:1]
            notes.append("colour image holds grey values only; read as grey")
    else:
        pixels = rescaled(array, dataset)[None]
        if str(header.PhotometricInterpretation) == "MONOCHROME1":
            pixels = pixels.max() + pixels.min() - pixels
            notes.append("MONOCHROME1 inverted")
    spacing = _spacing(header)
    if spacing is None:
        notes.append("no pixel spacing or calibrated region: distances are in pixels")
    still = frames == 1
    return (
        Volume(
            pixels=np.ascontiguousarray(pixels[:, 0] if still else pixels),
            axes="HW" if still else "THW",
            affine=image_affine(*spacing) if spacing else image_affine(),
            modality=str(header.get("Modality", "OT")),
            frame_of_reference=str(header.get("FrameOfReferenceUID", "") or "") or None,
            body_part=str(header.get("BodyPartExamined", "") or "").upper(),
            calibrated=spacing is not None,
            source=(header,),
            frame_numbers=() if still else tuple(range(1, frames + 1)),
            frame_seconds=_frame_seconds(header) if not still else None,
        ),
        tuple(notes),
    )


def _spacing(header: Dataset) -> tuple[float, float] | None:
    """Mm between rows and between columns, or None."""
    region = calibrated_region(header)
    if region is not None:
        return abs(float(region.PhysicalDeltaY)) * 10, abs(float(region.PhysicalDeltaX)) * 10
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        value = header.get(name, None)
        if value and all(float(v) > 0 for v in value):
            return float(value[0]), float(value[1])
    return None


def calibrated_region(header: Dataset) -> Dataset | None:
    """Return the largest ultrasound region in centimetres both ways (PS3.3 C.8.5.5); None without one."""
    best: tuple[float, Dataset] | None = None
    for region in header.get("SequenceOfUltrasoundRegions", []):
        units = (region.get("PhysicalUnitsXDirection", 0), region.get("PhysicalUnitsYDirection", 0))
        dx, dy = abs(float(region.get("PhysicalDeltaX", 0))), abs(float(region.get("PhysicalDeltaY", 0)))
        if units != (_CENTIMETRE, _CENTIMETRE) or dx == 0 or dy == 0:
            continue
        area = abs(
            (float(region.RegionLocationMaxX1) - float(region.RegionLocationMinX0))
            * (float(region.RegionLocationMaxY1) - float(region.RegionLocationMinY0))
        )
        if best is None or area > best[0]:
            best = (area, region)
    return best[1] if best else None


def _frame_seconds(header: Dataset) -> float | None:
    for name, scale in (("FrameTime", 1e-3), ("ActualFrameDuration", 1e-3)):
        value = header.get(name, None)
        if value:
            return float(value) * scale
    rate = header.get("CineRate", None) or header.get("RecommendedDisplayFrameRate", None)
    return 1 / float(rate) if rate else None
