"""Amplitude of low-frequency fluctuation, whole and as a fraction, voxel by voxel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medxai.errors import MismatchError
from medxai.prepare.brain.settings import BandOptions

Array = npt.NDArray[np.float32]
#: Voxels transformed at once: spectra of 200 volumes then take some 13 MB.
_CHUNK = 1 << 13


def alff(series: Array, repetition_seconds: float, band: BandOptions, study: str = "series") -> tuple[Array, Array]:
    """ALFF and fALFF of series that were detrended but not band-passed.

    The amplitude at frequency ``k / (T * TR)`` is ``2 |FFT_k| / T`` (``|FFT_k| / T`` at the Nyquist frequency), so that
    a sine of amplitude A at that frequency has A. ALFF is the mean of the amplitudes inside the band, in the units of
    the series (Zang et al. 2007; square root of the power, averaged); fALFF is their sum over the sum of the
    amplitudes of all frequencies above zero (Zou et al. 2008), from 0 to 1.

    Args:
        series: ``[T, n]``, one column per voxel.
        repetition_seconds: between volumes.
        band: edges in Hz, both included.
        study: name for messages.

    Returns:
        Two arrays ``[n]``; fALFF is 0 for constant voxels.

    Raises:
        MismatchError: no frequency of the series lies in the band; says the numbers.
    """
    volumes, count = series.shape
    frequencies = np.fft.rfftfreq(volumes, repetition_seconds)
    slack = 1e-9 / repetition_seconds
    inside = (frequencies >= band.low - slack) & (frequencies <= band.high + slack) & (frequencies > 0)
    if not inside.any():
        step = 1 / (volumes * repetition_seconds)
        words = f"{volumes} volumes of {repetition_seconds:g} s resolve steps of {step:.3g} Hz"
        words += f" up to {frequencies[-1]:.3g} Hz"
        raise MismatchError(f"{words}: none lies from {band.low:g} to {band.high:g} Hz", study=study)
    scale = np.full(len(frequencies), 2.0 / volumes, np.float32)
    if volumes % 2 == 0:
        scale[-1] = 1.0 / volumes
    amplitude = np.empty(count, np.float32)
    fraction = np.zeros(count, np.float32)
    from scipy.fft import rfft

    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        spectrum = np.abs(rfft(series[:, part], axis=0)) * scale[:, None]
        amplitude[part] = spectrum[inside].mean(0)
        total = spectrum[1:].sum(0)
        np.divide(spectrum[inside].sum(0), total, out=fraction[part], where=total > 0)
    return amplitude, fraction


def over_mean(values: Array, study: str = "series") -> Array:
    """Values divided by their mean, as ALFF is compared between people (mALFF); without a unit.

    Raises:
        MismatchError: the mean is zero.
    """
    mean = float(values.mean(dtype=np.float64))
    if mean <= 0:
        raise MismatchError("the brain does not vary at all; the series is constant", study=study)
    return (values / np.float32(mean)).astype(np.float32)
