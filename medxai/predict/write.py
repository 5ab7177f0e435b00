"""Writing a bundle: metadata, a MONAI inference configuration, safetensors weights, model card, licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai.files import write_bytes, write_text
from medxai.predict.bundle_spec import MedxaiBlock, Metadata
from medxai.prepare.spec import AffineIntensity, PreparationSpec, WindowIntensity

if TYPE_CHECKING:
    from torch import nn

#: Transform for ``region: lungs``.
LUNGS = "medxai.prepare.monai_lungs.LungsAloned"
#: Expression that crops an image ``[C, H, W]`` around its centre to the shape of a window.
_CROP = (
    "lambda image: monai.transforms.CenterSpatialCrop("
    "[min(image.shape[1], round(image.shape[2] * {0} / {1})), min(image.shape[2], round(image.shape[1] * {1} / {0}))])"
    "(image)"
)


def write_bundle(
    path: Path,
    *,
    network_def: Mapping[str, Any],
    network: nn.Module,
    metadata: Metadata,
    card: str,
    licence: str,
) -> Path:
    """Write a MONAI Bundle that both medxai and MONAI's own tools can run.

    Args:
        path: bundle folder; files in it are replaced one by one, each atomically.
        network_def: ``{"_target_": class, argument: value}`` that rebuilds `network`.
        network: trained; its ``state_dict`` is stored as it is, contiguous.
        metadata: checked content of ``metadata.json``.
        card: Markdown of the model card.
        licence: text of ``LICENSE``.

    Returns:
        `path`.
    """
    from safetensors.torch import save

    configs = path / "configs"
    write_text(configs / "metadata.json", _json(metadata.model_dump(mode="json", exclude_none=True)))
    write_text(configs / "inference.json", _json(inference_config(network_def, metadata.medxai)))
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(path / "models" / "model.safetensors", save(weights))
    (path / "models" / "model.pt").unlink(missing_ok=True)
    write_text(path / "docs" / "README.md", card)
    write_text(path / "LICENSE", licence)
    return path


def inference_config(network_def: Mapping[str, Any], spec: MedxaiBlock) -> dict[str, Any]:
    """Return ``inference.json`` for MONAI: the same input up to interpolation, the central window alone.

    medxai reads ``network_def`` and nothing else; the rest contains MONAI expressions and serves
    ``monai.bundle``: ``run`` prints file and probabilities for every image in ``dataset_dir``.
    """
    window = list(spec.preparation.window)
    activation = {"softmax": True} if spec.activation == "softmax" else {"sigmoid": True}
    return {
        "imports": ["$import pathlib", "$import torch", "$import safetensors.torch as weights_file"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": dict(network_def),
        "network": "$@network_def.to(@device).eval()",
        "weights": "$weights_file.load_file(@bundle_root + '/models/model.safetensors')",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                *_transforms(spec.preparation),
                _on_image("SpatialPadd", spatial_size=window),
                _on_image("CenterSpatialCropd", roi_size=window),
            ],
        },
        "datalist": "$[{'image': str(p)} for p in sorted(pathlib.Path(@dataset_dir).iterdir())]",
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Activations", **activation},
        "labels": list(spec.labels),
        "initialize": ["$@network.load_state_dict(@weights)"],
        "run": [
            "$[print(d['image'], @postprocessing(@inferer(x['image'][None].to(@device), @network)[0]).tolist())"
            " for d, x in zip(@datalist, @dataset)]"
        ],
    }


def _transforms(spec: PreparationSpec) -> list[dict[str, Any]]:
    """MONAI transforms for our preparation; axes (d, h, w) run to superior, posterior, left."""
    steps: list[dict[str, Any]]
    if spec.axes == "DHW":
        steps = [
            _on_image("LoadImaged"),
            _on_image("EnsureChannelFirstd"),
            _on_image("Orientationd", axcodes="SPL"),
            *([] if spec.region is None else [{"_target_": LUNGS, "keys": "image", "fill": spec.fill}]),
            _on_image("Spacingd", pixdim=list(spec.spacing_mm or ()), mode="bilinear"),
        ]
    else:
        mode = "RGB" if spec.channels == 3 else "L"
        convert = f"$lambda picture: picture.convert('{mode}')"
        steps = [
            _on_image("LoadImaged", reader="PILReader", reverse_indexing=False, converter=convert),
            _on_image("EnsureChannelFirstd"),
        ]
        if spec.spacing_mm is None:
            if spec.fit == "crop":  # the largest part of the window's shape first, so that its scale is the window's
                steps.append({"_target_": "Lambdad", "keys": "image", "func": f"${_CROP.format(*spec.window)}"})
            size = max(spec.window)
            steps.append(
                _on_image("Resized", spatial_size=size, size_mode="longest", mode="bilinear", anti_aliasing=True)
            )
    return [*steps, *_intensity(spec)]


def _intensity(spec: PreparationSpec) -> list[dict[str, Any]]:
    intensity = spec.intensity
    padding = _on_image("SpatialPadd", spatial_size=list(spec.window), value=spec.fill)
    if isinstance(intensity, WindowIntensity):
        limits = {"a_min": intensity.low, "a_max": intensity.high, "b_min": 0.0, "b_max": 1.0, "clip": True}
        return [padding, _on_image("ScaleIntensityRanged", **limits)]
    if isinstance(intensity, AffineIntensity):
        values = {"subtrahend": list(intensity.mean), "divisor": list(intensity.std), "channel_wise": True}
        return [padding, _on_image("NormalizeIntensityd", **values)]
    return [padding, _on_image("NormalizeIntensityd", nonzero=intensity.floor is not None)]


def _on_image(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "keys": "image", **arguments}


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
