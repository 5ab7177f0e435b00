"""What the fusion network and its maps reached on the simulated cohort and on real connectomes: stored results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bench.entry import Entry

RESULTS = Path("docs/evidence/brain_fusion.json")


def _stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def simulated() -> list[Entry]:
    """AUROC on subjects of carriers that were not learnt from; mean and extremes of the seeds."""
    stored = _stored()
    if not stored:
        return []
    values = stored["arms"]["full"]["auroc"]["values"]
    words = f"simulated cohort with planted effects, carriers held out; mean and extremes of {len(values)} seeds"
    mean = stored["arms"]["full"]["auroc"]["mean"]
    return [Entry("fusion_simulated_auc", mean, "1", 0.9, "higher", len(values), min(values), max(values), words)]


def hits() -> list[Entry]:
    """Share of synergistic maps, of all modalities with an effect, whose largest value lies in the planted place."""
    stored = _stored()
    if not stored:
        return []
    kinds = stored["maps"]["full"]
    rows = kinds["inserted"]
    n = sum(row["n"] for row in rows.values())
    by = {name: row["hits"] for name, row in rows.items()}
    share = sum(row["n"] * row["hits"] for row in rows.values()) / n
    control = stored["maps"]["shuffled"]["inserted"]
    words = "inserted into the mean control; extremes are modalities: " + ", ".join(
        f"{name} {value:.2f} (published kind {kinds['published'][name]['hits']:.2f}, shuffled labels "
        f"{control[name]['hits']:.2f})"
        for name, value in by.items()
    )
    return [Entry("sam_planted_hits", share, "1", None, "higher", n, min(by.values()), max(by.values()), words)]


def genotypes() -> list[Entry]:
    """Accuracy on mice, each left out; Wilson's interval."""
    stored = _stored().get("mice")
    if not stored:
        return []
    n, p = stored["n"], stored["accuracy"]
    z = 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n)
    words = f"{n} mice, each left out; Wilson interval; p = {stored['p']:.4f}; linear {stored['linear_accuracy']:.3f}"
    return [Entry("mice_genotype_accuracy", p, "1", None, "higher", n, middle - half, min(1.0, middle + half), words)]
