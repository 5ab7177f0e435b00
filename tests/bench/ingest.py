"""How ingest takes damaged files, and files that others collected."""

from __future__ import annotations

from tests.bench.entry import Entry
from tests.ingest.corpus import outcomes, roots
from tests.ingest.fuzz import MEMORY, SECONDS, fuzz

_COUNT = 10_000
#: A voxel further than this from where its header says is misplaced.
_MISPLACED_MM = 0.05


def damaged() -> list[Entry]:
    """Mutated files that ended in anything but an image or a reason."""
    outcomes, faults = fuzz(_COUNT)
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(outcomes.items()))
    limits = f"{SECONDS} s and {MEMORY >> 30} GiB for each of {_COUNT} mutated DICOM files: {words}"
    count = float(len(faults))
    return [Entry("fuzz_crashes", count, "files", 0.0, "lower", _COUNT, count, count, limits)]


def collected() -> list[Entry]:
    """Share of inputs that became an image at its place or ended with a reason: no crash, no silent misplacement."""
    found = [outcome for root in roots().values() for outcome in outcomes(root)]
    good = sum(outcome.kind != "crash" and not outcome.off > _MISPLACED_MM for outcome in found)
    placed = sum(outcome.off == outcome.off for outcome in found)
    share = good / len(found)
    words = f"{len(found)} inputs of {len(roots())} collections; {placed} volumes compared with their headers' places"
    name = "corpus_files_without_silent_error_share"
    return [Entry(name, share, "share", 1.0, "higher", len(found), share, share, words)]
