"""What ``medxai search`` reads: configs/search_*.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt

from medxai.settings import checked, read_yaml
from medxai.strict import Strict

#: What is trained: networks of the space by how their operations were chosen, and networks drawn by hand.
Arm = Literal[
    "searched", "random", "shared_random", "ranked", "hand_made", "published_strides",
    "small_densenet", "densenet3d121", "resnet3d101", "mc3_18",
]  # fmt: skip
ARMS: tuple[Arm, ...] = get_args(Arm)
Shape = tuple[PositiveInt, PositiveInt, PositiveInt]


Share = Annotated[float, Field(ge=0, lt=1)]


class DataSettings(Strict):
    """Synthetic cases: how many, and the size of the input.

    Attributes:
        train: cases for searching and training.
        test: other patients, on which results are measured.
        window: input of the trained networks, voxels ``(D, H, W)``.
        spacing_mm: of these voxels.
        search_window: smaller input of the search, by averaging; the published search does the same.
    """

    train: Annotated[int, Field(ge=12)] = 480
    test: Annotated[int, Field(ge=12)] = 240
    window: Shape = (16, 64, 64)
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (5.0, 5.0, 5.0)
    search_window: Shape = (16, 32, 32)


class SpaceSettings(Strict):
    """The space: see `medxai.networks.covidnet3d.Architecture`."""

    size: Literal["S", "L"] = "S"
    depth: Literal["kept", "published"] = "kept"
    placement: Literal["centred", "published"] = "centred"


class SearchOptions(Strict):
    """The search: see `medxai.learn.search.search.SearchRecipe`."""

    epochs: PositiveInt = 40
    batch_size: PositiveInt = 16
    rate: PositiveFloat = 1e-3
    decay: Annotated[float, Field(ge=0)] = 5e-4
    architecture_rate: PositiveFloat = 5e-2
    architecture_betas: tuple[Share, Share] = (0.5, 0.9)
    architecture_decay: Annotated[float, Field(ge=0)] = 1e-3
    first_temperature: PositiveFloat = 5.0
    last_temperature: PositiveFloat = 0.5
    warmup: Annotated[int, Field(ge=0)] = 8


class CostOptions(Strict):
    """The cost term.

    Attributes:
        kind: what is counted; latency is measured on this machine.
        weight: beside the cross-entropy, of the expected share of the dearest path; 0 searches for accuracy alone.
        front: further weights, searched once each and trained, for the front of error and cost.
    """

    kind: Literal["macs", "parameters", "latency"] = "macs"
    weight: Annotated[float, Field(ge=0)] = 0.0
    front: tuple[PositiveFloat, ...] = ()


class RankOptions(Strict):
    """The training-free filter: of so many random architectures the one with the best score is trained."""

    candidates: PositiveInt = 40
    cases: PositiveInt = 24
    seeds: PositiveInt = 3


class TrainOptions(Strict):
    """Training from random weights, the same for every network: see `medxai.learn.loop.Recipe`."""

    epochs: PositiveInt = 6
    batch_size: PositiveInt = 16
    rate: PositiveFloat = 2e-3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    decay: Annotated[float, Field(ge=0)] = 0.02


class SearchSettings(Strict):
    """A whole comparison.

    Attributes:
        output: folder of everything that is made; what is there is not made again.
        data: synthetic cases.
        space: of the search.
        search: bilevel optimisation.
        cost: optional second aim.
        ranking: training-free filter.
        training: of each network.
        arms: what is compared.
        seeds: one network of every arm each.
        hand_made: operation of all cells of the arm ``hand_made``.
    """

    output: Path
    data: DataSettings = DataSettings()
    space: SpaceSettings = SpaceSettings()
    search: SearchOptions = SearchOptions()
    cost: CostOptions = CostOptions()
    ranking: RankOptions = RankOptions()
    training: TrainOptions = TrainOptions()
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = ARMS[:8]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    hand_made: str = "k3e6"


def load_search(path: Path, overrides: dict[str, Any] | None = None) -> SearchSettings:
    """Read a YAML file.

    Raises:
        SettingsError: unreadable, or a wrong value; the message names the field.
    """
    return checked(SearchSettings, read_yaml(path) | (overrides or {}), where=str(path))
