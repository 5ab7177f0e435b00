"""The healthy chest of a synthetic CT: one patient in mm around the centre of the lungs, drawn on any grid.

Coordinates are ``(z, y, x)`` towards superior, posterior and left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sample_cases.fields import NoiseField
from sample_cases.phantom import AIR, BLOOD, BONE, CORTEX, FAT, MUSCLE
from sample_cases.shapes import Ellipsoid, FloatArray, Frame, Segment, Vector, branch, paint_segments

LIVER = 58.0


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Sizes, places and densities of one patient; mm and HU.

    Attributes:
        scale: size of the patient, 1 is usual.
        body: half height and half width of the trunk below the shoulders.
        fat: thickness below the skin.
        lungs: right and left envelope, before diaphragm, heart and mediastinum are taken away.
        mediastinum: half height and half width of the column between the lungs.
        heart: its envelope.
        spine_y: centre of the vertebrae.
        rib_phase: where the ribs stand.
        domes: top of the right and the left diaphragm.
        breathing: mm over which the diaphragm is smeared.
        lung_hu: mean density of aerated lung.
        gravity: HU between the front and the back of the lung.
        effusion: right and left, how deep fluid stands, 0 for none.
        table_y: surface of the table.
        gas: air in the stomach, radius.
        vessels, aorta, airways, bronchi: trees of segments.
        twigs: small vessels: their radius, and two fields that are both 0 along them.
        form, tissue, parenchyma: random fields of the shape, of soft tissue and of lung.
    """

    scale: float
    body: tuple[float, float]
    fat: float
    lungs: tuple[Ellipsoid, Ellipsoid]
    mediastinum: tuple[float, float]
    heart: Ellipsoid
    spine_y: float
    rib_phase: float
    domes: tuple[float, float]
    breathing: float
    lung_hu: float
    gravity: float
    effusion: tuple[float, float]
    table_y: float
    gas: float
    vessels: list[Segment]
    aorta: list[Segment]
    airways: list[Segment]
    bronchi: list[Segment]
    twigs: tuple[float, NoiseField, NoiseField]
    form: NoiseField
    tissue: NoiseField
    parenchyma: tuple[NoiseField, NoiseField]

    def hilum(self, side: int) -> Vector:
        """Where vessels enter the lung; side 0 is the right one."""
        return np.array([4.0, 8.0, (-32.0, 34.0)[side]]) * self.scale


def draw_anatomy(random: np.random.Generator) -> Anatomy:
    """Draw the sizes of one patient."""

    def about(value: float, spread: float) -> float:
        return float(value + spread * random.uniform(-1, 1))

    scale = about(1.0, 0.13)
    inspired = float(random.uniform())
    half = (about(118, 10) * scale, about(80, 8) * scale, about(68, 5) * scale)
    right = Ellipsoid((0.0, 0.0, -about(53, 4) * scale), half)
    left = Ellipsoid(
        (0.0, about(2, 3), about(55, 4) * scale), (half[0], half[1] * about(0.97, 0.05), half[2] * about(0.95, 0.06))
    )
    heart = Ellipsoid(
        (about(-40, 9) * scale, about(-26, 6) * scale, about(20, 8) * scale),
        (about(50, 7) * scale, about(40, 6) * scale, about(52, 9) * scale),
    )
    fat = float(random.uniform(5, 32))
    body = (half[1] + about(20, 4) + 0.7 * fat, 54 * scale + half[2] + about(20, 4) + fat)
    dome = -(42 + 28 * inspired) * scale
    effusion = [0.0, 0.0]
    if random.uniform() < 0.16:
        effusion[int(random.integers(2))] = float(random.uniform(8, 34))
    breathing = float(random.uniform(0, 4) if random.uniform() < 0.65 else random.uniform(8, 20))
    vessels: list[Segment] = []
    bronchi: list[Segment] = []
    for side in (0, 1):
        start = np.array([4.0, 8.0, (-32.0, 34.0)[side]]) * scale
        out = (-1.0, 1.0)[side]
        turn, trees = random.uniform(0, 2 * np.pi), int(random.integers(4, 7))
        for k in range(trees):
            around = turn + 2 * np.pi * k / trees
            direction = np.array([1.5 * np.sin(around), 0.9 * np.cos(around), out * random.uniform(0.5, 1.1)])
            branch(vessels, start, direction, 40.0 * scale, about(4.4, 0.9), 6, random)
        for _ in range(3):
            direction = np.array([random.uniform(-1, 1), random.uniform(-0.7, 0.7), out])
            branch(bronchi, start, direction, 30.0 * scale, about(3.2, 0.5), 4, random)
    spine_y = about(64, 4) * scale
    return Anatomy(
        scale,
        body,
        fat,
        (right, left),
        (about(60, 5) * scale, about(27, 4) * scale),
        heart,
        spine_y,
        about(0, 13),
        (dome + about(6, 8), dome - about(4, 8)),
        breathing,
        -785.0 - 105.0 * inspired + about(0, 15),
        float(random.uniform(10, 100)),
        (effusion[0], effusion[1]),
        body[0] + about(4, 3),
        float(random.uniform(0, 26)),
        vessels,
        _aorta(scale, spine_y, about(12, 2)),
        _airways(scale),
        bronchi,
        (about(0.85, 0.4), NoiseField.random(9.0, random), NoiseField.random(9.0, random)),
        NoiseField.random(42.0, random, 12),
        NoiseField.random(7.0, random),
        (NoiseField.random(28.0, random, 16), NoiseField.random(5.5, random)),
    )


