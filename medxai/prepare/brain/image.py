"""Images of three or four axes from and to NIfTI, with the same bytes for the same content."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.files import write_bytes
from medxai.ingest.nifti import lps_affine
from medxai.study import Affine

#: Farthest distance in mm between the same corner of two grids that are called one grid.
_SAME_GRID_MM = 0.05
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Image:
    """Values on a grid in the patient or in a template's space.

    Attributes:
        data: ``[D, H, W]`` or ``[D, H, W, T]``.
        affine: 4x4, index ``(d, h, w)`` -> LPS mm at the voxel's centre.
        seconds: between the entries of the fourth axis as the header states them; None where it does not.
    """

    data: npt.NDArray[Any]
    affine: Affine
    seconds: float | None = None

    @property
    def grid(self) -> tuple[int, int, int]:
        """Shape of the grid, ``(D, H, W)``."""
        d, h, w = self.data.shape[:3]
        return (d, h, w)


def read_image(path: Path, axes: int, study: str | None = None) -> Image:
    """Read NIfTI-1 or -2 as ``[D, H, W]`` (`axes` 3) or ``[D, H, W, T]`` (`axes` 4), float32, scaling applied.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        axes: 3 or 4; a fourth axis of length one is dropped or added as needed.
        study: name for messages; the file's name by default.

    Raises:
        IngestError: unreadable, another number of axes, or NaN or infinite values.
        GeometryError: the header states no orientation, or two that disagree.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    name = study or path.name
    if not path.is_file():
        raise IngestError("there is no such file", study=name)
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise IngestError(f"is {type(image).__name__}, not NIfTI", study=name)
        data = np.asarray(image.dataobj, np.float32)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        message = f"cannot be read as NIfTI ({type(error).__name__}); the file is damaged or incomplete"
        raise IngestError(message, study=name) from error
    while data.ndim > axes and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 3 and axes == 4:
        data = data[..., None]
    if data.ndim != axes:
        raise IngestError(f"has shape {data.shape}; {axes} axes are needed", study=name)
    bad = int(data.size - np.isfinite(data).sum())
    if bad:
        raise IngestError(f"holds {bad} NaN or infinite values; fill them before analysis", study=name)
    affine = lps_affine(image, name)
    turned = data.transpose(2, 1, 0, *range(3, axes))
    return Image(np.ascontiguousarray(turned), affine, _seconds(image) if axes == 4 else None)


def write_image(path: Path, image: Image, note: str, *, template: bool = False) -> Path:
    """Write gzipped NIfTI-1 atomically: axes x, y, z (, t), affine RAS mm as sform and qform, the same bytes each time.

    Args:
        path: ``.nii.gz``.
        image: integers stay integers (int32), all else becomes float32.
        note: up to 79 ASCII characters for ``descrip``.
        template: the space is a template's (code 4) and not the scanner's (code 1).
    """
    import nibabel

    kind = np.int32 if np.issubdtype(image.data.dtype, np.integer) else np.float32
    order = (2, 1, 0, *range(3, image.data.ndim))
    made: Any = nibabel.Nifti1Image(np.asfortranarray(image.data.transpose(order), dtype=kind), ras(image.affine))
    code = 4 if template else 1
    made.set_sform(ras(image.affine), code)
    made.set_qform(ras(image.affine), code)
    made.header.set_xyzt_units("mm", "sec" if image.seconds else None)
    if image.seconds:
        made.header.set_zooms((*made.header.get_zooms()[:3], image.seconds))
    made.header["descrip"] = note.encode("ascii", "replace")[:79]
    return write_bytes(path, gzip.compress(made.to_bytes(), compresslevel=1, mtime=0))


def ras(affine: Affine) -> Affine:
    """Affine of ``(d, h, w)`` to LPS as NIfTI wants it: of ``(w, h, d)`` to RAS mm."""
    return np.asarray(_LPS_TO_RAS @ affine[:, [2, 1, 0, 3]], np.float64)


def as_nifti(image: Image) -> Any:
    """A nibabel image of the same values, for libraries that take one."""
    import nibabel

    order = (2, 1, 0, *range(3, image.data.ndim))
    data = image.data.transpose(order)
    if data.dtype == bool:
        data = data.astype(np.uint8)
    elif np.issubdtype(data.dtype, np.integer):
        data = data.astype(np.int32)
    return nibabel.Nifti1Image(data, ras(image.affine))


def same_grid(shape: tuple[int, ...], affine: Affine, other_shape: tuple[int, ...], other: Affine) -> bool:
    """True for grids of one shape whose corners lie at the same places, to 0.05 mm."""
    if tuple(shape[:3]) != tuple(other_shape[:3]):
        return False
    ends = np.array(shape[:3]) - 1
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*ends, 1]
    return bool(np.linalg.norm(((affine - other) @ corners.T)[:3], axis=0).max() <= _SAME_GRID_MM)


def nearest(image: Image, shape: tuple[int, int, int], affine: Affine, outside: float = 0) -> npt.NDArray[Any]:
    """Values of a 3D image at the voxel centres of another grid, from the nearest voxel; `outside` beyond it."""
    to_source = np.linalg.inv(image.affine) @ affine
    result = np.full(shape, outside, image.data.dtype)
    rows, columns = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    for d in range(shape[0]):  # by slices, so that coordinates of a fine grid need little memory
        index = np.stack([np.full(rows.size, d), rows.ravel(), columns.ravel()])
        # Half-way places go to the same side everywhere, so that one grid onto itself is the identity.
        place = np.floor(to_source[:3, :3] @ index + to_source[:3, 3:] + 0.5 - 1e-6).astype(np.int64)
        inside = ((place >= 0) & (place < np.array(image.data.shape)[:, None])).all(0)
        values = np.full(rows.size, outside, image.data.dtype)
        values[inside] = image.data[tuple(place[:, inside])]
        result[d] = values.reshape(shape[1:])
    return result


def _seconds(image: Any) -> float | None:
    """Fourth pixdim in seconds; None where it is zero, or its unit unknown."""
    step = float(image.header["pixdim"][4])
    unit = image.header.get_xyzt_units()[1]
    factor = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(unit)
    return step * factor if factor and np.isfinite(step) and step > 0 else None
