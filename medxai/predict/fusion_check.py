"""What a bundle of a fusion network holds, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medxai.errors import BundleError, MedxaiError
from medxai.predict.bundle import AllowList
from medxai.predict.fusion_bundle import load_fusion


def inspect_fusion(path: Path) -> dict[str, Any]:
    """Describe a bundle without loading its network and without consulting an allow-list; JSON-serialisable.

    Raises:
        BundleError: the metadata are wrong.
    """
    bundle = load_fusion(path, AllowList.of(path))
    metadata = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    weights = path / "models" / "model.safetensors"
    return {
        "name": bundle.name,
        "version": bundle.version,
        "sha256": bundle.sha256,
        "task": metadata.get("task", ""),
        "labels": list(bundle.labels),
        "positive": [bundle.spec.positive],
        "modalities": list(bundle.scaling().shapes),
        "shapes": {name: list(shape) for name, shape in bundle.scaling().shapes.items()},
        "layers": bundle.layers,
        "caution": bundle.spec.caution,
        "licence": bundle.spec.licence,
        "intended_use": metadata.get("intended_use", ""),
        "weights": weights.name if weights.is_file() else None,
        "weights_bytes": weights.stat().st_size if weights.is_file() else 0,
    }


def verify_fusion(path: Path) -> list[str]:
    """Return what is wrong with a bundle, one line each; runs the network on the mean training subject."""
    import torch

    from medxai.prepare.brain.scaling import spatial

    try:
        bundle = load_fusion(path, AllowList.of(path))
        network, scaling, baseline = bundle.network(), bundle.scaling(), bundle.baseline()
        calls = network.target_calls(None, **bundle.layers)
    except MedxaiError as error:
        return [error.reason if isinstance(error, BundleError) else str(error)]
    problems = [f"{name} is missing" for name in ("docs/README.md", "LICENSE") if not (path / name).is_file()]
    absent = [name for name in network.modalities if name not in scaling.shapes or name not in baseline]
    if absent:
        return [*problems, f"scaling or baseline lacks {', '.join(absent)}"]
    modules = dict(network.named_modules())
    problems += [
        f"layer {call} is not in the network" for call in calls.values() if call.partition("#")[0] not in modules
    ]
    regions = {"sfc": bundle.spec.regions, "dfc": bundle.spec.regions, "fa": bundle.spec.fa_regions}
    for name, named in regions.items():
        if name in scaling.shapes and len(named) != scaling.shapes[name][0]:
            problems.append(f"{name} has {scaling.shapes[name][0]} regions, the metadata name {len(named)}")
    inputs = {name: spatial(name, torch.zeros(1, *scaling.shapes[name])) for name in network.modalities}
    with torch.inference_mode():
        logits = network(inputs)
    if logits.shape != (1, len(bundle.labels)) or not torch.isfinite(logits).all():
        problems.append(f"the network returns {tuple(logits.shape)} for {len(bundle.labels)} labels, or NaN")
    return problems
