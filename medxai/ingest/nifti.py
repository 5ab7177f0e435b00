"""NIfTI-1 and NIfTI-2 -> Volume, with the RAS affine turned to LPS at the door."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from medxai.errors import GeometryError, IngestError
from medxai.study import Affine, Volume

#: Largest distance in mm by which sform and qform may disagree at any corner of the volume.
_AGREEMENT_MM = 0.1
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_nifti(path: Path, modality: str = "OT", body_part: str = "") -> Volume:
    """Read one NIfTI file as a volume ``[1, D, H, W]`` float32 with its scaling applied.

    The file's voxel order (i, j, k) becomes (W, H, D). When both sform and qform are set they must agree
    to 0.1 mm at every corner; when neither is set the place in the patient is unknown and the file is refused.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        modality: DICOM modality, which NIfTI does not store.
        body_part: DICOM body part, likewise.

    Raises:
        IngestError: unreadable, not 3D, NaN or infinite values, or not a single-channel image.
        GeometryError: no orientation, singular affine, or sform and qform disagree.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):  # Nifti2Image derives from it
            msg = f"is {type(image).__name__}, not NIfTI"
            raise IngestError(msg, study=path.name)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        msg = f"cannot be read as NIfTI ({type(error).__name__}); the file is damaged or incomplete"
        raise IngestError(msg, study=path.name) from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        msg = f"has shape {data.shape}; one 3D volume per file is needed, split the fourth axis first"
        raise IngestError(msg, study=path.name)
    if data.size == 0:
        msg = "holds no voxels"
        raise IngestError(msg, study=path.name)
    if not np.isfinite(data).all():
        bad = int(data.size - np.isfinite(data).sum())
        msg = f"holds {bad} NaN or infinite voxels; fill them before analysis"
        raise IngestError(msg, study=path.name)
    affine = lps_affine(image, path.name)
    return Volume(
        pixels=np.ascontiguousarray(data.transpose(2, 1, 0))[None],
        axes="DHW",
        affine=affine,
        positions=(affine @ np.stack([[d, 0, 0, 1] for d in range(data.shape[2])], axis=1))[:3].T,
        modality=modality,
        body_part=body_part.upper(),
    )


def lps_affine(image: object, study: str) -> Affine:
    """Affine of a nibabel image, index ``(d, h, w)`` -> LPS mm of the first three axes turned to ``(k, j, i)``.

    Raises:
        GeometryError: no orientation, singular, or sform and qform disagree by more than 0.1 mm.
    """
    header = image.header  # type: ignore[attr-defined]
    sform, scode = header.get_sform(coded=True)
    qform, qcode = header.get_qform(coded=True)
    if not scode and not qcode:
        msg = "has neither sform nor qform (both codes 0): the place in the patient is unknown; set one"
        raise GeometryError(msg, study=study)
    if scode and qcode:
        shape = np.array(header.get_data_shape()[:3]) - 1
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*shape, 1]
        distance = float(np.linalg.norm(((sform - qform) @ corners.T)[:3], axis=0).max())
        if distance > _AGREEMENT_MM:
            words = "decide which is right and set the other code to 0"
            msg = f"sform and qform disagree by up to {distance:.1f} mm; {words}"
            raise GeometryError(msg, study=study)
    ras = sform if scode else qform
    if not np.isfinite(ras).all() or abs(np.linalg.det(ras[:3, :3])) < 1e-9:
        msg = "has a singular affine; the voxel grid cannot be placed in the patient"
        raise GeometryError(msg, study=study)
    lps: Affine = _RAS_TO_LPS @ ras
    return lps[:, [2, 1, 0, 3]]
