"""Bundles of networks that outline nuclei: what they answer is a mask, not a class.

A MONAI Bundle like the others, with a block ``medxai_nuclei`` in place of ``medxai``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from medxai.errors import BundleError
from medxai.networks.nuclei_unet import NucleiUNet
from medxai.predict.build import build_network, read_config
from medxai.predict.bundle import AllowList, bundle_sha256, locate_bundle
from medxai.predict.bundle_kind import read_block
from medxai.strict import Strict

#: Of the metadata.
BLOCK = "medxai_nuclei"
_WHAT = "does not outline nuclei"


class NucleiBlock(Strict):
    """What inference and explanation need beyond the network's own definition.

    Attributes:
        labels: of the logits.
        modalities: DICOM modalities.
        licence: SPDX name of the licence of the weights.
        caution: what whoever reads a result must know of the training.
    """

    labels: tuple[str, str] = ("tissue", "nucleus")
    modalities: Annotated[tuple[str, ...], Field(min_length=1)] = ("SM",)
    licence: Annotated[str, Field(min_length=1)]
    caution: Annotated[str, Field(min_length=1)]


def load_nuclei(name_or_path: str | Path, allow: AllowList | None = None) -> NucleiUNet:
    """Find a bundle, check its hash and return its network: eval mode, parameters without gradients.

    Args:
        name_or_path: name of a shipped bundle, or a folder.
        allow: trusted hashes; None for those of the shipped bundles.

    Raises:
        BundleError: not found, of another kind, malformed, or not on the allow-list.
    """
    path = locate_bundle(name_or_path)
    read_block(path, BLOCK, NucleiBlock, _WHAT)
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
    block, metadata = read_block(path, BLOCK, NucleiBlock, _WHAT)
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
