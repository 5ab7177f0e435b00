"""Where the lungs are in a chest CT, with what no longer holds air: consolidations and fluid at the pleura.

Thresholding and connected components find the air (Hu, Hoffman, Reinhardt, IEEE TMI 20:490, 2001). The rest is our
own: airways are told by their cross-section, gas of the bowel by its density, and a hull brings back what is dense.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medxai.prepare.blocks import Blocks, Region, Triple, block_means, enlarged
from medxai.study import FloatArray, Volume

#: Least volume of aerated lung in ml; one slice of 10 mm through both lungs has about 300.
LEAST_ML = 60.0
#: HU below which a voxel holds air.
_AIR = -400.0
#: HU below which it is nothing but air: no lung, however emphysematous, is so throughout.
_GAS = -965.0
#: The same for a small piece: HU above which a quarter of it must lie at most.
_PURE = -940.0
#: HU of soft tissue and above.
_TISSUE = -250.0
#: Grid for the airways, and the coarser one for all else, in mm; axes that are coarser stay as they are.
_FINE_MM, _COARSE_MM = 1.6, 4.0
#: Cross-sections of airways in mm2, HU below which a quarter of one lies, and how far off the middle it may lie in mm.
_AIRWAY_MM2, _LUMEN, _OFF_MM = (25.0, 900.0), -925.0, 50.0
#: Least volume in ml of a piece of lung that is cut off from the rest.
_PIECE_ML = 2.0
#: Radius in mm that closes vessels, fissures and nodules.
_CLOSE_MM = 10.0
#: How far from air dense lung may lie inside the hull of its lung, in mm.
_REACH_MM = 30.0
#: How far it may bulge over the axial hull, where the lung above and below does.
_BULGE_MM = 14.0
#: Margin in mm of what is dense at the chest wall: nothing shows where it ends and the wall begins.
_PLEURA_MM = 4.5
#: Radii in mm by which two lungs that touch are taken apart, and the least share of the smaller one.
_APART_MM, _SMALLER = (0.0, 3.0, 6.0, 9.0, 12.0), 0.15
#: Depth in mm of the shell around a lung, and the share of it that must be tissue: foam has no wall.
_SHELL_MM, _WALL = 10.0, 0.5


_known: WeakKeyDictionary[Volume, Region | None] = WeakKeyDictionary()


def lungs(volume: Volume) -> Region | None:
    """Mask ``[D, H, W]`` of the lungs; None where there are none, or less air in them than `LEAST_ML`.

    Trachea, main bronchi and the air around the patient are left out. Dense parts of a lung (consolidation, ground
    glass, nodules, fluid) are inside as far as they lie in the axial hull of that lung and within 30 mm of its air.
    Distances are in mm along the axes of the grid, so that thick, tilted and anisotropic stacks are treated alike.

    Args:
        volume: CT ``[1, D, H, W]`` in Hounsfield units.
    """
    # Checks, preparation and trust all ask for the same study; the answer goes with the volume.
    if volume not in _known:
        _known[volume] = _lungs(volume)
    return _known[volume]


def _lungs(volume: Volume) -> Region | None:
    if volume.axes != "DHW" or min(volume.spacing) <= 0 or volume.pixels.shape[0] != 1:
        return None
    hu = volume.pixels[0]
    if not np.isfinite(hu).all() or float(hu.min(initial=0.0)) > _AIR:
        return None
    order, spacing = axial_order(volume)
    region = _axial(np.transpose(hu, order), spacing)
    return None if region is None else np.ascontiguousarray(np.transpose(region, np.argsort(order)))


def axial_order(volume: Volume) -> tuple[tuple[int, int, int], Triple]:
    """Axes of the grid with the one along the patient first, and their spacing in mm: axial planes for any stack."""
    along = np.abs(volume.affine[2, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0))
    first = int(along.argmax())
    second, third = (axis for axis in range(3) if axis != first)
    spacing = volume.spacing
    return (first, second, third), (spacing[first], spacing[second], spacing[third])


def _axial(hu: FloatArray, spacing: Triple) -> Region | None:
    fine = block_means(np.maximum(hu, -1024.0), spacing, _FINE_MM)
    air = _inner_air(fine)
    body = (fine.values > _TISSUE).any(0)
    middle = np.argwhere(body).mean(0) if body.any() else np.zeros(2)
    airways = _airways(fine, air, middle)
    coarse = block_means(fine.values, fine.spacing, _COARSE_MM)
    held = block_means((air & ~airways).astype(np.float32), fine.spacing, _COARSE_MM).values > 0.5
    sides = _sides(coarse, held)
    if not sides:
        return None
    region = np.zeros(coarse.values.shape, dtype=bool)
    for side in sides:
        region |= _with_dense_parts(side, coarse, middle / np.array(coarse.factors[1:]))
    full = enlarged(region, coarse.factors, air.shape) & ~ndimage.binary_dilation(airways)
    return enlarged(full, fine.factors, hu.shape)


def _inner_air(fine: Blocks) -> Region:
    """Air that the border of a slice does not reach: neither around the patient nor padding outside a round field."""
    air = fine.values < _AIR
    inner = np.zeros_like(air)
    for plane, out in zip(air, inner, strict=True):
        labels, count = ndimage.label(plane)
        reached = np.zeros(count + 1, dtype=bool)
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            reached[edge] = True
        reached[0] = True
        out[...] = ~reached[labels]
    return inner


def _airways(fine: Blocks, air: Region, middle: npt.NDArray[np.float64]) -> Region:
    """Trachea and main bronchi: small cross-sections of pure air near the middle that go on through the slices.

    Args:
        fine: the volume.
        air: inside the patient.
        middle: row and column of the middle of the patient.
    """
    step = np.array(fine.spacing[1:])
    found = np.zeros_like(air)
    for plane, values, out in zip(air, fine.values, found, strict=True):
        labels, _ = ndimage.label(plane)
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            part = labels[box] == number
            size = float(part.sum()) * float(step.prod())
            if not _AIRWAY_MM2[0] <= size <= _AIRWAY_MM2[1]:
                continue
            place = np.argwhere(part).mean(0) + np.array([box[0].start, box[1].start])
            off = float(np.linalg.norm((place - middle) * step))
            if off <= _OFF_MM and float(np.percentile(values[box][part], 25)) < _LUMEN:
                out[box] |= part
    labels, count = ndimage.label(found)
    long_enough = np.zeros(count + 1, dtype=bool)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        long_enough[number] = (box[0].stop - box[0].start) * fine.spacing[0] >= min(
            20.0, air.shape[0] * fine.spacing[0]
        )
    kept: Region = long_enough[labels]
    return kept


def _sides(coarse: Blocks, held: Region) -> list[Region]:
    """Lungs, each on its own where they can be told apart; empty when nothing here is a lung."""
    labels, count = ndimage.label(held)
    volumes = np.bincount(labels.ravel(), minlength=count + 1) * coarse.ml
    volumes[0] = 0
    large = [labels == number for number in np.flatnonzero(volumes >= LEAST_ML / 4)]
    parts = [part for part in large if _is_lung(part, coarse)]
    if sum(int(part.sum()) for part in parts) * coarse.ml < LEAST_ML:
        return []
    sides = [piece for part in parts for piece in _apart(part, coarse.spacing)]
    pieces = np.flatnonzero((volumes >= _PIECE_ML) & (volumes < LEAST_ML / 4))
    if not pieces.size:
        return sides
    # What consolidation cuts off from its lung belongs to the nearest; gas of the bowel is purer.
    far = np.stack([ndimage.distance_transform_edt(~side, sampling=coarse.spacing) for side in sides])
    for number in pieces:
        piece = labels == number
        away = far[:, piece].min(axis=1)
        if away.min() <= _REACH_MM and float(np.percentile(coarse.values[piece], 25)) > _PURE:
            sides[int(away.argmin())] |= piece
    return sides


def _is_lung(part: Region, coarse: Blocks) -> bool:
    """Whether air is lung rather than gas of the bowel or a sinus, which is pure, or foam, which has no wall."""
    core = ndimage.binary_erosion(part, np.ones((1, 3, 3)))
    if not core.any():
        return False
    if float(np.median(coarse.values[core])) < _GAS:
        return False
    shell = _within(part, coarse.spacing, _SHELL_MM) & ~part
    return float((coarse.values[shell] > _TISSUE).mean()) >= _WALL


def _apart(part: Region, spacing: Triple) -> list[Region]:
    """Two lungs that touch, taken apart where they are thinnest; one when that does not work."""
    depth = ndimage.distance_transform_edt(np.pad(part, ((0, 0), (1, 1), (1, 1))), sampling=spacing)[:, 1:-1, 1:-1]
    for radius in _APART_MM:
        labels, count = ndimage.label(depth > radius)
        if count < 2:
            continue
        sizes = np.bincount(labels.ravel())[1:]
        first, second = np.argsort(sizes)[::-1][:2]
        if sizes[second] < _SMALLER * sizes.sum():
            continue
        far = [ndimage.distance_transform_edt(labels != 1 + int(i), sampling=spacing) for i in (first, second)]
        nearer = far[0] <= far[1]
        return [part & nearer, part & ~nearer]
    return [part]


def _with_dense_parts(side: Region, coarse: Blocks, middle: npt.NDArray[np.float64]) -> Region:
    """One lung closed, the dense parts between it and the chest wall, and holes filled.

    Args:
        side: aerated lung.
        coarse: the volume.
        middle: row and column of the middle of the patient.
    """
    spacing = coarse.spacing
    margin = [int(_CLOSE_MM / s) + 1 for s in spacing]
    padded = np.pad(side, [(m, m) for m in margin])
    grown = _within(padded, spacing, _CLOSE_MM)
    closed = ndimage.distance_transform_edt(grown, sampling=spacing) > _CLOSE_MM
    closed = closed[tuple(slice(m, -m) for m in margin)] | side
    dense = np.stack([_at_the_wall(plane, middle) for plane in closed]) & _within(side, spacing, _REACH_MM)
    if dense.any():  # the axial hull cuts off what bulges; the hull in three dimensions holds it
        outer = _hull(closed) & ~plane_hulls(closed)
        dense |= outer & _within(dense, spacing, _BULGE_MM)
        dense = _within(dense, spacing, _PLEURA_MM)
    filled: Region = np.stack([ndimage.binary_fill_holes(plane) for plane in closed | dense])
    return filled


def _at_the_wall(plane: Region, middle: npt.NDArray[np.float64]) -> Region:
    """What a lung's axial hull adds and what touches the hull more at the chest wall than at the mediastinum.

    Heart, great vessels and the dome of the liver lie in the hull too, but at the mediastinum.

    Args:
        plane: one lung in one slice.
        middle: row and column of the middle of the patient.
    """
    hull = _hull(plane)
    labels, count = ndimage.label(hull & ~plane)
    if not count:
        return np.zeros_like(plane)
    edge = np.argwhere(hull & ~ndimage.binary_erosion(hull))
    centre = np.argwhere(plane).mean(0)
    wall = (edge - centre) @ (middle - centre) <= 0
    touched = labels[edge[:, 0], edge[:, 1]]
    outer = np.bincount(touched[wall], minlength=count + 1)
    inner = np.bincount(touched[~wall], minlength=count + 1)
    kept = outer > inner
    kept[0] = False
    out: Region = kept[labels]
    return out


def _within(region: Region, spacing: Triple, radius_mm: float) -> Region:
    near: Region = ndimage.distance_transform_edt(~region, sampling=spacing) <= radius_mm
    return near


def plane_hulls(region: Region) -> Region:
    """Convex hulls ``[D, H, W]`` of the voxel centres of each plane; a plane itself where they lie on a line."""
    return np.stack([_hull(plane) for plane in region])


def _hull(region: Region) -> Region:
    """Convex hull of the voxel centres of a plane or a volume; the region itself where they have no extent."""
    from scipy.spatial import ConvexHull, QhullError

    points = np.argwhere(region & ~ndimage.binary_erosion(region))
    if len(points) <= region.ndim:
        return region
    try:
        faces = ConvexHull(points).equations
    except QhullError:
        return region
    low, high = points.min(0), points.max(0) + 1
    out = np.zeros_like(region)
    rest = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low[1:], high[1:], strict=True)), indexing="ij"), -1)
    over = rest @ faces[:, 1:-1].T + faces[:, -1]
    box = tuple(slice(a, b) for a, b in zip(low[1:], high[1:], strict=True))
    for first in range(low[0], high[0]):
        out[first][box] = (over + first * faces[:, 0] <= 1e-9).all(-1)
    return out
