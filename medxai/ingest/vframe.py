"""A United Imaging grid (VFRAME), many slices in one image -> Volume; their places stand in a private sequence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.errors import GeometryError, IngestError
from medxai.ingest.dicom_file import image_type, read_pixels, rescaled
from medxai.ingest.geometry import Plane, stack_planes
from medxai.ingest.identifiers import check_identifiers
from medxai.study import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

_CREATOR = "Image Private Header"


def is_vframe(header: Dataset) -> bool:
    """True where ImageType says that slices are tiled."""
    return "VFRAME" in image_type(header)


def read_vframe(path: Path, study: str) -> tuple[Volume, tuple[str, ...]]:
    """Read one grid as ``[1, D, H, W]``, ``D`` ascending along the slice normal.

    Slices fill rows of ``ceil(sqrt(n))`` tiles. They are no objects that results could refer to, so the volume has no
    `positions`.

    Raises:
        IdentifierError: identifiers are missing or invalid.
        GeometryError: the private sequence is missing, as de-identification likes to make it, or its slices are no
            regular grid.
        IngestError: damaged or undecodable pixel data.
    """
    dataset, array = read_pixels(path)
    check_identifiers([dataset], study)
    positions = _positions(dataset)
    if not positions:
        msg = (
            "is a United Imaging grid without the private sequence (0065,1051) that tells its slices apart; "
            "send the series before de-identification, or converted to a volume"
        )
        raise GeometryError(msg, study=study)
    count = len(positions)
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    if array.ndim != 2 or array.shape[0] % down or array.shape[1] % across:
        msg = f"the grid of {count} slices has shape {array.shape}, which is not {down} x {across} tiles"
        raise IngestError(msg, study=study)
    rows, columns = array.shape[0] // down, array.shape[1] // across
    spacing = tuple(float(v) for v in dataset.PixelSpacing)
    orientation = tuple(float(v) for v in dataset.ImageOrientationPatient)
    planes = [Plane(position, orientation, (spacing[0], spacing[1]), (rows, columns)) for position in positions]
    thickness = dataset.get("SliceThickness", None)
    stacked = stack_planes(planes, study, float(thickness) if thickness else None)
    tiles = rescaled(array, dataset).reshape(down, rows, across, columns).transpose(0, 2, 1, 3)
    pixels = tiles.reshape(down * across, rows, columns)[stacked.order]
    del dataset.PixelData
    return (
        Volume(
            pixels=np.ascontiguousarray(pixels[None], np.float32),
            axes="DHW",
            affine=stacked.affine,
            modality=str(dataset.get("Modality", "MR")),
            frame_of_reference=str(dataset.get("FrameOfReferenceUID", "") or "") or None,
            body_part=str(dataset.get("BodyPartExamined", "") or "").upper(),
            source=(dataset,),
        ),
        (f"grid of {count} slices",),
    )


def _positions(dataset: Dataset) -> list[tuple[float, float, float]]:
    """ImagePositionPatient of each slice in the order of the tiles; empty where they are not all there."""
    try:
        items = dataset.private_block(0x0065, _CREATOR)[0x51].value
        found = [tuple(float(v) for v in item.ImagePositionPatient) for item in items]
    except (KeyError, AttributeError, TypeError, ValueError):
        return []
    return [(p[0], p[1], p[2]) for p in found if len(p) == 3] if all(len(p) == 3 for p in found) else []
