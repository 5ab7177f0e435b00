"""The shipped bundle of nuclei: a network of the comparison as it was scored, with its card."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from medxai.errors import SettingsError
from medxai.files import write_bytes, write_text
from medxai.learn.card import INTENDED_USE
from medxai.learn.licence import creative_commons
from medxai.learn.nuclei.comparison import result, trained
from medxai.learn.nuclei.report import summary
from medxai.learn.nuclei.settings import Arm, NucleiSettings
from medxai.learn.train import check_and_allow

Say = Callable[[str], None]
NAME, VERSION = "nuclei", "1.0.0"
ARM: Arm = "full"
CAUTION = (
    "Trained on synthetic ellipses alone and never tested against annotated real nuclei: counts are not to be trusted."
)
REFERENCES = ("Wang et al. 2024, arXiv:2406.16427", "Qu et al., IEEE TMI 2020", "Jiang et al., IEEE TIP 2021")


def store(settings: NucleiSettings, out: Path, say: Say) -> list[str]:
    """Write ``nuclei`` below `out` from the first seed's network and test it as written.

    Returns:
        Problems of the bundle; none if it can be used.

    Raises:
        SettingsError: that network is not trained yet, or saw fields of one's own, whose licence nobody stated.
    """
    from safetensors.torch import save

    seed = settings.seeds[0]
    if result(settings, ARM, seed) is None:
        msg = "the full network of the first seed is not trained yet; run `medxai train nuclei` first"
        raise SettingsError(msg, study=str(settings.output))
    if settings.data.train is not None:
        msg = "the shipped bundle is trained on synthetic fields; leave data.train and data.test away"
        raise SettingsError(msg, study=str(settings.output))
    network, found, path = trained(settings, ARM, seed), summary(settings), out / NAME
    chosen = settings.network
    definition = {
        "_target_": "medxai.networks.nuclei_unet.NucleiUNet",
        "width": chosen.width,
        "radius": chosen.radius,
        "mpp": chosen.mpp,
        "tile": chosen.tile,
        "detects": network.detects,
    }
    fields = found["fields"]
    metadata = {
        "version": VERSION,
        "monai_version": installed("monai"),
        "pytorch_version": installed("torch").partition("+")[0],
        "task": "Nuclei in haematoxylin and eosin, learnt from points",
        "description": f"Outlines of nuclei after DoNuSeg. {CAUTION}",
        "authors": "The medxai authors",
        "copyright": "The medxai authors",
        "data_source": f"{fields['train']} synthetic fields (sample_cases/synthetic_nuclei.py).",
        "intended_use": INTENDED_USE,
        "references": list(REFERENCES),
        "eval_metrics": {name: round(_of_seed(found, name), 4) for name in ("dice", "aji", "pq")},
        "medxai_nuclei": {"licence": "CC-BY-4.0", "caution": CAUTION},
    }
    write_text(path / "configs" / "metadata.json", json.dumps(metadata, indent=2) + "\n")
    write_text(path / "configs" / "inference.json", json.dumps({"network_def": definition}, indent=2) + "\n")
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    write_bytes(path / "models" / "model.safetensors", save(weights))
    write_text(path / "docs" / "README.md", card(settings, found))
    write_text(
        path / "LICENSE", creative_commons("the medxai authors, synthetic fields", "weights learnt from the fields.")
    )
    say(f"{path}: AJI {_of_seed(found, 'aji'):.3f}")
    return check_and_allow(path, out)


def card(settings: NucleiSettings, found: dict[str, Any]) -> str:
    """The model card."""
    fields, training = found["fields"], settings.training
    rows = []
    for name in ("dice", "aji", "object_dice", "pq", "detection_f1"):
        row = found["arms"][ARM][name]
        span = row["interval"]
        rows.append(
            f"| {name} | {_of_seed(found, name):.3f} | {row['mean']:.3f} ({span['low']:.3f}-{span['high']:.3f}) | "
            f"{fields['test']} fields, {fields['nuclei']} nuclei |"
        )
    table = "\n".join(rows)
    return f"""# {NAME} {VERSION}

Outlines of nuclei in haematoxylin and eosin, learnt from one point each. {CAUTION}

**Intended use.** {INTENDED_USE}

| | |
|---|---|
| labels | tissue, nucleus |
| input | RGB in 0..1, any size, {settings.network.mpp:g} micrometres per pixel, nuclei of about \
{settings.network.radius:g} pixels radius |
| network | NucleiUNet, width {settings.network.width:g} of ResNet-34, from random weights |
| licence of the weights | CC-BY-4.0 |

## Data
{fields["train"]} synthetic fields of {settings.data.size} pixels with {fields["points"]} points \
(sample_cases/synthetic_nuclei.py, seed {settings.data.seed}). Masks were not read.

## Split
Fields that are scored are drawn from another seed ({settings.data.seed + 1}); thresholds were chosen on fields of yet
others, with their masks in view.

## Training
{training.epochs} epochs, batches of {training.batch_size}, Adam {training.rate:g}, labels chosen anew every
{settings.selection.every} epochs after {settings.selection.warmup} (docs/nuclei.md).

```
medxai train nuclei --out bundles
```

## Results
These weights, and the mean over {found["arms"][ARM]["seeds"]} networks with its 95 % interval (bootstrap over fields).

| measure | these weights | mean over seeds | n |
|---|---|---|---|
{table}

## Limits
- Never tested against annotated real nuclei.{_compared(found)}
- Synthetic nuclei are ellipses: lobed, spindle-shaped and mitotic ones were never seen, nor folds, ink, blur of focus.
- Other stains and magnifications were not tested.
- Evidence compares pixels about a seed, not nuclei with each other.
- The trust gate has no thresholds for it: outlines are not judged.

## References
{"; ".join(REFERENCES)}
"""


def _compared(found: dict[str, Any]) -> str:
    """A sentence on labels that simply stay, where those were trained too."""
    if "full over kept" not in found["gains"]:
        return ""
    row = found["gains"]["full over kept"]["aji"]
    return (
        f"\n- Against the same labels from points kept to the end, AJI differs by {row['value']:+.3f} "
        f"({row['low']:+.3f} to {row['high']:+.3f}); docs/nuclei.md has all comparisons."
    )


def _of_seed(found: dict[str, Any], name: str) -> float:
    return float(found["arms"][ARM][name]["values"][0])
