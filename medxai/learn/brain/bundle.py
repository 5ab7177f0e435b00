"""The shipped fusion bundle: a network of the comparison as it was tested, with scaling, baseline and card.

Nothing is trained again for it, so that the card's figures are those of exactly these weights, rounded to half
precision as they are stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medxai.errors import SettingsError
from medxai.files import write_bytes, write_text
from medxai.learn.brain.comparison import build, cohort, folder, result, score
from medxai.learn.brain.planted import KINDS, mean_controls, mean_embeddings
from medxai.learn.brain.settings import BrainSettings
from medxai.learn.licence import APACHE
from medxai.learn.metrics import auroc, bootstrap
from medxai.learn.train import check_and_allow

Say = Callable[[str], None]
NAME, VERSION = "brain_fusion", "2.0.0"
#: Kind of map that it makes.
KIND = "inserted"
LABELS = ("control", "patient")
CAUTION = (
    "Trained on simulated subjects with planted effects: "
    "it shows how explanations are made and says nothing about people."
)


def store(settings: BrainSettings, out: Path, say: Say) -> list[str]:
    """Write ``brain_fusion`` below `out` from the first seed's network and test it as written.

    Returns:
        Problems of the bundle; none if it can be used.

    Raises:
        SettingsError: that network is not trained yet, or saw real carriers, whose terms of use would bind it.
    """
    import torch
    from safetensors.torch import load_file, save

    from medxai.learn.brain.train import predict

    seed = settings.seeds[0]
    made = result(settings, "full", seed)
    if made is None:
        msg = "the network of the first seed is not trained yet; run `medxai brain train`"
        raise SettingsError(msg, study=str(settings.output))
    if settings.cohort.carriers is not None:
        msg = "the shipped bundle is trained on synthetic carriers; leave cohort.carriers away"
        raise SettingsError(msg, study=str(settings.output))
    weights = load_file(folder(settings, "full", seed) / "model.safetensors")
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    network = build(settings, "full")
    network.load_state_dict(half)
    network.eval()
    drawn = cohort(settings, seed)
    test = drawn.cases("test")
    logits = predict(network, test)
    labels = test.labels.numpy()
    probabilities = torch.from_numpy(logits).softmax(1).numpy().astype(np.float64)
    interval = bootstrap(auroc(1), labels, probabilities, [drawn.subjects[i].carrier for i in drawn.rows["test"]])
    figures = score(labels, logits)
    first = drawn.subjects[0].features
    path = out / NAME
    metadata = {
        "version": VERSION,
        "monai_version": "1.6.1",
        "pytorch_version": "2.13.0",
        "task": "Simulated patients by functional and diffusion MRI",
        "description": "Hierarchical fusion of ALFF, dynamic, static and structural connectivity. " + CAUTION,
        "authors": "The medxai authors",
        "copyright": "The medxai authors",
        "data_source": f"{len(drawn.subjects)} simulated subjects (sample_cases/synthetic_brain.py).",
        "intended_use": "To test explanations of fusion networks; not for diagnosis.",
        "references": ["Shen et al. 2024, arXiv:2401.06780"],
        "eval_metrics": {"auroc": round(figures["auroc"], 4), "n": len(labels)},
        "medxai_fusion": {
            "labels": list(LABELS),
            "positive": LABELS[1],
            "regions": list(first.regions),
            "networks": list(first.networks),
            "fa_regions": list(first.fa_regions),
            "encoder": settings.maps.encoder,
            "pyramid": settings.maps.pyramid,
            **KINDS[KIND],
            "gamma": settings.maps.gamma,
            "licence": "Apache-2.0",
            "caution": CAUTION,
        },
    }
    options = settings.network.model_dump(mode="json")
    definition = {"_target_": "medxai.networks.hierarchical_fusion.HierarchicalFusion", "num_classes": 2, **options}
    write_text(path / "configs" / "metadata.json", json.dumps(metadata, indent=2) + "\n")
    write_text(path / "configs" / "inference.json", json.dumps({"network_def": definition}, indent=2) + "\n")
    write_bytes(path / "models" / "model.safetensors", save({k: v.contiguous() for k, v in half.items()}))
    drawn.scaling.write(path / "models" / "scaling.safetensors")
    baseline = {name: value.contiguous() for name, value in mean_embeddings(network, drawn).items()}
    write_bytes(path / "models" / "baseline.safetensors", save(baseline))
    healthy = {name: value.contiguous() for name, value in mean_controls(network, drawn).items()}
    write_bytes(path / "models" / "reference.safetensors", save(healthy))
    write_text(path / "docs" / "README.md", card(settings, figures, made, str(interval), len(labels)))
    write_text(path / "LICENSE", APACHE)
    say(f"{path}: AUROC {interval}")
    return check_and_allow(path, out)


def card(settings: BrainSettings, figures: dict[str, float], made: dict[str, Any], interval: str, n: int) -> str:
    """The model card."""
    options = settings.network
    places = made["maps"]["places"][KIND]
    shares = ", ".join(f"{name.upper()} {share:.2f}" for name, share in made["maps"]["shares"].items())
    hits = "; ".join(f"{name.upper()} {row['hits']:.2f} (near {row['near']:.2f})" for name, row in places.items())
    return f"""# brain_fusion {VERSION}

{CAUTION}

- **Network**: HierarchicalFusion (Shen et al. 2024, arXiv:2401.06780, rebuilt), channels {options.channels},
  width {options.width}, depth {options.depth}, strides {options.strides}; the published one is larger
  (docs/brain_fusion.md).
- **Data**: {settings.cohort.subjects} simulated subjects on {settings.cohort.synthetic} synthetic carriers
  (sample_cases/synthetic_brain.py). Effects in ALFF, static and dynamic connectivity, none in the structural one.
- **Licence**: Apache-2.0.
- **Use**: Research on explanations alone.

```
medxai brain train --config configs/brain_fusion.yaml --out bundles
```

## Split
By carrier; subjects of {settings.cohort.test} carriers test, those of one choose the epoch, the others are learnt from.

## Measured on the subjects of {settings.cohort.test} carriers that it never saw, n = {n}
AUROC {interval} (95 %, bootstrap over carriers: two, so that the interval says little), sensitivity
{figures["sensitivity"]:.2f}, specificity {figures["specificity"]:.2f}, accuracy {figures["accuracy"]:.2f}.

Synergistic maps of {made["maps"]["patients"]} patients, largest value in the planted place: {hits}.
Share of the evidence: {shares}.

## Limits
- No person was in the training. A result on a real scan has no meaning at all.
- Regions are the fifty of the simulation; other atlases are refused.
- The trust gate has no thresholds for it: no map of it is ever more than limited.
- Weights are stored in half precision; the figures are of the stored ones.
"""
