"""A tiny bundle that tests can change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from medxai.learn.card import Card
from medxai.networks.densenet3d import TARGET_LAYER, SmallDenseNet3d
from medxai.predict.bundle_spec import MedxaiBlock
from medxai.predict.write import write_bundle
from medxai.prepare.spec import PreparationSpec, WindowIntensity

BLOCK = MedxaiBlock(
    labels=("clean", "lesion"),
    modalities=("CT",),
    body_parts=("CHEST",),
    preparation=PreparationSpec(
        axes="DHW",
        window=(8, 16, 16),
        spacing_mm=(3.0, 3.0, 3.0),
        intensity=WindowIntensity(low=-1000, high=400),
        fill=-1024,
    ),
    target_layer=TARGET_LAYER,
    activation="sigmoid",
    fusion="lse",
    positive=("lesion",),
    licence="Apache-2.0",
)
CARD = Card(
    name="tiny",
    version="0.1.0",
    summary="For tests.",
    data="None.",
    split="None.",
    training="None.",
    results={},
    evaluation="None.",
    limits=("Untrained.",),
    reproduce="none",
    licence="Apache-2.0",
)


def store(path: Path, definition: dict[str, Any], network: nn.Module, card: Card, block: MedxaiBlock) -> Path:
    """Write a network as a bundle; returns its path."""
    return write_bundle(
        path,
        network_def=definition,
        network=network,
        metadata=card.metadata(block, task="test"),
        card=card.markdown(block),
        licence="Apache-2.0\n",
    )


def tiny_bundle(folder: Path, block: MedxaiBlock = BLOCK) -> tuple[Path, SmallDenseNet3d]:
    """Write an untrained bundle named ``tiny`` below `folder`; returns its path and the network."""
    torch.manual_seed(3)
    arguments = {"num_classes": 1, "init_features": 4, "growth_rate": 4, "layers": 1}
    network = SmallDenseNet3d(**arguments).eval()
    definition = {"_target_": "medxai.networks.densenet3d.SmallDenseNet3d", **arguments}
    return store(folder / "tiny", definition, network, CARD, block), network
