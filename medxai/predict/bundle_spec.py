"""What a bundle says about itself: MONAI's ``metadata.json`` with one block of our own, checked offline.

Field names follow the MONAI Bundle specification (docs.monai.io, "MONAI Bundle"); the block ``medxai``
holds what the specification has no place for. Keys we do not know are kept outside that block.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medxai.errors import BundleError
from medxai.prepare.spec import PreparationSpec
from medxai.strict import Strict

Names = Annotated[tuple[str, ...], Field(min_length=1)]


class _Open(BaseModel):
    """Part of a foreign schema: known fields are checked, others are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ConfidenceSpec(Strict):
    """How sure a network is of a picture, from answers that should not differ.

    Attributes:
        passes: answers of each kind, with changed pictures and with dropout.
        pictures: frames of a cine that are asked, evenly spaced.
        flip: whether the changes mirror left and right.
        rotate_degrees: largest rotation.
        shift: largest shift as a share of the side.
        low: confidence below which a result is marked as not to be relied on.
    """

    passes: Annotated[int, Field(ge=2)] = 10
    pictures: Annotated[int, Field(ge=1)] = 8
    flip: bool = True
    rotate_degrees: Annotated[float, Field(ge=0, le=45)] = 10.0
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    low: Annotated[float, Field(ge=0, le=1)] = 0.5


class ChestSpec(Strict):
    """What a chest CT must be for a network that was trained on whole lungs (`medxai.predict.chest_ct`).

    Attributes:
        thickest_mm: largest distance between slices in mm.
        least_mm: extent along the slices in mm that must be there.
        contrast: whether contrast medium in the blood is within the model's purpose.
    """

    thickest_mm: Annotated[float, Field(gt=0)]
    least_mm: Annotated[float, Field(gt=0)]
    contrast: bool = False


Three = tuple[float, float, float]


class SlideColours(Strict):
    """Colours of training tiles, as optical densities (base 10) over bare glass.

    Attributes:
        vectors: of haematoxylin and of eosin, unit length (`medxai.ingest.slides.stain.Stains`).
        strongest: 99th percentile of the amount of each.
        variances: mean square along each of `directions`, rising (`medxai.ingest.slides.whitening.Spread`).
        directions: three unit vectors.
        white: RGB 0..255 of bare glass.
    """

    vectors: tuple[Three, Three]
    strongest: tuple[float, float]
    variances: Three
    directions: tuple[Three, Three, Three]
    white: Three


class SlideSpec(Strict):
    """How a whole slide is cut for a network of tiles (`medxai.ingest.slides`).

    Attributes:
        mpp: micrometres per pixel of the tiles that it was trained on.
        tile: pixels along each side of a tile.
        least_tissue: share of tissue below which a tile is not asked.
        colours: of the training tiles, to which slides can be brought; None where they were not stated.
        attention: whether the bundle can decide by attention over tiles (`medxai.predict.slide_pooling`).
    """

    mpp: Annotated[float, Field(gt=0)]
    tile: Annotated[int, Field(ge=16)]
    least_tissue: Annotated[float, Field(ge=0, le=1)] = 0.2
    colours: SlideColours | None = None
    attention: bool = False


