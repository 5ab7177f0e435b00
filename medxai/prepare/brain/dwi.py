"""Diffusion MRI with its gradients, from ingested volumes or from NIfTI with bval and bvec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.errors import GeometryError, IngestError
from medxai.ingest.diffusion import read_diffusion
from medxai.prepare.brain.bold import space_of
from medxai.prepare.brain.image import read_image, same_grid
from medxai.study import Affine, Study

Array = npt.NDArray[np.float64]
#: b-values in s/mm2 up to which an image counts as not weighted.
UNWEIGHTED_B = 50.0
#: A tensor has six unknowns, and the signal without weighting is a seventh.
_LEAST_DIRECTIONS = 6


@dataclass(frozen=True, eq=False)
class Dwi:
    """Diffusion-weighted volumes.

    Attributes:
        data: ``[D, H, W, G]`` float32.
        affine: index ``(d, h, w)`` -> LPS mm.
        b: ``[G]`` s/mm2.
        directions: ``[G, 3]`` unit vectors along the voxel axes ``(d, h, w)``; zero where there is no weighting.
        key: pseudonym of the series, or a file name.
        space: template whose space it is in, "" for the scanner's.
        notes: what reading had to decide.
    """

    data: npt.NDArray[np.float32]
    affine: Affine
    b: Array
    directions: Array
    key: str
    space: str = ""
    notes: tuple[str, ...] = ()

    @property
    def spacing(self) -> Array:
        """Mm between voxels along ``(d, h, w)``."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0), np.float64)


def dwi_of_studies(studies: Sequence[Study]) -> Dwi:
    """One series out of volumes that ingestion read one by one; gradients from their headers, in the patient (LPS).

    Raises:
        GeometryError: the volumes lie on different grids.
        IngestError: b-values or directions are missing, or too few.
    """
    if not studies:
        raise IngestError("no diffusion volume was given")
    key = min(study.key for study in studies)
    first = studies[0].volume
    found = []
    for study in studies:
        volume = study.volume
        if volume.axes != "DHW" or volume.pixels.shape[0] != 1 or volume.stack is not None:
            raise GeometryError("is no volume of one channel on a regular grid", study=study.key)
        if not same_grid(volume.shape, volume.affine, first.shape, first.affine):
            raise GeometryError("volumes lie on different grids; give one diffusion series", study=key)
        found.append(read_diffusion(volume.source[0]) if volume.source else None)
    unknown = sum(item is None for item in found)
    if unknown:
        words = f"{unknown} of {len(found)} volumes state no b-value"
        raise IngestError(f"{words}; convert the series to NIfTI with bval and bvec", study=key)
    known = [item for item in found if item is not None]
    b = np.array([item.b for item in known])
    lost = sum(item.direction is None and item.b > UNWEIGHTED_B for item in known)
    if lost:
        words = f"{lost} of {len(known)} weighted volumes state no direction (trace images, or GE's own frame)"
        raise IngestError(f"{words}; convert the series to NIfTI with bval and bvec", study=key)
    patient = np.array([item.direction or (0.0, 0.0, 0.0) for item in known])
    order = np.lexsort([*patient.T[::-1], b])  # a fixed order, whatever the keys are
    data = np.stack([studies[i].volume.pixels[0] for i in order], -1)
    return _checked(data, first.affine, b[order], patient[order] @ _axes(first.affine), key, "")


def read_dwi(path: Path, bval: Path | None = None, bvec: Path | None = None, study: str | None = None) -> Dwi:
    """A 4D NIfTI file with gradients in FSL's form: ``.bval``, and ``.bvec`` along the image's axes.

    FSL's x runs against the first voxel axis where the affine has a positive determinant. Both layouts of ``.bvec``
    are read: three rows, or three columns.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        bval: beside the image by default.
        bvec: likewise.
        study: name for messages; the file's name by default.

    Raises:
        IngestError: unreadable, gradients missing or of another number than the volumes.
    """
    name = study or path.name
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    bval, bvec = bval or path.with_name(stem + ".bval"), bvec or path.with_name(stem + ".bvec")
    absent = [kind for kind, file in (("bval", bval), ("bvec", bvec)) if not file.is_file()]
    if absent:
        words = f"there is no {' and no '.join(absent)} beside the diffusion image"
        raise IngestError(f"{words}: without gradients nothing can be computed from it", study=name)
    image = read_image(path, 4, name)
    volumes = image.data.shape[3]
    try:
        b, vectors = np.loadtxt(bval, ndmin=1).ravel(), np.loadtxt(bvec, ndmin=2)
    except (ValueError, OSError) as error:
        raise IngestError("bval or bvec hold no table of numbers", study=name) from error
    if vectors.shape == (3, volumes) and volumes != 3:
        vectors = vectors.T
    if len(b) != volumes or vectors.shape != (volumes, 3):
        words = f"{volumes} volumes, {len(b)} b-values and directions of shape {vectors.shape} do not go together"
        raise IngestError(words, study=name)
    vectors = np.where((b > UNWEIGHTED_B)[:, None], vectors, 0)
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(vectors).all() or (np.abs(lengths[b > UNWEIGHTED_B] - 1) > 0.1).any():
        bad = int((~(np.abs(lengths[b > UNWEIGHTED_B] - 1) <= 0.1)).sum())
        raise IngestError(f"{bad} weighted volumes have a direction that is no unit vector", study=name)
    units = np.divide(vectors, lengths[:, None], out=np.zeros_like(vectors), where=lengths[:, None] > 0)
    # LPS and RAS have the same handedness; turning (i, j, k) to (k, j, i) changes that of the affine.
    if np.linalg.det(image.affine[:3, [2, 1, 0]]) > 0:
        units = units * [-1, 1, 1]
    return _checked(image.data, image.affine, b, units[:, ::-1], name, space_of(path, {}))


def _axes(affine: Affine) -> Array:
    """Columns: unit vectors of the voxel axes in the patient."""
    return np.asarray(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0), np.float64)


def _checked(data: npt.NDArray[np.float32], affine: Affine, b: Array, directions: Array, key: str, space: str) -> Dwi:
    if not np.isfinite(b).all() or (b < 0).any():
        raise IngestError("b-values are negative or no numbers", study=key)
    if not (b <= UNWEIGHTED_B).any():
        raise IngestError(f"has no volume without weighting (lowest b {b.min():g} s/mm2)", study=key)
    weighted = directions[b > UNWEIGHTED_B]
    different = np.unique(np.round(weighted * np.sign(weighted @ [1, 1e-3, 1e-6])[:, None], 2), axis=0)
    if len(different) < _LEAST_DIRECTIONS:
        words = f"has {len(different)} different directions; a tensor needs {_LEAST_DIRECTIONS}"
        raise IngestError(words, study=key)
    return Dwi(np.ascontiguousarray(data, np.float32), affine, b, directions, key, space)
