"""What nuclei learnt from points gained over labels that stay, on synthetic fields: stored results."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.entry import Entry

RESULTS = Path("docs/evidence/nuclei.json")


def gain() -> list[Entry]:
    """AJI of the whole method less that of labels that stay, same fields and seeds; interval over fields."""
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    pair = stored.get("gains", {}).get("full over fixed")
    if pair is None:
        return []
    row, arms = pair["aji"], stored["arms"]
    others = ", ".join(f"{arm} {found['aji']['mean']:.3f}" for arm, found in arms.items())
    words = f"synthetic fields, {len(row['by_seed'])} seeds; AJI {others}"
    return [Entry("nuclei_aji_gain", row["value"], "1", 0.0, "higher", row["n"], row["low"], row["high"], words)]