class MedxaiBlock(Strict):
    """What inference and explanation need beyond the MONAI fields.

    Attributes:
        labels: class names; in the order of the logits. A network with one logit has two labels, the
            second is the one the logit speaks for.
        modalities: DICOM modalities the model was trained on.
        body_parts: accepted BodyPartExamined values in upper case; the first is what it was trained on.
        preparation: geometry and intensity of the input.
        target_layer: layer to explain; None picks the last spatial feature map.
        activation: logits -> probabilities.
        fusion: logits of windows or frames -> logits of the study. ``lse`` is a smooth maximum; ``probability`` takes
            the mean of the softmax probabilities of frames, as a vote in which sure frames count more.
        temperature: of ``lse``, small is close to the maximum, large to the mean; or by which ``probability`` divides
            logits, as calibrated.
        reject: label of pictures that the model is not for; a study decided so is refused, and the label is never
            explained.
        colour_flow: whether pictures with coloured Doppler are within the model's purpose.
        confidence: how often each picture is asked again in changed form for its confidence; None for never.
        organ: where the evidence of a sound decision must lie; maps with much of theirs elsewhere are limited or
            withheld. None for anywhere in the body.
        chest: what a chest CT must be; None for whatever fits the modality and the body part.
        slide: how whole slides are cut into tiles; None for a network that is not of tiles.
        positive: labels that count as abnormal in worklists and statistics.
        licence: SPDX name of the licence of the weights.
    """

    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    modalities: Names
    body_parts: Names
    preparation: PreparationSpec
    target_layer: str | None = None
    activation: Literal["softmax", "sigmoid"]
    fusion: Literal["mean", "lse", "probability"] = "mean"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    reject: str | None = None
    colour_flow: bool = True
    confidence: ConfidenceSpec | None = None
    organ: Literal["lungs"] | None = None
    chest: ChestSpec | None = None
    slide: SlideSpec | None = None
    positive: tuple[str, ...] = ()
    licence: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            msg = "labels must be distinct"
            raise ValueError(msg)
        unknown = [name for name in self.positive if name not in self.labels]
        if unknown:
            msg = f"positive names {unknown} which are not among the labels"
            raise ValueError(msg)
        if self.reject is not None and (self.reject not in self.labels or self.reject in self.positive):
            msg = f"reject names {self.reject!r}, which must be one of the labels and not among positive"
            raise ValueError(msg)
        if (self.organ or self.chest) and (self.preparation.axes != "DHW" or "CT" not in self.modalities):
            msg = "organ and chest speak of CT volumes; modalities must name CT and preparation.axes be DHW"
            raise ValueError(msg)
        if self.slide and (self.preparation.axes != "HW" or "SM" not in self.modalities):
            msg = "slide speaks of tiles of slides; modalities must name SM and preparation.axes be HW"
            raise ValueError(msg)
        if self.fusion == "probability" and self.activation != "softmax":
            msg = "fusion: probability averages softmax probabilities; activation must be softmax"
            raise ValueError(msg)
        return self


class TensorFormat(_Open):
    """One input or output of the network, as MONAI describes it."""

    type: str
    num_channels: int
    spatial_shape: tuple[int | str, ...]
    dtype: str
    value_range: tuple[float, ...] = ()
    is_patch_data: bool = False
    channel_def: dict[str, str]
    format: str = ""
    modality: str = ""


class NetworkDataFormat(_Open):
    """Inputs and outputs by name."""

    inputs: dict[str, TensorFormat]
    outputs: dict[str, TensorFormat]


class Metadata(_Open):
    """``configs/metadata.json`` of a MONAI Bundle with our block."""

    version: str
    monai_version: str
    pytorch_version: str
    task: str
    description: str
    authors: str
    copyright: str
    data_source: str = ""
    network_data_format: NetworkDataFormat
    eval_metrics: dict[str, Any] = Field(default_factory=dict)
    intended_use: str = ""
    references: tuple[str, ...] = ()
    medxai: MedxaiBlock

    @model_validator(mode="after")
    def _labels_agree(self) -> Self:
        named = [form.channel_def for form in self.network_data_format.outputs.values()]
        stated = [tuple(names[key] for key in sorted(names, key=int)) for names in named if _numbered(names)]
        if stated and not any(names in (self.medxai.labels, self.medxai.labels[1:]) for names in stated):
            msg = f"channel_def {list(stated[0])} and medxai.labels {list(self.medxai.labels)} disagree"
            raise ValueError(msg)
        return self


def read_metadata(path: Path) -> Metadata:
    """Read and check ``metadata.json``.

    Raises:
        BundleError: absent, not JSON, without the ``medxai`` block, or a field is wrong; one line that
            names the first wrong field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"has no configs/{path.name}; it is not a MONAI Bundle"
        raise BundleError(msg) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        msg = f"configs/{path.name} is not readable JSON ({error})"
        raise BundleError(msg) from error
    if isinstance(content, dict) and "medxai_fusion" in content:
        msg = "reads features of functional and diffusion MRI, not images; use it with `medxai brain explain`"
        raise BundleError(msg)
    if isinstance(content, dict) and "medxai_nuclei" in content:
        msg = "outlines nuclei and decides nothing; use it with `medxai slide nuclei`"
        raise BundleError(msg)
    if isinstance(content, dict) and "medxai" not in content:
        msg = "configs/metadata.json has no block 'medxai' (labels, modalities, preparation, activation); add one"
        raise BundleError(msg)
    try:
        return Metadata.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        msg = f"configs/metadata.json: {where}: {first['msg']}{more}"
        raise BundleError(msg) from error


def _numbered(names: dict[str, str]) -> bool:
    return bool(names) and all(key.isdigit() for key in names)
