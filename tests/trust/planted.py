"""Pictures with a planted spot, a network that reads nothing else, and made-up results of known order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from medxai.predict.bundle_spec import MedxaiBlock
from medxai.prepare.spec import AffineIntensity, PreparationSpec
from medxai.trust.cohort.measures import FAITH, PLACE
from medxai.trust.cohort.result import CaseResult, MethodRow
from medxai.trust.cohort.table import Row

SIZE, CELL = 32, 4


class Spot(nn.Module):
    """Class 1 is the brightness of cells above the background's; a single logit on request."""

    def __init__(self, logits: int = 2) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(CELL)
        self.act = nn.ReLU()
        self.fc = nn.Linear(1, logits)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-30.0], [30.0]][-logits:]))
            self.fc.bias.copy_(torch.tensor([1.0, -1.0][-logits:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.cells(x)).flatten(2).mean(-1))


@dataclass(frozen=True)
class SpotBundle:
    """The part of a bundle that validation uses, without files."""

    logits: int = 2
    name: str = "spot"
    version: str = "1"
    sha256: str = "a" * 64

    @property
    def spec(self) -> MedxaiBlock:
        return MedxaiBlock(
            labels=("dark", "bright"),
            modalities=("US",),
            body_parts=("BREAST",),
            preparation=PreparationSpec(
                axes="HW", window=(SIZE, SIZE), intensity=AffineIntensity(mean=(100.0,), std=(50.0,))
            ),
            target_layer="act",
            activation="sigmoid" if self.logits == 1 else "softmax",
            licence="CC0-1.0",
        )


def pictures(folder: Path, count: int, per_patient: int = 2) -> list[Row]:
    """Noise with a spot somewhere away from the centre, and its mask."""
    folder.mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(0)
    rows = []
    for number in range(count):
        grey = source.integers(20, 60, (SIZE, SIZE)).astype(np.uint8)
        corner = [CELL * int(source.choice([0, 1, 5, 6])) for _ in range(2)]
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[corner[0] : corner[0] + 2 * CELL, corner[1] : corner[1] + 2 * CELL] = 255
        grey[mask > 0] = 240
        Image.fromarray(grey).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"{number}_mask.png")
        rows.append(Row(folder / f"{number}.png", folder / f"{number}_mask.png", "bright", f"p{number // per_patient}"))
    return rows


def made_up(
    figures: Mapping[str, tuple[float, float, float]], patients: int, noise: float = 0.02, label: str = "bright"
) -> list[CaseResult]:
    """Results of two cases a patient: method -> mean faithfulness by blur, by mean, and average precision.

    Controls are near 0.
    """
    source = np.random.default_rng(1)
    controls = {name: (0.0, 0.0, 0.05) for name in ("random", "centred_gaussian", "edges")}
    found = []
    for number in range(2 * patients):
        rows = {}
        for name, centre in {**figures, **controls}.items():
            blur, mean, place = (value + noise * source.normal() for value in centre)
            values = {f"{FAITH}_blur": blur, f"{FAITH}_mean": mean, FAITH: (blur + mean) / 2, PLACE: place}
            rows[name] = MethodRow(values, {})
        about = (f"k{number}", f"p{number // 2}", "spot", label, label, label)
        found.append(CaseResult(*about, 0.9, 0.1, "f", rows))
    return found


def without(result: CaseResult, method: str, measures: Sequence[str], reason: str) -> None:
    """Take values away from a made-up result."""
    for name in measures:
        result.rows[method].values[name] = math.nan
        result.rows[method].reasons[name] = reason
