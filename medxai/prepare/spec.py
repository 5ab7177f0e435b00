"""What a network expects of its input, as stored in a bundle's metadata."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from medxai.strict import Strict


class WindowIntensity(Strict):
    """Linear ``[low, high]`` -> ``[0, 1]`` with clipping; Hounsfield units for CT."""

    kind: Literal["window"] = "window"
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            msg = f"window low {self.low} must be below high {self.high}"
            raise ValueError(msg)
        return self


class AffineIntensity(Strict):
    """``(value - mean) / std`` per channel with fixed constants, in stored units (0..255 for pictures)."""

    kind: Literal["affine"] = "affine"
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]


class ZScoreIntensity(Strict):
    """Zero mean and unit variance over the voxels of the study that are above ``floor``."""

    kind: Literal["zscore"] = "zscore"
    floor: float | None = None


Intensity = Annotated[WindowIntensity | AffineIntensity | ZScoreIntensity, Field(discriminator="kind")]


class PreparationSpec(Strict):
    """Geometry and intensity of a network's input.

    Attributes:
        axes: ``HW`` for a 2D network (a cine is then a batch of frames), ``DHW`` for a 3D one.
        window: spatial input size of the network, in voxels.
        spacing_mm: target spacing along the prepared axes; None means that the image is scaled to fit
            into `window` with its aspect kept, which needs no calibration.
        fit: without `spacing_mm`, whether the whole image goes into the window and bars of `fill` remain (``pad``), or
            the window is filled and what stands over at two sides is not seen (``crop``).
        channels: 1 (colour is reduced to luminance) or 3 (grey is repeated).
        intensity: mapping of values.
        fill: value, in source units, of what lies outside the image.
        region: what of the image is shown to the network; the rest is `fill`. ``lungs`` are those of
            `medxai.prepare.lungs`, as in data sets whose slices are lung-segmented.
        overlap: overlap of neighbouring windows as a fraction of the window, for larger volumes.
    """

    axes: Literal["HW", "DHW"]
    window: tuple[PositiveInt, ...]
    spacing_mm: tuple[PositiveFloat, ...] | None = None
    fit: Literal["pad", "crop"] = "pad"
    channels: Literal[1, 3] = 1
    intensity: Intensity
    fill: float = 0.0
    region: Literal["lungs"] | None = None
    overlap: Annotated[float, Field(ge=0.0, le=0.9)] = 0.5

    @model_validator(mode="after")
    def _dimensions(self) -> Self:
        n = len(self.axes)
        if len(self.window) != n or (self.spacing_mm is not None and len(self.spacing_mm) != n):
            msg = f"window and spacing_mm need {n} entries for axes {self.axes}"
            raise ValueError(msg)
        if self.axes == "DHW" and self.spacing_mm is None:
            msg = "a 3D network needs spacing_mm"
            raise ValueError(msg)
        if self.region is not None and self.axes != "DHW":
            msg = f"region: {self.region} is found in volumes, axes must be DHW"
            raise ValueError(msg)
        if self.fit == "crop" and self.spacing_mm is not None:
            msg = "fit: crop scales an image to its window, so that it cannot have spacing_mm"
            raise ValueError(msg)
        return self
