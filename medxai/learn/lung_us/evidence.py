"""Everything that was measured, as one object and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from medxai.learn.lung_us.peaks import DepthComparison
from medxai.learn.lung_us.protocol import Certainty, NetworkScores
from medxai.learn.lung_us.speed import Cost
from medxai.learn.metrics import Interval

#: Points of a rejection curve that are stored.
_POINTS = 101


@dataclass(frozen=True)
class NetworkEvidence:
    """A network with its run.

    Attributes:
        run: folder name.
        note: how it was asked for; empty when nobody noted it.
        cost: size and speed.
        scores: from its stored predictions.
    """

    run: str
    note: dict[str, Any]
    cost: Cost
    scores: NetworkScores


@dataclass(frozen=True)
class Repeated:
    """What repeated questions say of the frames of one network.

    Attributes:
        network: which.
        frames: lung frames that were asked again.
        of: held-out lung frames in all.
        kinds: aleatoric, epistemic and combined.
    """

    network: str
    frames: int
    of: int
    kinds: dict[str, Certainty]


@dataclass(frozen=True)
class Leak:
    """Frames dealt out singly against patients kept together, the same folds of both.

    Attributes:
        network: which.
        folds: that both have.
        epochs: of the leaking run.
        straddling: share of recordings with frames on both sides, by split.
        patients: frame score -> of the patient folds.
        leaking: frame score -> of the leaking folds.
        difference: frame score -> leaking less patients, interval over patients.
    """

    network: str
    folds: tuple[int, ...]
    epochs: int
    straddling: dict[str, float]
    patients: dict[str, Interval]
    leaking: dict[str, Interval]
    difference: dict[str, Interval]


@dataclass(frozen=True)
class Shipped:
    """The shipped bundle on patients that it did not learn from; they chose its epoch and temperature.

    Attributes:
        name: and version.
        sha256: of the bundle.
        recordings: of these patients; lungs and pictures of something else.
        balanced_accuracy: of lungs among them, interval over patients.
        recognised: pictures of something else that are declined, of how many.
        largest_difference: between probabilities of a frame by the bundle and by the network as it was trained.
        elsewhere: what it says of pictures from a folder that no training saw: name -> label and probability.
    """

    name: str
    sha256: str
    recordings: int
    balanced_accuracy: Interval
    recognised: tuple[int, int]
    largest_difference: float
    elsewhere: dict[str, tuple[str, float]]


@dataclass(frozen=True)
class Evidence:
    """All of it.

    Attributes:
        networks: by name.
        unfinished: networks without a finished fold.
        repeated: of the shipped network, or None.
        depths: of peaks with and without a finding.
        peaks: frames whose peak is known.
        leak: or None.
        shipped: or None.
        missing: what was not measured, and why.
    """

    networks: dict[str, NetworkEvidence]
    unfinished: tuple[str, ...]
    repeated: Repeated | None
    depths: tuple[DepthComparison, ...]
    peaks: int
    leak: Leak | None
    shipped: Shipped | None
    missing: tuple[str, ...]

    def json(self) -> str:
        """Return it as JSON with rounded numbers; nan becomes null."""
        return json.dumps(_plain(self), indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return _plain(value.as_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        chosen = np.unique(np.linspace(0, len(value) - 1, min(len(value), _POINTS)).round().astype(int))
        return [_plain(each) for each in value[chosen].tolist()]
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