def _aorta(scale: float, spine_y: float, radius: float) -> list[Segment]:
    """Ascending aorta, arch, descending aorta, superior vena cava and pulmonary trunk."""
    back = spine_y / scale - 12
    course = [(-5, -24, -4), (30, -26, -14), (48, -10, -4), (52, 12, 10), (40, back - 8, 22), (20, back, 22)]
    course.append((-140, back, 16))
    points = [np.array(point, dtype=np.float64) * scale for point in course]
    segments = [Segment(a, b, radius) for a, b in pairwise(points)]
    trunk = [(0, -20, 10), (16, -12, 16), (12, 6, 32)]
    points = [np.array(point, dtype=np.float64) * scale for point in trunk]
    segments += [Segment(a, b, 0.9 * radius) for a, b in pairwise(points)]
    segments.append(Segment(points[1], np.array([8, 6, -30]) * scale, 0.8 * radius))
    segments.append(Segment(np.array([0, -12, -26]) * scale, np.array([80, -14, -24]) * scale, 0.7 * radius))
    return segments


def _airways(scale: float) -> list[Segment]:
    """Trachea and main bronchi."""
    carina, top = np.array([22.0, 12.0, 0.0]) * scale, np.array([150.0, 2.0, 0.0]) * scale
    ends = [np.array([4.0, 10.0, x]) * scale for x in (-32.0, 34.0)]
    return [Segment(top, carina, 8.5 * scale), *(Segment(carina, end, 6.0 * scale) for end in ends)]


def edge_of(frame: Frame) -> float:
    """Width in mm of a sharp border on this grid: partial volume within a slice."""
    return max(1.5, float(np.mean(frame.spacing[1:])))


def ramp(distance: npt.NDArray[Any], edge: float) -> FloatArray:
    """Coverage 0..1 of what lies at positive distance."""
    return np.clip(distance / np.float32(edge) + np.float32(0.5), 0, 1).astype(np.float32, copy=False)


def radius_of(frame: Frame, shape: Ellipsoid) -> FloatArray:
    """Distance ``[D, H, W]`` from the centre of an ellipsoid in half axes: 1 on its surface."""
    lines = zip((frame.z, frame.y, frame.x), shape.centre, shape.half, strict=True)
    z, y, x = (np.abs((line - np.float32(centre)) / np.float32(half)) ** 2 for line, centre, half in lines)
    radius: FloatArray = np.sqrt(z + y + x)
    return radius


