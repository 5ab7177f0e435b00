"""Chest-like CT phantoms: a body with lungs, vessels, heart, spine and ribs, and lesions of known place.

Everything is drawn in millimetres around the centre of the lungs, so that the same seed on another voxel
grid is the same patient. Index axes ``(d, h, w)`` point to superior, posterior and left before the
optional rotation; the affine maps them to LPS mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sample_cases.shapes import Ellipsoid, Frame, Segment, branch, cover_ellipsoid, paint_segments, smooth_noise

FloatArray = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

AIR, FAT, MUSCLE, LUNG, BLOOD, BONE, CORTEX = -1000.0, -100.0, 50.0, -860.0, 40.0, 180.0, 420.0


@dataclass(frozen=True)
class Lesion:
    """One lesion of the truth.

    Attributes:
        kind: ``solid`` (soft tissue) or ``ground_glass`` (lung that is partly filled).
        centre_mm: LPS mm.
        radius_mm: mean radius; the surface undulates by a tenth of it.
    """

    kind: str
    centre_mm: tuple[float, float, float]
    radius_mm: float


@dataclass(frozen=True, eq=False)
class Phantom:
    """A generated volume with its truth.

    Attributes:
        hu: ``[D, H, W]`` float32 with whole Hounsfield units, at least -1024.
        affine: index ``(d, h, w)`` -> LPS mm.
        lesions: what was put in.
    """

    hu: FloatArray
    affine: Affine
    lesions: tuple[Lesion, ...]

    @property
    def label(self) -> str:
        """``lesion`` or ``clean``."""
        return "lesion" if self.lesions else "clean"


@dataclass(frozen=True)
class _Anatomy:
    """Sizes and places of one patient, mm around the centre of the lungs."""

    body: tuple[float, float]
    lungs: tuple[Ellipsoid, Ellipsoid]
    heart: Ellipsoid
    spine_y: float
    rib_phase: float
    dome: float


def phantom(
    seed: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    n_lesions: int,
    *,
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    tilt_degrees: float = 0.0,
    radius_mm: tuple[float, float] = (9.0, 18.0),
    noise_hu: float = 18.0,
) -> Phantom:
    """Draw one patient.

    Args:
        seed: decides anatomy, lesions and noise; the same seed gives the same bytes.
        shape: voxels ``(D, H, W)``.
        spacing: mm between voxel centres along them.
        n_lesions: lesions to place within the field of view; 0 gives a clean patient.
        offset_mm: centre of the field of view ``(z, y, x)`` relative to the centre of the lungs.
        origin_mm: LPS position of the centre of the field of view (the scanner's table).
        tilt_degrees: rotation of the grid about the x axis, then half of it about the y axis.
        radius_mm: range of lesion radii.
        noise_hu: standard deviation of the scanner noise.

    Returns:
        The volume with its truth.

    Raises:
        ValueError: no lung lies in the field of view in which a lesion could be placed.
    """
    random = np.random.default_rng([seed, 7])
    anatomy = _anatomy(random)
    frame = Frame.centred(shape, spacing, offset_mm)
    hu, lung = _draw_anatomy(frame, anatomy, random)
    affine = frame.affine(origin_mm, offset_mm, tilt_degrees)
    lesions = tuple(_place_lesion(hu, lung, frame, affine, anatomy, radius_mm, random, i) for i in range(n_lesions))
    hu += smooth_noise(shape, noise_hu, np.random.default_rng([seed, 11]))
    return Phantom(np.maximum(np.rint(hu), -1024.0).astype(np.float32), affine, lesions)


def _anatomy(random: np.random.Generator) -> _Anatomy:
    def about(value: float, spread: float) -> float:
        return float(value + spread * random.uniform(-1, 1))

    half = (about(122, 12), about(78, 7), about(50, 4))
    right = Ellipsoid((0.0, 0.0, -about(66, 3)), half)
    left = Ellipsoid((0.0, 0.0, about(68, 3)), (half[0], half[1] * about(0.98, 0.03), half[2] * about(0.94, 0.04)))
    heart = Ellipsoid((about(-42, 8), about(-26, 5), about(22, 5)), (about(50, 5), about(40, 4), about(50, 5)))
    return _Anatomy((about(103, 5), about(140, 7)), (right, left), heart, about(66, 4), about(0, 12), -about(62, 14))


def _draw_anatomy(frame: Frame, anatomy: _Anatomy, random: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return HU ``[D, H, W]`` without noise and lesions, and lung coverage 0..1."""
    z, y, x = frame.z, frame.y, frame.x
    radius = np.sqrt((y / anatomy.body[0]) ** 2 + (x / anatomy.body[1]) ** 2)
    plane = np.where(radius < 1.0, np.where(radius < 0.92, MUSCLE, FAT), AIR).astype(np.float32)
    hu = np.broadcast_to(plane, frame.shape).copy()
    ribs = np.cos(2 * np.pi * (z + 0.35 * y + anatomy.rib_phase) / 26.0) > 0.45
    hu[((radius > 0.85) & (radius < 0.91)) & ribs] = CORTEX
    lung = np.maximum(cover_ellipsoid(frame, anatomy.lungs[0]), cover_ellipsoid(frame, anatomy.lungs[1]))
    dome = anatomy.dome - 0.0035 * ((np.abs(x) - 65) ** 2 + (y - 5) ** 2)
    lung = lung * np.clip((z - dome) / 6 + 0.5, 0, 1)
    lung = (lung * (1 - cover_ellipsoid(frame, anatomy.heart))).astype(np.float32)
    hu += lung * (LUNG - hu)
    hu += paint_segments(frame, _vessels(anatomy, random)) * lung * (BLOOD - hu)
    for centre_y, centre_x, size, value in (
        (anatomy.spine_y, 0.0, 19.0, BONE),
        (anatomy.spine_y - 2, 24.0, 11.0, BLOOD),
        (anatomy.spine_y + 22, 0.0, 8.0, MUSCLE),
    ):
        column = np.clip((size - np.hypot(y - centre_y, x - centre_x)) / 3 + 0.5, 0, 1)
        hu += column * (value - hu)
    airway = np.clip((8.0 - np.hypot(y - 12, x)) / 2 + 0.5, 0, 1) * (z > 15)
    hu += airway.astype(np.float32) * (AIR - hu)
    return hu, lung


def _vessels(anatomy: _Anatomy, random: np.random.Generator) -> list[Segment]:
    segments: list[Segment] = []
    for side, lung in zip((-1.0, 1.0), anatomy.lungs, strict=True):
        start = np.array([0.0, 8.0, lung.centre[2] - side * 34.0])
        for _ in range(4):
            direction = np.array([random.uniform(-1, 1), random.uniform(-0.7, 0.7), side])
            branch(segments, start, direction, 40.0, 4.2, 5, random)
    return segments


def _place_lesion(
    hu: FloatArray,
    lung: FloatArray,
    frame: Frame,
    affine: Affine,
    anatomy: _Anatomy,
    radius_mm: tuple[float, float],
    random: np.random.Generator,
    number: int,
) -> Lesion:
    """Draw one lesion into `hu` and return its truth; lesions alternate sides so that they stay apart."""
    first = int(random.integers(2))
    side = anatomy.lungs[(first + number) % 2]
    for _ in range(400):
        radius = float(random.uniform(*radius_mm))
        # Uniform in the shrunken ellipsoid: the whole lesion lies in aerated lung.
        direction = random.normal(size=3)
        direction /= np.linalg.norm(direction)
        reach = float(random.uniform()) ** (1 / 3)
        half = np.array(side.half) - 1.1 * radius
        centre = np.array(side.centre) + direction * reach * half
        if frame.coverage_at(lung, centre, radius) > 0.97:
            break
    else:
        msg = "no place for a lesion: the field of view holds too little lung"
        raise ValueError(msg)
    kind = "solid" if random.uniform() < 0.5 else "ground_glass"
    box, distance, towards = frame.around(centre, radius * 1.4)
    bumps = sum(np.cos(k * towards[k % 3] * 3 + random.uniform(0, 6)) for k in (1, 2, 3)) / 3
    cover = np.clip((radius * (1 + 0.1 * bumps) - distance) / (3.0 if kind == "solid" else 6.0) + 0.5, 0, 1)
    part = hu[box]
    if kind == "solid":
        part += cover * (35.0 - part)
    else:
        part += cover * np.maximum(-480.0 - part, 0)
    index = frame.index_of(centre)
    place = affine @ np.array([*index, 1.0])
    return Lesion(kind, (float(place[0]), float(place[1]), float(place[2])), radius)
