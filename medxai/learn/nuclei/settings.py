"""What ``medxai train nuclei`` reads: configs/nuclei.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from medxai.settings import checked, read_yaml
from medxai.strict import Strict

#: Labels that stay, with the published loss and with ours; the map of one block for all fields; the block chosen by
#: field; with the contrastive term; with detection; two of them on points that miss by more; given the masks.
Arm = Literal["fixed", "kept", "block", "dcs", "dcs_ccl", "full", "fixed_jitter", "full_jitter", "supervised"]
ARMS: tuple[Arm, ...] = get_args(Arm)
Share = Annotated[float, Field(ge=0, le=1)]


class DataSettings(Strict):
    """Fields.

    Attributes:
        train: folder of pictures with ``points.csv``; without one, synthetic fields are drawn.
        test: folder of pictures with ``masks/``, for the scores; likewise.
        fields: synthetic fields that are learnt from.
        tests: synthetic fields that are scored.
        size: pixels along their sides.
        seed: of synthetic training fields; those that are scored have the next one.
        jitter: deviation of marks from centroids in pixels.
        strong_jitter: the same for the arms ``*_jitter``.
    """

    train: Path | None = None
    test: Path | None = None
    fields: Annotated[int, Field(ge=2)] = 32
    tests: Annotated[int, Field(ge=2)] = 24
    size: Annotated[int, Field(multiple_of=32, ge=64)] = 128
    seed: int = 0
    jitter: Annotated[float, Field(ge=0)] = 1.0
    strong_jitter: Annotated[float, Field(ge=0)] = 3.0

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.train is None) != (self.test is None):
            msg = "train and test are folders of one's own or both synthetic; give both or none"
            raise ValueError(msg)
        return self


class NetworkSettings(Strict):
    """Of `medxai.networks.nuclei_unet.NucleiUNet`.

    Attributes:
        width: factor of all channels; 1 is ResNet-34.
        radius: of a nucleus in pixels; all lengths of the labels follow it.
        mpp: micrometres per pixel.
        tile: pixels that are looked at together at inference.
    """

    width: PositiveFloat = 1.0
    radius: PositiveFloat = 6.0
    mpp: PositiveFloat = 0.5
    tile: Annotated[int, Field(multiple_of=32)] = 256


class SelectionSettings(Strict):
    """How labels are chosen anew, see `medxai.learn.nuclei.pseudo`.

    Attributes:
        warmup: epochs with the labels from points alone.
        every: epochs between choices.
        thetas: thresholds that are tried; see `medxai.learn.nuclei.pseudo.best_thresholds`.
        band: between these shares of the threshold a pixel is ignored.
        average: share of the former map that is kept.
        guard: agreement below which the former label stays.
        cap: times the area of the label from points above which the former label stays.
        voronoi: weight of the label of cells beside the chosen one.
    """

    warmup: PositiveInt = 20
    every: PositiveInt = 5
    thetas: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.4,)
    band: tuple[Share, Annotated[float, Field(ge=1)]] = (0.75, 1.25)
    average: Share = 0.9
    guard: Share = 0.3
    cap: PositiveFloat = 3.0
    voronoi: Annotated[float, Field(ge=0)] = 0.5


class TrainingSettings(Strict):
    """Of every network.

    Attributes:
        epochs: passes over the fields, with those of the warm-up.
        batch_size: fields in a step.
        crop: pixels along the sides of what is cut from larger fields.
        rate: of Adam, falling by a cosine.
        detection: weight of the detection loss.
        contrast: weight of the contrastive loss.
        temperature: tau of it.
        samples: pixels of either kind in it.
    """

    epochs: PositiveInt = 100
    batch_size: Annotated[int, Field(ge=2)] = 8
    crop: Annotated[int, Field(multiple_of=32, ge=64)] = 256
    rate: PositiveFloat = 1e-4
    detection: Annotated[float, Field(ge=0)] = 1.0
    contrast: Annotated[float, Field(ge=0)] = 0.1
    temperature: PositiveFloat = 0.1
    samples: PositiveInt = 256


class NucleiSettings(Strict):
    """A whole comparison.

    Attributes:
        output: folder of everything that is made; what is there is not made again.
        data: fields.
        network: size.
        selection: of labels.
        training: of networks.
        arms: what is compared.
        seeds: one network of every arm each.
    """

    output: Path
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    selection: SelectionSettings = SelectionSettings()
    training: TrainingSettings = TrainingSettings()
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = ARMS
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.training.epochs <= self.selection.warmup:
            msg = f"epochs {self.training.epochs} must be more than those of the warm-up, {self.selection.warmup}"
            raise ValueError(msg)
        if self.data.train is None and self.training.crop > self.data.size:
            msg = f"crop {self.training.crop} is larger than the fields, size {self.data.size}"
            raise ValueError(msg)
        return self


def load_nuclei_settings(path: Path, overrides: dict[str, Any] | None = None) -> NucleiSettings:
    """Read a YAML file.

    Raises:
        SettingsError: unreadable, or a wrong value; the message names the field.
    """
    return checked(NucleiSettings, read_yaml(path) | (overrides or {}), where=str(path))
