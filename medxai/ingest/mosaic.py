"""A Siemens mosaic, many slices tiled in one image -> Volume; its geometry stands in the private CSA header."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.errors import GeometryError, IngestError
from medxai.ingest.dicom_file import image_type, read_pixels, rescaled
from medxai.ingest.identifiers import check_identifiers
from medxai.study import Volume

if TYPE_CHECKING:
    from pydicom import Dataset


def is_mosaic(header: Dataset) -> bool:
    """True where ImageType says that slices are tiled."""
    return "MOSAIC" in image_type(header)


def read_mosaic(path: Path, study: str) -> tuple[Volume, tuple[str, ...]]:
    """Read one mosaic as ``[1, D, H, W]``, ``D`` ascending along the slice normal.

    nibabel finds the slices and their place. The slices are no objects that results could refer to, so the volume has
    no `positions`.

    Raises:
        IdentifierError: identifiers are missing or invalid.
        GeometryError: the private header is missing, as de-identification likes to make it, or damaged.
        IngestError: damaged or undecodable pixel data.
    """
    with warnings.catch_warnings():  # its readers call themselves experimental; ours is tested against dcm2niix
        warnings.simplefilter("ignore")
        from nibabel.nicom.csareader import CSAReadError
        from nibabel.nicom.dicomwrappers import MosaicWrapper, WrapperError

    dataset, array = read_pixels(path)
    check_identifiers([dataset], study)
    try:
        wrapper = MosaicWrapper(dataset)
        count = int(wrapper.n_mosaic)
        affine = np.asarray(wrapper.affine, np.float64)
        rows, columns = (int(n) for n in wrapper.image_shape[:2])
    except (WrapperError, CSAReadError, AttributeError, TypeError, ValueError, KeyError) as error:
        msg = (
            "is a Siemens mosaic without the private header (0029,1010) that tells its slices apart; "
            "send the series before de-identification, or converted to a volume"
        )
        raise GeometryError(msg, study=study) from error
    side = int(np.ceil(np.sqrt(count)))
    if array.shape != (side * rows, side * columns):
        msg = f"the mosaic of {count} slices of {rows} x {columns} has shape {array.shape}"
        raise IngestError(msg, study=study)
    tiles = rescaled(array, dataset).reshape(side, rows, side, columns).transpose(0, 2, 1, 3)
    pixels = tiles.reshape(side * side, rows, columns)[:count]
    placed = affine[:, [2, 0, 1, 3]]  # nibabel's voxels are (row, column, slice)
    if np.cross(placed[:3, 2], placed[:3, 1]) @ placed[:3, 0] < 0:
        pixels = pixels[::-1]
        placed = placed.copy()
        placed[:3, 3] += placed[:3, 0] * (count - 1)
        placed[:3, 0] *= -1
    return (
        Volume(
            pixels=np.ascontiguousarray(pixels[None], np.float32),
            axes="DHW",
            affine=placed,
            modality=str(dataset.get("Modality", "MR")),
            frame_of_reference=str(dataset.get("FrameOfReferenceUID", "") or "") or None,
            body_part=str(dataset.get("BodyPartExamined", "") or "").upper(),
            source=(_without_pixels(dataset),),
        ),
        (f"mosaic of {count} slices",),
    )


def _without_pixels(dataset: Dataset) -> Dataset:
    del dataset.PixelData
    return dataset
