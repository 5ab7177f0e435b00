"""Breast ultrasound, out of fold: decision and whether the maps lie on the lesions.

The maps are those of the fold's own network, which never saw the image or a near-duplicate of it. They are
computed from the fold weights in ``.training/breast_us`` and kept on the layer grid in
``docs/evidence/breast_us_maps.npz``, so that the figures can be recomputed without training again.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from tests.bench.entry import Entry

TRAINED = Path(".training/breast_us")
EVIDENCE = Path("docs/evidence")
MAPS = EVIDENCE / "breast_us_maps.npz"
PREDICTIONS = EVIDENCE / "breast_us_out_of_fold.csv"
METHODS = ("gradcam", "hirescam")
CONTROLS = ("random map", "centred Gaussian")
_REPEATS = 2000


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def refresh_evidence() -> None:
    """Recompute predictions and maps when fold weights and images are there; otherwise keep what is committed."""
    data = os.environ.get("MEDXAI_DATA")
    trained = TRAINED / "out_of_fold.csv"
    if not data or not trained.exists():
        return
    if MAPS.exists() and PREDICTIONS.exists() and PREDICTIONS.read_bytes() == trained.read_bytes():
        return
    import torch
    from safetensors.torch import load_file

    from medxai.explain.engine import explain
    from medxai.ingest.picture import read_picture
    from medxai.learn.breast_us import BLOCK, LABELS, SIZE
    from medxai.networks.efficientnet_lite import TARGET_LAYER, EfficientNetLite0
    from medxai.prepare.prepare import prepare

    EVIDENCE.mkdir(parents=True, exist_ok=True)
    rows = _rows(trained)
    network = EfficientNetLite0(len(LABELS), image_size=SIZE).eval()
    stored: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    for fold in sorted({row["fold"] for row in rows}):
        network.load_state_dict(load_file(TRAINED / f"fold{fold}.safetensors"))
        for row in (r for r in rows if r["fold"] == fold and r["label"] != "normal"):
            prepared = prepare(read_picture(Path(data) / "us_breast_busi" / row["path"]), BLOCK.preparation)
            x = torch.from_numpy(prepared.pixels)[None]
            index = LABELS.index(row["label"])
            maps = explain(network, x, methods=METHODS, classes=[index], layer=TARGET_LAYER)
            for method in METHODS:
                stored[method].append(maps.raw[method, index][0].numpy())
    order = [row["path"] for fold in sorted({r["fold"] for r in rows}) for row in rows
             if row["fold"] == fold and row["label"] != "normal"]  # fmt: skip
    arrays = {method: np.stack(values).astype(np.float32) for method, values in stored.items()}
    np.savez_compressed(MAPS, paths=np.array(order), **arrays)
    PREDICTIONS.write_bytes(trained.read_bytes())


def balanced() -> list[Entry]:
    """Balanced accuracy over the pooled out-of-fold predictions."""
    from medxai.learn.breast_us import results

    refresh_evidence()
    if not PREDICTIONS.exists():
        return []
    interval = results(PREDICTIONS)["balanced_accuracy"]
    against = f"BUSI, 5 folds by near-duplicate group ({interval.groups} groups), out of fold"
    return [Entry("breast_us_balanced_accuracy", interval.value, "1", 0.8, "higher", interval.n,
                  interval.low, interval.high, against)]  # fmt: skip


def localisation() -> list[Entry]:
    """Mass accuracy over lesion area and pointing game, beside the controls; needs the masks of MEDXAI_DATA."""
    data = os.environ.get("MEDXAI_DATA")
    refresh_evidence()
    if not data or not MAPS.exists():
        return []
    table, groups = measure(Path(data) / "us_breast_busi")
    write_table(table, groups)
    value, low, high = interval(table["gradcam"]["lift"], groups)
    against = "Grad-CAM energy inside the lesion over the lesion's share of the image, out of fold, true class"
    return [Entry("breast_us_mass_lift", value, "ratio", None, "higher", len(groups), low, high, against)]


def measure(folder: Path) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Per image: mass accuracy, lift and pointing hit of each method and control."""
    from PIL import Image

    from medxai.explain.fuse import enlarge
    from medxai.ingest.picture import read_picture
    from medxai.learn.breast_us import BLOCK, SIZE
    from medxai.prepare.grid import plan_grid

    labels = {row["path"]: row for row in _rows(folder / "labels.csv")}
    stored = np.load(MAPS)
    rng = np.random.default_rng(0)
    names = (*METHODS, *CONTROLS)
    table: dict[str, dict[str, list[float]]] = {n: {"mass": [], "lift": [], "hit": []} for n in names}
    groups = []
    for i, path in enumerate(stored["paths"].tolist()):
        row = labels[path]
        mask = np.asarray(Image.open(folder / row["mask"]).convert("L")) > 127
        grid = plan_grid(read_picture(folder / path), BLOCK.preparation)
        cells = stored[METHODS[0]][i].shape
        yy, xx = np.mgrid[-1 : 1 : complex(0, mask.shape[0]), -1 : 1 : complex(0, mask.shape[1])]
        maps = {m: stored[m][i] for m in METHODS} | {"random map": rng.random(cells).astype(np.float32)}
        placed = {n: grid.backward(np.maximum(enlarge(m[None], (SIZE, SIZE))[0], 0)) for n, m in maps.items()}
        placed["centred Gaussian"] = np.exp(-(yy**2 + xx**2) / (2 * 0.5**2)).astype(np.float32)
        groups.append(row["duplicate_group"])
        for name in names:
            total = float(placed[name].sum())
            mass = float(placed[name][mask].sum()) / total if total > 0 else float("nan")
            table[name]["mass"].append(mass)
            table[name]["lift"].append(mass / float(mask.mean()))
            top = placed[name] == placed[name].max()
            table[name]["hit"].append(float(mask[top].mean()) if total > 0 else float("nan"))
    return {n: {k: np.array(v) for k, v in t.items()} for n, t in table.items()}, groups


def interval(values: np.ndarray, groups: list[str]) -> tuple[float, float, float]:
    """Mean with its 95 % bootstrap interval over groups; an empty map counts as missing."""
    names, inverse = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(inverse == g) for g in range(len(names))]
    rng = np.random.default_rng(0)
    means = [
        float(np.nanmean(values[np.concatenate([members[g] for g in rng.integers(0, len(names), len(names))])]))
        for _ in range(_REPEATS)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.nanmean(values)), float(low), float(high)


def write_table(table: dict[str, dict[str, np.ndarray]], groups: list[str]) -> None:
    """Write ``docs/breast_us_localisation.md``."""
    lines = [
        "# Do the maps lie on the lesions? Breast ultrasound, out of fold",
        "",
        f"{len(groups)} BUSI images with a lesion ({len(set(groups))} groups of near-duplicates); each map is that",
        "of the network of the fold that never saw the image, for the true class. Mass accuracy is the share of the",
        "map's energy inside the lesion mask; lift is that over the lesion's share of the image; pointing game: the",
        "maximum lies in the lesion.",
        "Mean (95 % bootstrap interval over groups); empty maps are left out and counted.",
        "",
        "| map | mass accuracy | lift over area | pointing game | empty |",
        "|---|---|---|---|---|",
    ]
    for name, values in table.items():
        cells = ["{:.3f} ({:.3f}-{:.3f})".format(*interval(values[k], groups)) for k in ("mass", "lift", "hit")]
        lines.append(f"| {name} | {' | '.join(cells)} | {int(np.isnan(values['mass']).sum())} |")
    Path("docs/breast_us_localisation.md").write_text("\n".join(lines) + "\n")
