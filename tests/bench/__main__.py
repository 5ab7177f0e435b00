"""Run the benchmarks: all of them, or the entry that is named."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench import breast, chest, engine, studies
from tests.bench.entry import Entry, load, save

DOCS = Path("docs")
SUITES: dict[tuple[str, ...], Callable[[], list[Entry]]] = {
    ("gradcam_3d_96_over_floor",): engine.gradcam_over_floor,
    ("gradcam_3d_96_memory_over_inference",): engine.gradcam_memory,
    ("cli_import_seconds",): engine.cli_import,
    ("study_28x512_seconds",): studies.small_study,
    ("study_120x512_seconds", "study_120x512_peak_gib"): studies.large_study,
    ("breast_us_balanced_accuracy",): breast.balanced,
    ("breast_us_mass_lift",): breast.localisation,
    ("chest_ct_lopo_auroc",): chest.leave_one_out,
}


def main() -> int:
    """Measure, merge with what was measured before, print and write."""
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    known = [name for names in SUITES for name in names]
    if only and only not in known:
        print(f"unknown entry {only!r}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    entries = load(DOCS / "benchmarks.json")
    for names, suite in SUITES.items():
        if only and only not in names:
            continue
        print(f"measuring {', '.join(names)} ...", flush=True)
        found = suite()
        if not found:
            print("  not measured: it needs MEDXAI_DATA or the results of training", flush=True)
        for entry in found:
            entries[entry.name] = entry
            print(
                f"  {entry.name}: {entry.value:.4g} {entry.unit} ({entry.low:.4g} - {entry.high:.4g}), {entry.met}",
                flush=True,
            )
    ordered = {name: entries[name] for name in known if name in entries}
    import torch

    notes = [
        f"Machine of the last run: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__.split('+')[0]}, CPU only.",
        "",
        "Localisation on breast ultrasound with its controls: [breast_us_localisation.md](breast_us_localisation.md).",
    ]
    save(ordered, DOCS, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
