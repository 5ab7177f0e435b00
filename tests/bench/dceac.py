"""What clustering without labels reached on synthetic textures: stored results."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.entry import Entry

RESULTS = Path("docs/evidence/dceac.json")


def accuracy() -> list[Entry]:
    """Accuracy on tiles of other patients, clusters named by tiles that are not scored; interval over patients."""
    stored = json.loads(RESULTS.read_text()).get("textures") if RESULTS.exists() else None
    if not stored:
        return []
    rows = stored["rows"]
    pooled, mean = rows["attention/refined"]["pooled_accuracy"], rows["attention/refined"]["accuracy"]["mean"]
    others = ", ".join(
        f"{name} {row['accuracy']['mean']:.3f}" for name, row in rows.items() if name != "attention/refined"
    )
    words = f"synthetic textures, patients held out, {rows['attention/refined']['seeds']} seeds; {others}"
    return [
        Entry("dceac_texture_accuracy", mean, "1", 0.9, "higher", pooled["n"], pooled["low"], pooled["high"], words)
    ]
