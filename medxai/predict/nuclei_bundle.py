"""Bundles of networks that outline nuclei: what they answer is a mask, not a class.

A MONAI Bundle like the others, with a block ``medxai_nuclei`` in place of ``medxai``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medxai.errors import BundleError
from medxai.networks.nuclei_unet import NucleiUNet
from medxai.predict.build import build_network, read_config
from medxai.predict.bundle import AllowList, bundle_sha256, locate_bundle


class NucleiBlock(BaseModel):
    """What inference and explanation need beyond the network's own definition.

    Attributes:
        labels: of the logits.
        modalities: DICOM modalities.
        licence: SPDX name of the licence of the weights.
        caution: what whoever reads a result must know of the training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, str] = ("tissue", "nucleus")
    modalities: Annotated[tuple[str, ...], Field(min_length=1)] = ("SM",)
    licence: Annotated[str, Field(min_length=1)]
    caution: Annotated[str, Field(min_length=1)]


def is_nuclei(path: Path) -> bool:
    """Whether the bundle at `path` outlines nuclei."""
    try:
        return "medxai_nuclei" in json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def nuclei_block(path: Path) -> NucleiBlock:
    """Read the block of the bundle at `path`.

    Raises:
        BundleError: of another kind, or malformed.
    """
    if not is_nuclei(path):
        msg = f"bundle {path.name} does not outline nuclei: its metadata has no block 'medxai_nuclei'"
        raise BundleError(msg)
    content: dict[str, Any] = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    try:
        return NucleiBlock.model_validate(content["medxai_nuclei"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        msg = f"bundle {path.name}: configs/metadata.json: medxai_nuclei.{where}: {first['msg']}"
        raise BundleError(msg) from error


def load_nuclei(name_or_path: str | Path, allow: AllowList | None = None) -> NucleiUNet:
    """Find a bundle, check its hash and return its network: eval mode, parameters without gradients.

    Args:
        name_or_path: name of a shipped bundle, or a folder.
        allow: trusted hashes; None for those of the shipped bundles.

    Raises:
        BundleError: not found, of another kind, malformed, or not on the allow-list.
    """
    path = locate_bundle(name_or_path)
    nuclei_block(path)
    (AllowList.shipped() if allow is None else allow).check(path.name, bundle_sha256(path))
    network = build_network(path)
    if not isinstance(network, NucleiUNet):
        msg = f"bundle {path.name}: network_def is a {type(network).__name__}, not a NucleiUNet"
        raise BundleError(msg)
    return network


def inspect_nuclei(path: Path) -> dict[str, Any]:
    """Describe a bundle without loading its network and without consulting an allow-list; JSON-serialisable.

    Raises:
        BundleError: the metadata are wrong.
    """
    block = nuclei_block(path)
    metadata = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    weights = path / "models" / "model.safetensors"
    return {
        "name": path.name,
        "version": str(metadata.get("version", "")),
        "sha256": bundle_sha256(path),
        "task": metadata.get("task", ""),
        "labels": list(block.labels),
        "modalities": list(block.modalities),
        "network": read_config(path)["network_def"],
        "caution": block.caution,
        "licence": block.licence,
        "intended_use": metadata.get("intended_use", ""),
        "weights": weights.name if weights.is_file() else None,
        "weights_bytes": weights.stat().st_size if weights.is_file() else 0,
    }


def verify_nuclei(path: Path) -> list[str]:
    """Return what is wrong with a bundle, one line each; runs the network on an even field."""
    import torch

    try:
        network = load_nuclei(path, AllowList.of(path))
    except BundleError as error:
        return [error.reason]
    problems = [f"{name} is missing" for name in ("docs/README.md", "LICENSE") if not (path / name).is_file()]
    with torch.inference_mode():
        logits = network(torch.full((1, 3, 64, 96), 0.8))
    if logits.shape != (1, 2, 64, 96) or not torch.isfinite(logits).all():
        problems.append(f"the network returns {tuple(logits.shape)} for a field of 64 x 96, or NaN")
    return problems
