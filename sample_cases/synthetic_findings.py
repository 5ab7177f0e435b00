"""Ground glass, consolidation and nodules of a synthetic CT.

Regions are placed on a lattice of the patient, in mm, and hold exactly the volume that was drawn for them; then they
are drawn on any grid. Ground glass and consolidation decide the label; nodules are there whatever it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sample_cases.fields import LevelField, NoiseField
from sample_cases.phantom import AIR, BLOOD
from sample_cases.shapes import Box, FloatArray, Frame, Segment, Vector, branch, paint_segments
from sample_cases.synthetic_anatomy import Anatomy, draw_lung, draw_twigs, edge_of, ramp
from sample_cases.synthetic_parenchyma import Distractors, fissure_at, fissure_distance

#: mm between the nodes on which regions are placed.
_STEP = 5.0
_ML = _STEP**3 / 1000
LARGEST_ML, SMALLEST_ML = 400.0, 15.0


@dataclass(frozen=True, eq=False)
class Region:
    """One region of disease.

    Attributes:
        kind: ``ground_glass``, ``consolidation`` or ``nodule``.
        level: its surface.
        centre: centre of gravity ``(z, y, x)`` mm.
        volume_ml: within the lung.
        hu: what ground glass adds to the lung, or the density of what is solid.
        edge: mm over which it fades.
        texture: relative variation.
        paving: HU of a net of thickened septa.
        air: bronchi that stay open in it.
    """

    kind: str
    level: LevelField
    centre: Vector
    volume_ml: float
    hu: float
    edge: float
    texture: float = 0.0
    paving: float = 0.0
    air: tuple[Segment, ...] = ()


@dataclass(frozen=True, eq=False)
class _Chest:
    """The lattice on which regions are placed: lung, depth below any pleura and below that of the ribs in mm."""

    frame: Frame
    lung: FloatArray
    depth: FloatArray
    costal: FloatArray
    anatomy: Anatomy


def place_regions(anatomy: Anatomy, label: str, random: np.random.Generator) -> list[Region]:
    """Place the regions that `label` asks for, and nodules.

    Args:
        anatomy: the patient.
        label: ``normal``, ``ground_glass`` or ``consolidation``.
        random: decides everything else.

    Returns:
        Ground glass first, then consolidation, then nodules, in the order in which they are drawn.
    """
    chest = _lattice(anatomy)
    total = float(np.exp(random.uniform(np.log(SMALLEST_ML), np.log(LARGEST_ML))))
    regions: list[Region] = []
    if label == "ground_glass":
        regions += _patches(chest, total, int(random.integers(1, 7)), random)
    elif label == "consolidation":
        solid = _segments(chest, total, random)
        if random.uniform() < 0.25:
            regions += _patches(chest, float(random.uniform(5, 40)), 1, random)
        regions += [region for pair in solid for region in pair[1:]] + [pair[0] for pair in solid]
    count = int(random.choice(4, p=(0.45, 0.27, 0.17, 0.11)))
    return regions + [_nodule(chest, random) for _ in range(count)]


def _lattice(anatomy: Anatomy) -> _Chest:
    high = max(e.half[0] for e in anatomy.lungs)
    low = min(anatomy.domes) - 35
    half_y = max(e.half[1] for e in anatomy.lungs) + 12
    half_x = max(abs(e.centre[2]) + e.half[2] for e in anatomy.lungs) + 8
    extent = (high + 5 - low, 2 * half_y, 2 * half_x)
    n_z, n_y, n_x = (int(np.ceil(mm / _STEP)) for mm in extent)
    frame = Frame.centred((n_z, n_y, n_x), (_STEP,) * 3, ((high + 5 + low) / 2, 0.0, 0.0))
    lung, outside = draw_lung(frame, anatomy)
    depth = ndimage.distance_transform_edt(lung > 0.5).astype(np.float32) * np.float32(_STEP)
    return _Chest(frame, lung, depth, np.maximum(-outside, 0), anatomy)


def _pick(weights: npt.NDArray[Any], frame: Frame, random: np.random.Generator) -> Vector:
    """A point ``(z, y, x)`` mm drawn with `weights`."""
    heap = np.cumsum(weights.ravel(), dtype=np.float64)
    flat = min(int(np.searchsorted(heap, random.uniform() * heap[-1])), heap.size - 1)
    d, h, w = np.unravel_index(flat, weights.shape)
    return np.array([frame.z[d, 0, 0], frame.y[0, h, 0], frame.x[0, 0, w]], dtype=np.float64) + random.uniform(-2, 2, 3)


def _region(chest: _Chest, box: Box, score: FloatArray, volume: float, **looks: object) -> Region | None:
    """The region above the threshold of `score` (mm) that holds `volume` ml of lung; None where there is no lung."""
    lung = chest.lung[box].ravel().astype(np.float64)
    order = np.argsort(-score, axis=None, kind="stable")
    heap = np.cumsum(lung[order]) * _ML
    if not heap.size or heap[-1] <= 0.3:
        return None
    volume = min(volume, 0.95 * float(heap[-1]))
    cut = float(score.ravel()[order[int(np.searchsorted(heap, volume))]])
    part = chest.frame.part(box)
    weights = np.where(score.ravel() >= cut, lung, 0).reshape(score.shape)
    total = weights.sum()
    centre = np.array([float((weights * line).sum() / total) for line in (part.z, part.y, part.x)])
    return Region(level=LevelField(score - np.float32(cut), part), centre=centre, volume_ml=volume, **looks)  # type: ignore[arg-type]


def _patches(chest: _Chest, total: float, count: int, random: np.random.Generator) -> list[Region]:
    """Ground glass: patches below the pleura, more of them at the base and the back, often in both lungs."""
    frame, reach = chest.frame, float(random.uniform(7, 22))
    low = 1 / (1 + np.exp((frame.z - random.uniform(-30, 50)) / 28))
    back = 1 / (1 + np.exp(-(frame.y - random.uniform(-50, 20)) / 22))
    near = np.exp(-chest.costal / reach) + 0.15 * np.exp(-chest.depth / reach)
    weights = near * (chest.lung > 0.8) * (0.1 + low) * (0.1 + back)
    if random.uniform() < 0.3:
        weights = weights * (np.sign(frame.x) == random.choice((-1.0, 1.0)))
    shares = random.dirichlet(np.full(count, 2.5))
    opacity = float(np.exp(random.uniform(np.log(80), np.log(350))))
    paving = float(random.uniform(60, 180)) if random.uniform() < 0.3 else 0.0
    regions = []
    for share in shares:
        volume = max(2.0, total * float(share))
        size = (volume * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
        centre = _pick(weights, frame, random)
        box, _, _ = frame.around(centre, 2.6 * size + 15)
        z, y, x = frame.part(box).local((slice(None),) * 3, centre)
        factors = np.exp(random.uniform(-0.35, 0.35, 3)).astype(np.float32)
        rough = NoiseField.random(float(random.uniform(8, 16)), random, 16).on(frame.part(box))
        score = (
            -np.sqrt((z * factors[0]) ** 2 + (y * factors[1]) ** 2 + (x * factors[2]) ** 2)
            + np.float32(size * random.uniform(0.18, 0.5)) * rough
        )
        region = _region(
            chest,
            box,
            score.astype(np.float32),
            volume,
            kind="ground_glass",
            hu=float(np.clip(opacity * np.exp(random.normal(0, 0.15)), 80, 350)),
            edge=float(random.uniform(4, 16)),
            texture=float(random.uniform(0.1, 0.4)),
            paving=paving,
        )
        # The next one lies elsewhere.
        away = np.sqrt(sum((line - c) ** 2 for line, c in zip((frame.z, frame.y, frame.x), centre, strict=True)))
        weights = weights * np.clip(away / (2.2 * size) - 0.4, 0.001, 1)
        regions += [region] if region else []
    return regions


def _segments(chest: _Chest, total: float, random: np.random.Generator) -> list[list[Region]]:
    """Consolidation: wedges with their base on the pleura, each perhaps with a rim of ground glass behind it."""
    frame, anatomy = chest.frame, chest.anatomy
    count = 1 if total < 40 or random.uniform() < 0.6 else 2
    shares = random.dirichlet(np.full(count, 3.0)) if count > 1 else np.ones(1)
    first = int(random.integers(2))
    rim_hu = float(random.uniform(140, 350)) if random.uniform() < 0.5 else 0.0
    low = 1 / (1 + np.exp((frame.z - random.uniform(-20, 80)) / 30))
    found = []
    for share in shares:
        side = first if random.uniform() < 0.85 else 1 - first
        mine = frame.x * (-1.0, 1.0)[side] > 6
        weights = (
            (np.exp(-chest.costal / 6) + 0.1 * np.exp(-chest.depth / 6)) * (chest.lung > 0.6) * mine * (0.15 + low)
        )
        base = _pick(weights, frame, random)
        hilum = anatomy.hilum(side)
        apex = hilum + (base - hilum) * random.uniform(0.1, 0.55)
        axis = (base - apex) / max(float(np.linalg.norm(base - apex)), 1.0)
        volume = total * float(share)
        size = (volume * 1000) ** (1 / 3)
        box, far, _ = frame.around(base, 2.4 * size + 25)
        part = frame.part(box)
        z, y, x = part.local((slice(None),) * 3, apex)
        along = z * axis[0] + y * axis[1] + x * axis[2]
        off = np.sqrt(np.maximum(z * z + y * y + x * x - along**2, 0))
        score = np.minimum(along, np.linalg.norm(base - apex) + 4) * random.uniform(0.35, 0.8) - off
        score += (
            random.uniform(0.05, 0.14) * size * NoiseField.random(float(random.uniform(7, 13)), random, 16).on(part)
        )
        score -= 2 * np.maximum(far - 1.5 * size - 5, 0)
        if random.uniform() < 0.45:
            # It stops at the fissure.
            fissure = fissure_distance(part, anatomy, 0.0)
            here = np.sign(fissure_at(base, anatomy)) or 1.0
            score = np.minimum(score, fissure * here * 1.5)
        score = np.where(np.broadcast_to(part.x * (-1.0, 1.0)[side] > 4, score.shape), score, -1e3).astype(np.float32)
        open_bronchi: list[Segment] = []
        if random.uniform() < 0.75:
            for _ in range(2):
                start = apex + random.normal(0, 4, 3)
                branch(open_bronchi, start, axis + random.normal(0, 0.3, 3), 0.35 * size, 2.6, 4, random)
        looks = {
            "hu": float(random.uniform(-50, 60)),
            "edge": float(random.uniform(2, 6)),
            "texture": float(random.uniform(0.0, 0.2)),
            "air": tuple(open_bronchi),
        }
        region = _region(chest, box, score, volume, kind="consolidation", **looks)
        if region is None:
            continue
        group = [region]
        if rim_hu:
            wide = _region(
                chest,
                box,
                score,
                region.volume_ml * float(random.uniform(1.4, 2.4)),
                kind="ground_glass",
                hu=rim_hu,
                edge=8.0,
            )
            group += [_rim(wide, region, rim_hu, random)] if wide else []
        found.append(group)
    return found


def _rim(wide: Region, solid: Region, hu: float, random: np.random.Generator) -> Region:
    volume = wide.volume_ml - solid.volume_ml
    centre = (wide.centre * wide.volume_ml - solid.centre * solid.volume_ml) / max(volume, 0.1)
    edge, texture = float(random.uniform(4, 12)), float(random.uniform(0.1, 0.4))
    return replace(wide, volume_ml=volume, centre=centre, hu=hu, edge=edge, texture=texture)


def _nodule(chest: _Chest, random: np.random.Generator) -> Region:
    radius = float(random.uniform(4, 12))
    weights = (chest.lung > 0.9) * (chest.depth > 0.6 * radius)
    centre = _pick(weights.astype(np.float32), chest.frame, random)
    n = 9
    fine = Frame.centred((n, n, n), (3.0 * radius / (n - 1),) * 3, (centre[0], centre[1], centre[2]))
    z, y, x = fine.local((slice(None),) * 3, centre)
    score = radius - np.sqrt(z * z + y * y + x * x)
    score = score + np.float32(0.12 * radius) * NoiseField.random(0.9 * radius, random, 8).on(fine)
    volume = 4 / 3 * np.pi * radius**3 / 1000
    solid = random.uniform() < 0.7
    hu = float(random.uniform(0, 60) if solid else random.uniform(-620, -300))
    return Region("nodule", LevelField(score.astype(np.float32), fine), centre, volume, hu, 2.0 if solid else 4.0)


def draw_regions(
    hu: FloatArray, frame: Frame, anatomy: Anatomy, regions: list[Region], d: Distractors, contrast_hu: float
) -> FloatArray:
    """Draw regions, vessels and bronchi into the parenchyma `hu`.

    Returns:
        Coverage 0..1 ``[3, D, H, W]`` of ground glass, consolidation and nodules.
    """
    edge = edge_of(frame)
    covers = np.zeros((3, *frame.shape), dtype=np.float32)
    blood = contrast_hu if contrast_hu > 0 else BLOOD
    open_bronchi: list[Segment] = []
    for region in (r for r in regions if r.kind != "nodule"):
        box = region.level.box(frame)
        if hu[box].size == 0:
            continue
        part, view = frame.part(box), hu[box]
        level = region.level.on(part)
        cover = ramp(level, max(edge, region.edge))
        texture = 1 + np.float32(region.texture) * (d.fine.on(part) if region.texture else 0)
        if region.kind == "ground_glass":
            added = region.hu * np.clip(texture, 0.4, 1.6)
            if region.paving:
                added = added + region.paving * np.clip(1 - np.abs(d.net.on(part)) / 0.45, 0, 1)
            view += cover * np.clip(-180 - view, 0, added)
            np.maximum(covers[0][box], ramp(level, edge), out=covers[0][box])
        else:
            view += cover * (region.hu - 160 * np.clip(texture - 1, -0.5, 1) - view)
            np.maximum(covers[1][box], ramp(level, edge), out=covers[1][box])
            open_bronchi += region.air
    tree = np.maximum(paint_segments(frame, anatomy.vessels), draw_twigs(frame, anatomy))
    hu += tree * np.maximum(blood - hu, 0)
    walls = [Segment(g.start, g.end, 1.45 * g.radius) for g in anatomy.bronchi]
    hu += paint_segments(frame, walls) * np.maximum(-150 - hu, 0)
    lumen = paint_segments(frame, anatomy.bronchi)
    if open_bronchi:
        np.maximum(lumen, paint_segments(frame, open_bronchi) * covers[1], out=lumen)
    hu += lumen * (AIR + 15 - hu)
    for region in (r for r in regions if r.kind == "nodule"):
        box = region.level.box(frame)
        if hu[box].size == 0:
            continue
        level = region.level.on(frame.part(box))
        view = hu[box]
        view += ramp(level, max(edge, region.edge)) * np.maximum(region.hu - view, 0)
        np.maximum(covers[2][box], ramp(level, edge), out=covers[2][box])
    return covers
