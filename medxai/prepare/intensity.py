"""Values of the source -> values the network was trained on."""

from __future__ import annotations

import numpy as np

from medxai.prepare.spec import AffineIntensity, Intensity, WindowIntensity
from medxai.study import FloatArray

#: ITU-R BT.601 luma weights, the colour space of DICOM's YBR_FULL (PS3.3 C.7.6.3.1.2).
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def match_channels(pixels: FloatArray, channels: int) -> FloatArray:
    """Turn ``[C, *S]`` into `channels`: colour to luminance, or grey repeated."""
    if pixels.shape[0] == channels:
        return pixels
    if channels == 1:
        grey: FloatArray = np.tensordot(_LUMA, pixels[:3], axes=(0, 0))[None].astype(np.float32)
        return grey
    return np.repeat(pixels[:1], channels, axis=0)


def map_intensity(pixels: FloatArray, intensity: Intensity) -> FloatArray:
    """Apply the intensity mapping to ``[C, *S]``; always float32."""
    if isinstance(intensity, WindowIntensity):
        scale = np.float32(1.0 / (intensity.high - intensity.low))
        scaled: FloatArray = np.clip((pixels - np.float32(intensity.low)) * scale, 0.0, 1.0).astype(np.float32)
        return scaled
    if isinstance(intensity, AffineIntensity):
        shape = (-1,) + (1,) * (pixels.ndim - 1)
        mean = np.array(intensity.mean, dtype=np.float32).reshape(shape)
        std = np.array(intensity.std, dtype=np.float32).reshape(shape)
        return ((pixels - mean) / std).astype(np.float32)
    chosen = pixels if intensity.floor is None else pixels[pixels > intensity.floor]
    if chosen.size == 0:
        return np.zeros_like(pixels)
    deviation = float(chosen.std())
    return ((pixels - np.float32(chosen.mean())) / np.float32(max(deviation, 1e-6))).astype(np.float32)
