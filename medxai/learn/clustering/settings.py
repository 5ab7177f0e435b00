"""What ``medxai train dceac`` reads: configs/dceac.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt

from medxai.networks.dceac import AttentionKind
from medxai.settings import checked, read_yaml
from medxai.strict import Strict

#: With and without the attention module; k-means on colours; the same encoder with the labels.
Arm = Literal["attention", "no_attention", "rgb", "supervised"]
ARMS: tuple[Arm, ...] = get_args(Arm)
#: Arms that cluster by a network.
CLUSTERED: tuple[Arm, ...] = ("attention", "no_attention")
Share = Annotated[float, Field(ge=0, le=1)]


class DataSettings(Strict):
    """Tiles.

    Attributes:
        folders: of tiles with ``labels.csv``, of pictures with ``NAME_mask``, or of pictures alone (no scores then);
            without any, synthetic textures are drawn.
        count: synthetic tiles.
        patients: synthetic patients.
        size: pixels along each side; larger pictures are cut.
        step: between cuts.
        tumour_from: of pictures with masks: least share of the mask in a tile with tumour.
        clean_below: a tile with at most this share is clean; what lies between is not used.
        tissue: tiles with a smaller share of tissue are left out, so that glass does not become a cluster.
        stain: ``tile`` divides every colour by what is nearly the brightest of its tile (the 80th percentile), so that
            stains do not become the clusters; ``none``.
        folds: groups (patients or pictures) are dealt into these; for every seed one is scored and one names clusters.
        seed: of textures and folds.
    """

    folders: tuple[Path, ...] = ()
    count: Annotated[int, Field(ge=30)] = 600
    patients: PositiveInt = 15
    size: Annotated[int, Field(multiple_of=16, ge=32)] = 128
    step: PositiveInt = 128
    tumour_from: Share = 0.25
    clean_below: Share = 0.01
    tissue: Share = 0.2
    stain: Literal["tile", "none"] = "tile"
    folds: Annotated[int, Field(ge=3)] = 5
    seed: int = 0


class NetworkSettings(Strict):
    """Size of `medxai.networks.dceac.Dceac`; for tiles of 512 pixels its widths are 32, 64, 128, 256.

    Attributes:
        clusters: K, which is no result of the method.
        widths: channels of the four blocks.
        attention: one weight for a position (``map``), or for each of its channels (``channels``).
        embedding: numbers that are clustered; None for the channels of the last block.
    """

    clusters: Annotated[int, Field(ge=2)] = 3
    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (16, 32, 64, 128)
    attention: AttentionKind = "map"
    embedding: PositiveInt | None = None


class AutoencoderSettings(Strict):
    """Step 1, see `medxai.learn.clustering.autoencoder.AutoencoderRecipe`."""

    epochs: PositiveInt = 8
    batch_size: Annotated[int, Field(ge=2)] = 16
    rate: PositiveFloat = 1e-3


class RefinementSettings(Strict):
    """Step 2, see `medxai.learn.clustering.refine.RefinementRecipe`."""

    updates: PositiveInt = 20
    every: PositiveInt | None = None
    batch_size: Annotated[int, Field(ge=2)] = 16
    rate: PositiveFloat = 1e-3
    gamma: Annotated[float, Field(ge=0)] = 0.1
    warmup: PositiveInt = 3
    tolerance: Share = 0.001
    least_share: Share = 0.02
    worst_error: Annotated[float, Field(gt=1)] = 3.0
    most_pull: PositiveFloat = 1000.0


class DceacSettings(Strict):
    """A whole comparison.

    Attributes:
        name: of its section on the page.
        output: folder of everything that is made; what is there is not made again.
        data: tiles.
        network: size.
        autoencoder: step 1.
        refinement: step 2.
        supervised_epochs: of the network that is given the labels.
        arms: what is compared.
        seeds: one network of every arm each; as many as folds score every tile once.
        permutations: of the chance level.
    """

    name: Literal["textures", "histology", "own"] = "own"
    output: Path
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    refinement: RefinementSettings = RefinementSettings()
    supervised_epochs: PositiveInt = 8
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = ARMS
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    permutations: Annotated[int, Field(ge=20)] = 500

    def of_folders(self, folders: Sequence[Path]) -> Self:
        """The same for tiles of these folders; no longer called textures."""
        data = self.data.model_copy(update={"folders": tuple(folders)})
        return self.model_copy(update={"data": data, "name": "own" if self.name == "textures" else self.name})


def load_dceac(path: Path, overrides: dict[str, Any] | None = None) -> DceacSettings:
    """Read a YAML file.

    Raises:
        SettingsError: unreadable, or a wrong value; the message names the field.
    """
    return checked(DceacSettings, read_yaml(path) | (overrides or {}), where=str(path))
