"""How ingest takes damaged files."""

from __future__ import annotations

from tests.bench.entry import Entry
from tests.ingest.fuzz import MEMORY, SECONDS, fuzz

_COUNT = 10_000


def damaged() -> list[Entry]:
    """Mutated files that ended in anything but an image or a reason."""
    outcomes, faults = fuzz(_COUNT)
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(outcomes.items()))
    limits = f"{SECONDS} s and {MEMORY >> 30} GiB for each of {_COUNT} mutated DICOM files: {words}"
    count = float(len(faults))
    return [Entry("fuzz_crashes", count, "files", 0.0, "lower", _COUNT, count, count, limits)]
