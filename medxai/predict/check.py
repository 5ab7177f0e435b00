"""What a bundle holds, and what is wrong with it, before anybody trusts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medxai.errors import BundleError
from medxai.predict.bundle import bundle_sha256
from medxai.predict.bundle_kind import has_block
from medxai.predict.bundle_spec import Metadata, read_metadata


def inspect_bundle(path: Path) -> dict[str, Any]:
    """Describe a bundle without loading its network and without consulting an allow-list.

    Returns:
        JSON-serialisable: name, version, sha256, task, labels, modalities, body parts, input, fusion,
        licence, network class, weight format and size.

    Raises:
        BundleError: the metadata cannot be read.
    """
    from medxai.predict import fusion_bundle, nuclei_bundle
    from medxai.predict.build import read_config
    from medxai.predict.fusion_check import inspect_fusion

    path = path.resolve()
    if has_block(path, fusion_bundle.BLOCK):
        return inspect_fusion(path)
    if has_block(path, nuclei_bundle.BLOCK):
        return nuclei_bundle.inspect_nuclei(path)
    metadata = read_metadata(path / "configs" / "metadata.json")
    spec = metadata.medxai
    weights = next((f for f in _weight_files(path) if f.is_file()), None)
    return {
        "name": path.name,
        "version": metadata.version,
        "sha256": bundle_sha256(path),
        "task": metadata.task,
        "labels": list(spec.labels),
        "positive": list(spec.positive),
        "modalities": list(spec.modalities),
        "body_parts": list(spec.body_parts),
        "preparation": spec.preparation.model_dump(mode="json"),
        "target_layer": spec.target_layer,
        "fusion": spec.fusion,
        "licence": spec.licence,
        "intended_use": metadata.intended_use,
        "network": read_config(path)["network_def"].get("_target_"),
        "weights": None if weights is None else weights.name,
        "weights_bytes": 0 if weights is None else weights.stat().st_size,
    }


def verify_bundle(path: Path) -> list[str]:
    """Return what is wrong with a bundle, one line each; an empty list means that it can be used.

    Builds the network, runs it once on zeros of the window's size and compares the output with the labels.
    """
    import torch

    from medxai.predict import fusion_bundle, nuclei_bundle
    from medxai.predict.build import build_network
    from medxai.predict.fusion_check import verify_fusion

    path = path.resolve()
    if has_block(path, fusion_bundle.BLOCK):
        return verify_fusion(path)
    if has_block(path, nuclei_bundle.BLOCK):
        return nuclei_bundle.verify_nuclei(path)
    try:
        metadata = read_metadata(path / "configs" / "metadata.json")
        bundle_sha256(path)
        network = build_network(path)
    except BundleError as error:
        return [error.reason]
    spec = metadata.medxai
    problems = _documents(path, metadata)
    if spec.target_layer and spec.target_layer.partition("#")[0] not in dict(network.named_modules()):
        problems.append(f"target_layer {spec.target_layer!r} is not in the network")
    size = (1, spec.preparation.channels, *spec.preparation.window)
    try:
        with torch.inference_mode():
            output = network(torch.zeros(size))
    except Exception as error:  # whatever a foreign network raises is one problem among others
        return [*problems, f"the network fails on an input of {list(size)}: {' '.join(str(error).split())[:160]}"]
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else None
    n = len(spec.labels)
    if shape not in {(1, n)} | ({(1, 1)} if n == 2 else set()):
        problems.append(f"the network returns {shape or type(output).__name__}, the labels need (1, {n})")
    elif not torch.isfinite(output).all():
        problems.append("the network returns NaN or infinite values for an empty input")
    return problems


def _documents(path: Path, metadata: Metadata) -> list[str]:
    problems = []
    if not (path / "docs" / "README.md").is_file():
        problems.append("docs/README.md (the model card) is missing")
    if not (path / "LICENSE").is_file():
        problems.append("LICENSE is missing")
    if not metadata.intended_use:
        problems.append("configs/metadata.json does not state intended_use")
    if sum(f.is_file() for f in _weight_files(path)) > 1:
        problems.append("models/ holds model.safetensors and model.pt; the second is never read, remove it")
    return problems


def _weight_files(path: Path) -> tuple[Path, Path]:
    return (path / "models" / "model.safetensors", path / "models" / "model.pt")
