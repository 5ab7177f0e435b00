"""Nuisance regression and band-pass of functional series, through nilearn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import MismatchError
from medxai.prepare.brain.settings import BandOptions

Array = npt.NDArray[np.float64]
#: nilearn's Butterworth filter of order five is run in both directions over the series and this many points of padding.
_FILTER_PADDING = 33


def clean(
    series: npt.NDArray[np.floating],
    confounds: Mapping[str, Array],
    repetition_seconds: float,
    trend: int,
    band: BandOptions | None,
    study: str,
) -> npt.NDArray[np.float32]:
    """Series without trends, confounds and, where a band is given, frequencies outside it.

    Confounds are detrended and filtered as the series are before they are regressed out, so that the regression does
    not bring back what the filter took (Lindquist et al. 2019; Hallquist et al. 2013).

    Args:
        series: ``[T, n]``.
        confounds: by name, ``[T]`` each.
        repetition_seconds: between volumes.
        trend: degree of the polynomial, 0 to 2.
        band: pass band; None keeps all frequencies.
        study: name for messages.

    Returns:
        ``[T, n]`` float32 in the units of the series, zero mean.

    Raises:
        MismatchError: too few volumes for the band, or for so many confounds; says the numbers.
    """
    volumes = series.shape[0]
    check_length(volumes, repetition_seconds, band, len(confounds), trend, study)
    basis = _polynomials(volumes, trend)
    values = _without(series, basis)
    if not confounds and band is None:
        return values.astype(np.float32, copy=False)
    nuisance = _without(np.column_stack(list(confounds.values())), basis) if confounds else None
    if nuisance is not None:  # columns that are all trend say nothing more, and cannot be scaled
        nuisance = nuisance[:, nuisance.std(0) > 1e-9 * (1 + np.abs(np.column_stack(list(confounds.values()))).max(0))]
        nuisance = nuisance if nuisance.shape[1] else None
    if nuisance is None and band is None:
        return values.astype(np.float32, copy=False)
    from nilearn.signal import clean as nilearn_clean

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cleaned = nilearn_clean(
            values,
            detrend=False,
            standardize=None,
            confounds=nuisance,
            filter="butterworth" if band else False,
            low_pass=band.high if band else None,
            high_pass=band.low if band else None,
            t_r=repetition_seconds,
            ensure_finite=False,
        )
    return np.asarray(cleaned, np.float32)


def check_length(
    volumes: int, repetition_seconds: float, band: BandOptions | None, confounds: int, trend: int, study: str
) -> None:
    """Refuse series that are too short.

    Raises:
        MismatchError: says the numbers.
    """
    if band is None:
        if volumes <= confounds + trend + 2:
            words = f"{volumes} volumes are too few for {confounds} confounds and a trend of degree {trend}"
            raise MismatchError(f"{words}; at least {confounds + trend + 3} are needed", study=study)
        return
    nyquist = 0.5 / repetition_seconds
    if band.high >= nyquist:
        words = f"the band up to {band.high:g} Hz needs volumes less than {0.5 / band.high:.3g} s apart"
        raise MismatchError(f"{words}; these are {repetition_seconds:g} s apart", study=study)
    # ceil with a margin: 1 / (0.01 * 2) is 50, whatever rounding makes of it
    needed = max(math.ceil(1 / (band.low * repetition_seconds) - 1e-9), _FILTER_PADDING + 1)
    if volumes < needed:
        words = f"{volumes} volumes of {repetition_seconds:g} s are too few for {band.low:g} to {band.high:g} Hz"
        raise MismatchError(f"{words}; one period of {band.low:g} Hz and the filter need {needed}", study=study)
    length = volumes * repetition_seconds
    bins = math.floor(band.high * length + 1e-9) - math.ceil(band.low * length - 1e-9) + 1
    if 2 * bins - confounds < 3:
        words = (
            f"the band of {volumes} volumes has {2 * bins} degrees of freedom and {confounds} confounds take as many"
        )
        raise MismatchError(f"{words}; a longer scan or fewer confounds are needed", study=study)


def _polynomials(volumes: int, degree: int) -> Array:
    """Orthonormal polynomials ``[T, degree + 1]``."""
    powers = np.linspace(-1, 1, volumes)[:, None] ** np.arange(degree + 1)
    return np.linalg.qr(powers)[0]


def _without(values: npt.NDArray[Any], basis: Array) -> npt.NDArray[Any]:
    used: npt.NDArray[Any] = basis.astype(values.dtype)
    centred = values - values.mean(0, keepdims=True)  # the mean is large beside what varies
    return np.asarray(centred - used @ (used.T @ centred))
