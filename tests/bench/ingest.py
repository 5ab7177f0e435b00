"""How ingest takes damaged files, and files that others collected."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.entry import Entry, of_runs
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


_SLICES, _RUNS = 300, 3
#: Transfer syntaxes by the command of dcmtk that writes them, and JPEG 2000, which pydicom writes.
_SYNTAXES = {
    "implicit": ("dcmconv", "+ti"),
    "explicit": ("dcmconv", "+te"),
    "deflated": ("dcmconv", "+td"),
    "rle": ("dcmcrle",),
    "jpeg_lossless": ("dcmcjpeg",),
    "jpeg_ls": ("dcmcjpls",),
    "jpeg_2000": (),
}
READING = tuple(f"read_{_SLICES}_slices_{name}_{threads}_threads" for name in _SYNTAXES for threads in (1, 2))


def reading() -> list[Entry]:
    """Seconds to read a series of 300 x 512 x 512 into a volume, by transfer syntax, with one thread and with two."""
    import numpy as np

    from medxai.ingest.dicom_series import read_series
    from tests.bench.studies import write_series

    entries: dict[str, list[float]] = {name: [] for name in READING}
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_series(root / "plain", _SLICES)
        plain = sorted((root / "plain").iterdir())
        expected, _ = read_series(plain, "plain", threads=1)
        for syntax, command in _SYNTAXES.items():
            files = _written(plain, root / syntax, command)
            sizes[syntax] = sum(path.stat().st_size for path in files) / 2**20
            for run in range(_RUNS + 1):
                for threads in (1, 2):
                    begin = time.perf_counter()
                    volume, _ = read_series(files, syntax, threads=threads)
                    if run:  # the first starts the decoders
                        entries[f"read_{_SLICES}_slices_{syntax}_{threads}_threads"].append(time.perf_counter() - begin)
                    else:
                        assert np.array_equal(volume.pixels, expected.pixels)
            for path in files:
                path.unlink()
    words = "phantom chest, {:.0f} MiB of files; headers, identifiers, geometry and pixels to float32"
    return [
        of_runs(entry, runs, "s", None, "lower", words.format(sizes[entry.split("_slices_")[1].rsplit("_", 2)[0]]))
        for entry, runs in entries.items()
    ]


def _written(plain: list[Path], folder: Path, command: tuple[str, ...]) -> list[Path]:
    from pydicom import dcmread
    from pydicom.uid import JPEG2000Lossless

    from tests.tools import require_tool

    folder.mkdir()
    for path in plain:
        if command:
            line = [require_tool(command[0], system=True), *command[1:], str(path), str(folder / path.name)]
            subprocess.run(line, check=True, capture_output=True)
        else:
            dataset = dcmread(path)
            dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
            dataset.save_as(folder / path.name)
    return sorted(folder.iterdir())
