"""What the scanner adds to a synthetic CT: the reconstruction kernel, noise, metal with its streaks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from sample_cases.shapes import FloatArray, Frame, Segment, paint_segments
from sample_cases.synthetic_anatomy import Anatomy, edge_of, ramp

KERNELS = ("soft", "standard", "sharp")
METAL_HU = 6000.0

#: In-plane weights of neighbouring pixels; noise and object go through the same kind of filter.
_BINOMIAL = np.array([0.25, 0.5, 0.25], dtype=np.float32)


def draw_scanner(random: np.random.Generator) -> tuple[str, float]:
    """A kernel and the noise in HU that is usual with it, 8 to 60."""
    kernel = KERNELS[int(random.choice(3, p=(0.35, 0.35, 0.3)))]
    low, high = {"soft": (8.0, 26.0), "standard": (12.0, 40.0), "sharp": (24.0, 60.0)}[kernel]
    return kernel, float(np.exp(random.uniform(np.log(low), np.log(high))))


def reconstruct(hu: FloatArray, frame: Frame, kernel: str, noise_hu: float, random: np.random.Generator) -> None:
    """Filter `hu` ``[D, H, W]`` in plane and add noise, in place.

    ``soft`` blurs a little and its noise is smooth; ``sharp`` enhances edges, which then overshoot, and neighbouring
    pixels of its noise are nearly independent. Towards the shoulders rows of noise grow into streaks.

    Args:
        hu: image without noise.
        frame: its grid.
        kernel: one of `KERNELS`.
        noise_hu: standard deviation of the noise outside the shoulders.
        random: of the noise.

    Raises:
        ValueError: the kernel is unknown.
    """
    if kernel not in KERNELS:
        msg = f"unknown kernel {kernel!r}; known are {', '.join(KERNELS)}"
        raise ValueError(msg)
    shoulders = np.clip((frame.z.ravel() - 75) / 45, 0, 1)
    for index in range(frame.shape[0]):
        plane = hu[index]
        if kernel == "soft":
            plane[...] = _smooth(plane)
        elif kernel == "sharp":
            plane += np.float32(0.9) * (plane - _smooth(_smooth(plane)))
        if noise_hu <= 0:
            continue
        noise = random.standard_normal(plane.shape, dtype=np.float32)
        if kernel == "soft":
            # Two passes of the binomial: variance 70/256 along each axis, squared over both.
            noise = _smooth(_smooth(noise)) * np.float32(256 / 70)
        elif kernel == "standard":
            noise = _smooth(noise) * np.float32(1 / 0.375)
        else:
            noise = noise - np.float32(0.6) * _smooth(noise)
            # Variance of delta - 0.6 b: 1 - 1.2 b(0) + 0.36 sum b**2, with b(0) = 1/4 and sum b**2 = 0.375**2.
            noise *= np.float32((1 - 1.2 * 0.25 + 0.36 * 0.375**2) ** -0.5)
        rows = ndimage.gaussian_filter1d(random.standard_normal(plane.shape[0]), 0.7)[:, None] * 1.4
        noise += (0.7 * shoulders[index] * rows).astype(np.float32)
        plane += np.float32(noise_hu) * noise


def _smooth(plane: FloatArray) -> FloatArray:
    rows = ndimage.convolve1d(plane, _BINOMIAL, axis=0, mode="nearest")
    smoothed: FloatArray = ndimage.convolve1d(rows, _BINOMIAL, axis=1, mode="nearest")
    return smoothed


def draw_metal(hu: FloatArray, frame: Frame, anatomy: Anatomy) -> FloatArray:
    """Put a pacemaker with its lead and the streaks it makes into `hu`; return its coverage 0..1 ``[D, H, W]``."""
    s, edge = anatomy.scale, edge_of(frame)
    place = np.array([62.0, -anatomy.body[0] + 12 + 0.4 * anatomy.fat, 62.0 * s])
    z, y, x = frame.z - np.float32(place[0]), frame.y - np.float32(place[1]), frame.x - np.float32(place[2])
    can = ramp(26 - np.abs(z), frame.spacing[0]) * ramp(9 - np.abs(y), edge) * ramp(23 - np.abs(x), edge)
    heart = np.array(anatomy.heart.centre) + np.array([10.0, 0, -10.0])
    vein = np.array([70.0, -20.0, -20.0]) * s
    lead = [Segment(place, vein, 1.6), Segment(vein, heart, 1.6)]
    angle, away = np.arctan2(y, x), np.sqrt(y * y + x * x)
    rays = np.cos(17 * angle) + np.cos(29 * angle + 1.0) + 1.6 * np.cos(2 * angle)
    streaks = (rays * np.exp(-away / 70) * ramp(away - 14, 10)).astype(np.float32)
    hu += ramp(27 - np.abs(z), 8) * streaks * np.float32(260)
    cover: FloatArray = np.maximum(can, paint_segments(frame, lead))
    hu += cover * (METAL_HU - hu)
    return cover