def draw_lung(frame: Frame, anatomy: Anatomy) -> tuple[FloatArray, FloatArray]:
    """Where aerated lung is.

    Returns:
        Coverage 0..1 ``[D, H, W]`` of lung, and the distance in mm outside the envelope of the lungs (negative
        within it) by which the chest wall is drawn.
    """
    a, edge, s = anatomy, edge_of(frame), anatomy.scale
    z, y, x = frame.z, frame.y, frame.x
    form = anatomy.form.on(frame)
    lung = np.zeros(frame.shape, dtype=np.float32)
    outside = np.full(frame.shape, 1e3, dtype=np.float32)
    for side, envelope in enumerate(a.lungs):
        half = np.float32(min(envelope.half))
        distance = (radius_of(frame, envelope) - 1 + np.float32(0.05) * form) * half
        np.minimum(outside, distance, out=outside)
        cover = ramp(-distance, edge)
        dome = a.domes[side] - 0.0075 / s * ((np.abs(x) - 58 * s) ** 2 + 0.6 * (y + 12 * s) ** 2)
        cover *= ramp(z - dome.astype(np.float32) + 3 * form, max(edge, a.breathing))
        if a.effusion[side]:
            # Fluid stands at the back and the base, and creeps up the wall.
            level = 0.75 * (envelope.half[1] - y) + 0.5 * (z - a.domes[side] + 20 * s)
            cover *= ramp(level - np.float32(8 * s + 1.1 * a.effusion[side]) + 3 * form, edge)
        np.maximum(lung, cover, out=lung)
    width = a.mediastinum[1] * (1 + 0.22 * np.exp(-(((z - 6) / 34) ** 2)) - 0.25 * np.clip((z - 55) / 60, 0, 1))
    column = np.sqrt(((y - 4) / a.mediastinum[0]) ** 2 + ((x - 2) / width) ** 2)
    for distance in (
        (column - 1 + np.float32(0.06) * form) * np.float32(a.mediastinum[1]),
        (radius_of(frame, a.heart) - 1 + np.float32(0.04) * form) * np.float32(min(a.heart.half)),
        np.broadcast_to(np.hypot(y - a.spine_y, x) - 25 * s, frame.shape),
    ):
        lung *= ramp(distance.astype(np.float32), edge)
    return lung, outside


def draw_body(frame: Frame, anatomy: Anatomy, outside: FloatArray, contrast_hu: float) -> FloatArray:
    """HU ``[D, H, W]`` of everything but the lungs, with the space of the lungs filled by soft tissue."""
    a, edge, s = anatomy, edge_of(frame), anatomy.scale
    z, y, x = frame.z, frame.y, frame.x
    blood = contrast_hu if contrast_hu > 0 else BLOOD
    tissue = a.tissue.on(frame)
    shoulders = np.clip((z - 50 * s) / (70 * s), 0, 1)
    width = a.body[1] + 32 * s * shoulders * shoulders
    height = a.body[0] - 10 * s * shoulders
    skin = (1 - ((np.abs(y) / height) ** 2.4 + (np.abs(x) / width) ** 2.4) ** np.float32(1 / 2.4)) * a.body[0]
    hu = np.full(frame.shape, AIR, dtype=np.float32)
    _table(hu, frame, a, edge)

    def put(cover: FloatArray, value: FloatArray | float) -> None:
        nonlocal hu
        hu += cover * (value - hu)

    put(ramp(skin, edge), FAT + 6 * tissue)
    put(ramp(skin - np.float32(a.fat), edge), MUSCLE + 6 * tissue - 90 * np.clip(tissue - 1.3, 0, 1))
    # Extrapleural fat, ribs that run downwards to the front, scapulae.
    wall = (np.abs(x) > 34 * s) | (np.abs(y) > 66 * s)
    shell = ramp(4.5 - np.abs(outside - 6.5), max(edge, 2.0)) * wall
    ribs = np.clip((np.cos(2 * np.pi * (z - 0.45 * y + a.rib_phase) / (25 * s)) - 0.35) * 3 + 0.5, 0, 1)
    put(shell * ribs.astype(np.float32) * ramp(skin - 4, edge), 330 + 60 * tissue)
    blade = (np.abs(x) - 88 * s) * 0.75 - (y - 62 * s)
    scapula = ramp(3.5 - np.abs(blade), edge) * ramp(skin - a.fat - 6, edge) * ramp(outside - 14, edge)
    put((scapula * ((z > 5 * s) & (y > 20 * s) & (y < 92 * s))).astype(np.float32), CORTEX)
    # Between the lungs: fat with strands, then heart and great vessels.
    middle = ramp((44 * s - np.abs(x)) * np.ones_like(y), 8) * ramp(58 * s - np.abs(y), 8)
    put(middle.astype(np.float32) * ramp(z + 80 * s, 10), -35 + 45 * tissue)
    _abdomen(put, frame, a, outside, tissue, contrast_hu)
    put(ramp((1 - radius_of(frame, a.heart)) * np.float32(min(a.heart.half) - 3), edge), blood + 4 * tissue)
    put(paint_segments(frame, a.aorta), blood + 3 * tissue)
    for centre_y, radius, value in ((a.spine_y + 30 * s, 9 * s, MUSCLE), (a.spine_y, 19 * s, BONE)):
        put(ramp(np.float32(radius) - np.hypot(y - np.float32(centre_y), x), edge), value + 45 * tissue)
    discs = np.cos(2 * np.pi * (z + a.rib_phase) / (25 * s)) > 0.9
    put(ramp(np.float32(17 * s) - np.hypot(y - np.float32(a.spine_y), x), edge) * discs, 90.0)
    put(ramp(np.float32(8 * s) - np.hypot(y - np.float32(a.spine_y + 24 * s), x), edge), 30.0)
    process = ramp(5 * s - np.abs(x), edge) * ramp(12 * s - np.abs(y - a.spine_y - 42 * s), edge)
    put((process * np.clip(np.cos(2 * np.pi * (z + 6) / (25 * s)) * 2 + 0.5, 0, 1)).astype(np.float32), CORTEX)
    sternum = ramp(5 - np.abs(y + a.body[0] - a.fat - 14), edge) * ramp(17 * s - np.abs(x), edge)
    put((sternum * ramp(z + 25 * s, 6) * ramp(70 * s - z, 6)).astype(np.float32), BONE)
    return hu


