"""Bring a map from the space of the features to another grid, through a rigid or affine transform where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError, MismatchError
from medxai.prepare.brain.image import Image, nearest
from medxai.study import Affine

#: Distance in mm between where a transform takes a point and where its linear part does, above which it is no such.
_BENT_MM = 0.01
#: Code of a NIfTI's sform from which on the space is a template's (3 Talairach, 4 MNI, 5 other).
_TEMPLATE = 3


def in_template(path: Path) -> bool:
    """True where a NIfTI says that its space is a template's and not the scanner's."""
    import nibabel

    image: Any = nibabel.load(path)
    return int(image.header["sform_code"] or image.header["qform_code"]) >= _TEMPLATE


def read_transform(path: Path) -> Affine:
    """A rigid or affine transform of ITK (``.txt``, ``.tfm``, ``.mat``, ``.h5``): 4x4, from subject LPS to feature LPS.

    It is the file that brings *images* from the template to the subject, as registration programs write it
    (``from-MNI..._to-T1w_mode-image_xfm``): ITK maps points the other way.

    Raises:
        IngestError: unreadable, or a transform that bends space.
    """
    import SimpleITK

    try:
        read: Any = SimpleITK.ReadTransform
        found = read(str(path))
        zero = np.array(found.TransformPoint((0.0, 0.0, 0.0)))
        columns = [np.array(found.TransformPoint(tuple(row))) - zero for row in np.eye(3).tolist()]
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = np.stack(columns, 1), zero
        probes = np.random.default_rng(0).uniform(-90, 90, (64, 3))
        ends = np.array([found.TransformPoint(tuple(row)) for row in probes.tolist()])
    except RuntimeError as error:
        raise IngestError("cannot be read as a transform of ITK (.txt, .tfm, .mat, .h5)", study=path.name) from error
    bent = float(np.abs(probes @ affine[:3, :3].T + zero - ends).max())
    if bent > _BENT_MM:
        words = f"bends space (up to {bent:.1f} mm from its linear part); give a rigid or affine transform"
        raise IngestError(words, study=path.name)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise IngestError("flattens space; it is no rigid or affine transform", study=path.name)
    return affine


def resampled(
    image: Image, shape: tuple[int, int, int], affine: Affine, transform: Affine | None = None
) -> npt.NDArray[np.float32]:
    """Values at the voxel centres of another grid, linear between voxels; 0 beyond the image.

    Args:
        image: ``[D, H, W]`` in its own space.
        shape: of the other grid.
        affine: of the other grid, index -> LPS mm of its space.
        transform: 4x4 from that space to the image's; None where they are one.
    """
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(image.affine) @ (np.eye(4) if transform is None else transform) @ affine
    # The outermost voxels reach half a cell beyond their centres, as a cell has an extent; zeros only further out.
    padded = np.pad(np.asarray(image.data, np.float32), 1, mode="edge")
    values = affine_transform(padded, matrix[:3, :3], matrix[:3, 3] + 1, output_shape=shape, order=1, mode="constant")
    return np.where(inside(image, shape, matrix), values, np.float32(0)).astype(np.float32)


def computed(feature: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Where a regional feature was computed: `medxai brain features` fills what lies outside the brain with zeros."""
    found: npt.NDArray[np.bool_] = feature != 0
    return found


def resampled_within(
    image: Image, mask: npt.NDArray[np.bool_], shape: tuple[int, int, int], affine: Affine,
    transform: Affine | None = None,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Values as `resampled` has them, from the voxels of a mask alone; 0 outside the cells of these voxels.

    What lies outside the mask has no share in the mean of the neighbours, so a map does not fade towards its edge.

    Args:
        image: ``[D, H, W]`` in its own space.
        mask: ``[D, H, W]`` on its grid.
        shape: of the other grid.
        affine: of the other grid, index -> LPS mm of its space.
        transform: 4x4 from that space to the image's; None where they are one.
    """
    there = affine if transform is None else transform @ affine
    within = nearest(Image(mask, image.affine), shape, there)
    values = resampled(Image(np.where(mask, image.data, 0), image.affine), shape, affine, transform)
    weights = resampled(Image(mask.astype(np.float32), image.affine), shape, affine, transform)
    found = np.zeros(shape, np.float32)
    return np.divide(values, weights, out=found, where=within & (weights > 0))


def inside(image: Image, shape: tuple[int, int, int], matrix: Affine) -> npt.NDArray[np.bool_]:
    """``[*shape]`` True where a voxel's centre lies in a cell of the image; `matrix` takes index to index."""
    found = np.ones(shape, bool)
    d, h, w = np.ogrid[: shape[0], : shape[1], : shape[2]]
    for axis, size in enumerate(image.grid):
        place = matrix[axis, 0] * d + matrix[axis, 1] * h + matrix[axis, 2] * w + matrix[axis, 3]
        found &= (place >= -0.5) & (place <= size - 0.5)
    return found


def check_reach(image: Image, shape: tuple[int, int, int], affine: Affine, transform: Affine | None, what: str) -> None:
    """Refuse a grid that the image hardly reaches: they are not in one space.

    Raises:
        MismatchError: less than half of the image's positive voxels lie within the grid; says how many.
    """
    places = np.argwhere(image.data > 0)
    if not len(places):
        return
    back = np.linalg.inv(affine)
    if transform is not None:
        back = back @ np.linalg.inv(transform)
    index = np.c_[places, np.ones(len(places))] @ (back @ image.affine).T
    within = ((index[:, :3] > -0.5) & (index[:, :3] < np.array(shape) - 0.5)).all(1).mean()
    if within < 0.5:
        words = f"{within:.0%} of the map lies within {what}: they are not in one space"
        raise MismatchError(f"{words}; give the transform from the features to the subject with --transform")


def own_grid(shape: tuple[int, ...], affine: Affine, transform: Affine) -> tuple[tuple[int, int, int], Affine]:
    """A grid in the subject's space for features that a transform brings there: as many voxels, as large, as they lie.

    Args:
        shape: of the features' grid.
        affine: of it, index -> LPS mm.
        transform: 4x4 from the subject's LPS to the features'.
    """
    moved = np.linalg.inv(transform) @ affine
    # The nearest axes at right angles: NIfTI's qform and DICOM know no shear. Of a rigid transform they are its own.
    left, _, right = np.linalg.svd(moved[:3, :3] / np.linalg.norm(moved[:3, :3], axis=0))
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    grid = np.eye(4)
    grid[:3, :3] = (left @ right) * steps
    middle = (np.array(shape[:3]) - 1) / 2
    grid[:3, 3] = moved[:3, :3] @ middle + moved[:3, 3] - grid[:3, :3] @ middle
    return (int(shape[0]), int(shape[1]), int(shape[2])), grid
