"""One study's volume -> the tensor a network reads, with the way back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medxai.errors import MismatchError
from medxai.prepare.grid import Grid, plan_grid
from medxai.prepare.intensity import map_intensity, match_channels
from medxai.prepare.lungs import lungs
from medxai.prepare.spec import PreparationSpec
from medxai.study import FloatArray, Volume


@dataclass(frozen=True, eq=False)
class Prepared:
    """Network input.

    Attributes:
        pixels: ``[C, *S']`` float32 on the prepared grid; ``S'`` is at least the network's window. A cine
            for a 2D network is ``[C, T, H, W]``.
        grid: the relation to the source grid, with `Grid.backward` as the way back.
    """

    pixels: FloatArray
    grid: Grid


def prepare(volume: Volume, spec: PreparationSpec) -> Prepared:
    """Order axes, resample, pad and map intensities of `volume` as `spec` asks.

    Raises:
        MismatchError: dimensions or calibration do not fit, or the region is not there.
    """
    if spec.region == "lungs":
        volume = lungs_alone(volume, spec.fill)
    grid = plan_grid(volume, spec)
    pixels = grid.forward(match_channels(volume.pixels, spec.channels), spec.fill)
    return Prepared(map_intensity(pixels, spec.intensity), grid)


def lungs_alone(volume: Volume, fill: float) -> Volume:
    """The volume with `fill` outside the lungs.

    Raises:
        MismatchError: no lungs.
    """
    region = lungs(volume)
    if region is None:
        msg = "no lungs are found, outside of which the network sees nothing"
        raise MismatchError(msg)
    return replace(volume, pixels=np.where(region, volume.pixels, np.float32(fill)))
