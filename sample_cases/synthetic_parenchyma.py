"""Aerated lung of a synthetic CT, and what every class may have in it.

Dependent atelectasis, mosaic attenuation, emphysema, plates of atelectasis and fissures are drawn whatever the label
is: they look like disease and are none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sample_cases.fields import NoiseField
from sample_cases.shapes import FloatArray, Frame, Vector
from sample_cases.synthetic_anatomy import Anatomy, edge_of, radius_of, ramp


@dataclass(frozen=True, eq=False)
class Distractors:
    """What every class may have; 0 switches one off.

    Attributes:
        atelectasis: HU and depth in mm of the dependent band.
        mosaic: HU between lobules that differ in density.
        emphysema: share of the upper lung that is destroyed, in standard deviations of the field.
        plates: discs ``(z, y, x, radius, thickness, slope)`` of atelectasis or scar.
        fissures: offsets of the oblique fissures and HU.
        lobules, fine, net: random fields.
    """

    atelectasis: tuple[float, float]
    mosaic: float
    emphysema: float
    plates: tuple[tuple[float, ...], ...]
    fissures: tuple[float, float, float]
    lobules: NoiseField
    fine: NoiseField
    net: NoiseField


def draw_distractors(random: np.random.Generator) -> Distractors:
    """Draw them, independent of the label."""
    band = (0.0, 0.0)
    if random.uniform() < 0.4:
        band = (float(random.uniform(90, 420)), float(random.uniform(4, 18)))
    mosaic = float(random.uniform(30, 110)) if random.uniform() < 0.25 else 0.0
    emphysema = float(random.uniform(0.6, 1.8)) if random.uniform() < 0.25 else 0.0
    plates = tuple(
        (
            *(float(random.uniform(-a, a)) for a in (50, 45)),
            float(random.choice((-66.0, 66.0))),
            float(random.uniform(14, 36)),
            float(random.uniform(1.5, 4.0)),
            float(random.uniform(-0.5, 0.5)),
        )
        for _ in range(int(random.integers(1, 4)) if random.uniform() < 0.35 else 0)
    )
    fissures = (float(random.uniform(-14, 14)), float(random.uniform(-14, 14)), float(random.uniform(60, 350)))
    fields = (NoiseField.random(11.0, random), NoiseField.random(4.0, random), NoiseField.random(5.0, random))
    return Distractors(band, mosaic, emphysema, plates, fissures, *fields)


def fissure_distance(frame: Frame, anatomy: Anatomy, offset: float) -> FloatArray:
    """Distance in mm above the oblique fissure, which runs downwards to the front."""
    distance: FloatArray = (
        0.8 * (frame.z - 0.75 * frame.y + np.float32(20 * anatomy.scale + offset)) - 0.002 * frame.x**2 + 8
    ).astype(np.float32)
    return distance + np.float32(2.5) * anatomy.form.on(frame)


def fissure_at(point: Vector, anatomy: Anatomy) -> float:
    """`fissure_distance` of a point, without its undulation."""
    return float(0.8 * (point[0] - 0.75 * point[1] + 20 * anatomy.scale) - 0.002 * point[2] ** 2 + 8)


def draw_parenchyma(frame: Frame, anatomy: Anatomy, d: Distractors, lung: FloatArray) -> FloatArray:
    """HU ``[D, H, W]`` of lung without vessels and findings, with its distractors."""
    edge, s = edge_of(frame), anatomy.scale
    z, y, x = frame.z, frame.y, frame.x
    half = anatomy.lungs[0].half[1]
    slow, fast = (field.on(frame) for field in anatomy.parenchyma)
    hu = anatomy.lung_hu + anatomy.gravity * (0.5 * y / half) + 12 * slow + 16 * fast
    hu = np.minimum(hu.astype(np.float32), -600)
    if d.mosaic:
        hu += d.mosaic * ramp(d.lobules.on(frame) + 0.4 * slow, 0.6)
    if d.emphysema:
        holes = ramp(d.lobules.on(frame) + np.clip(z / 60, -1, 1) - (2.4 - d.emphysema), 0.4)
        hu += holes * (-965 - hu)
    for side, offset in zip((-1, 1), d.fissures[:2], strict=True):
        away = np.abs(fissure_distance(frame, anatomy, offset))
        hu += ramp(0.8 - away, edge) * (x * side > 0) * np.float32(d.fissures[2] * min(1.0, 1.6 / edge))
    if d.atelectasis[0]:
        # The band follows the pleura at the back: what the lung's envelope loses when it moves forward.
        strength, deep = d.atelectasis
        away = np.minimum.reduce([(radius_of(frame, e) - 1) * np.float32(min(e.half)) for e in anatomy.lungs])
        streaks = np.clip(0.75 + 0.35 * d.fine.on(frame) + 0.4 * slow, 0, 1.3)
        hu += ramp(away + np.float32(0.6 * deep), deep) * streaks * ramp(y - 15 * s - 0 * x, 30) * np.float32(strength)
    for at_z, at_y, at_x, radius, thickness, slope in d.plates:
        centre = np.array([at_z, at_y, at_x]) * s
        box, away, _ = frame.around(centre, radius + 4)
        dz, dy, dx = frame.local(box, centre)
        sheet = ramp(thickness / 2 - np.abs(dz - slope * dx + 0.3 * dy), edge) * min(1.0, thickness / edge)
        hu[box] += sheet * ramp(radius - away, 6) * np.maximum(-120 - hu[box], 0)
    return hu