def draw_twigs(frame: Frame, anatomy: Anatomy) -> FloatArray:
    """Coverage 0..1 ``[D, H, W]`` of the small vessels; thinner than a voxel, they fade."""
    radius, first, second = anatomy.twigs
    edge = float(np.mean(frame.spacing))
    away = np.hypot(first.on(frame), second.on(frame)) * np.float32(first.step)
    return ramp(radius - away, edge) * np.float32(min(1.0, 2 * radius / edge))


def draw_airways(hu: FloatArray, frame: Frame, anatomy: Anatomy) -> None:
    """Put trachea and main bronchi into `hu`."""
    walls = [Segment(g.start, g.end, g.radius + 1.8) for g in anatomy.airways]
    hu += paint_segments(frame, walls) * (MUSCLE - hu)
    hu += paint_segments(frame, anatomy.airways) * (AIR - hu)


def _table(hu: FloatArray, frame: Frame, a: Anatomy, edge: float) -> None:
    """A curved carbon shell filled with foam."""
    depth = frame.y - np.float32(a.table_y) + np.float32(0.0006) * frame.x**2
    within = ramp(220 - np.abs(frame.x), edge)
    hu += ramp(15 - np.abs(depth - 15), edge) * within * np.float32(60)
    for at in (1.5, 28.5):
        # Thinner than a voxel, a shell fades.
        hu += ramp(1.5 - np.abs(depth - np.float32(at)), edge) * within * np.float32(800 * min(1.0, 3 / edge))


def _abdomen(
    put: Callable[[FloatArray, FloatArray | float], None],
    frame: Frame,
    a: Anatomy,
    outside: FloatArray,
    tissue: FloatArray,
    contrast_hu: float,
) -> None:
    """Liver to the right, stomach with gas and fat to the left, below the domes."""
    s = a.scale
    below = ramp(-outside - 1, 3) * ramp(max(a.domes) + 6 - frame.z, 6)
    if not below.any():
        return
    liver = LIVER + min(contrast_hu, 200) * 0.25
    to_left = ramp(frame.x - 18 * s + 0 * frame.y, 10)
    value = liver + 4 * tissue + to_left * (-30 - 25 * np.clip(tissue, -1, 1))
    put(below, value.astype(np.float32))
    gas = Ellipsoid((min(a.domes) - 26, -34 * s, 56 * s), (a.gas + 1, a.gas + 1, 1.3 * a.gas + 1))
    put(ramp((1 - radius_of(frame, gas)) * np.float32(a.gas), 3) * below, AIR + 30)
