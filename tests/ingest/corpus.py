"""Every file of pydicom, pydicom-data and the real data through ingest: what came out, and whether it lies right.

``python -m tests.ingest.corpus`` writes docs/ingest_corpus.md.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medxai.errors import MedxaiError
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.study import Study, Volume

PAGE = Path("docs/ingest_corpus.md")


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        name: first file, and how many more.
        kind: ``read``, ``refused`` (a study with a reason), ``rejected`` (a file with a reason) or ``crash``.
        words: shape and notes, or the reason.
        off: largest distance in mm between where a voxel lies and where its header says; NaN where that says nothing.
    """

    name: str
    kind: str
    words: str
    off: float = float("nan")


def roots() -> dict[str, Path]:
    """Folders that are here, by title."""
    import pydicom

    found = {"pydicom": Path(pydicom.__file__).parent / "data"}
    extra = importlib.util.find_spec("data_store")
    if extra is not None and extra.submodule_search_locations:
        found["pydicom-data"] = Path(next(iter(extra.submodule_search_locations)))
    real = os.environ.get("MEDXAI_DATA")
    if real:
        found |= {f"real data: {path.name}": path for path in sorted(Path(real).iterdir()) if path.is_dir()}
    return found


def outcomes(root: Path) -> Iterator[Outcome]:
    """What becomes of everything below a folder, one input after the other."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = discover([root], Path(folder))
        except MedxaiError as error:
            yield Outcome(root.name, "rejected", error.reason)
            return
        for refused in found.rejected:
            yield Outcome(refused.path.name, "rejected", refused.error.reason)
        for source in found.sources:
            more = f" and {len(source.files) - 1} more" if len(source.files) > 1 else ""
            name = f"{source.files[0].name}{more}"
            try:
                study = read_study(source)
            except MedxaiError as error:
                yield Outcome(name, "refused", error.reason)
            except Exception as error:  # what the corpus is there to find
                yield Outcome(name, "crash", f"{type(error).__name__}: {error}")
            else:
                yield Outcome(name, "read", _describe(study), misplaced(study.volume))


def misplaced(volume: Volume) -> float:
    """Largest distance in mm between voxels by the volume's affine and by the headers (PS3.3 C.7.6.2.1.1)."""
    if volume.axes != "DHW" or not volume.source or volume.positions is None:  # a mosaic's slices have no headers
        return float("nan")
    height, width = volume.shape[1:]
    worst = 0.0
    for d in range(volume.shape[0]):
        if len(volume.source) > 1 or volume.shape[0] == 1:
            header = volume.source[d]
            place, directions = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
            spacing = header.get("PixelSpacing")
            if place is None:  # enhanced with one frame
                return float("nan")
        else:
            header = volume.source[0]
            shared = header.get("SharedFunctionalGroupsSequence", [None])[0]
            groups = [header.PerFrameFunctionalGroupsSequence[volume.frame_numbers[d] - 1], shared]

            def value(sequence: str, name: str, groups: Sequence[object] = groups) -> object:
                return next(g[sequence][0].get(name) for g in groups if g is not None and sequence in g)  # type: ignore[index, operator]

            place = value("PlanePositionSequence", "ImagePositionPatient")
            directions = value("PlaneOrientationSequence", "ImageOrientationPatient")
            spacing = value("PixelMeasuresSequence", "PixelSpacing")
        row, column = np.array(directions[:3], float), np.array(directions[3:], float)
        for h, w in ((0, 0), (height - 1, 0), (0, width - 1), (height - 1, width - 1)):
            stated = np.array(place, float) + row * float(spacing[1]) * w + column * float(spacing[0]) * h
            worst = max(worst, float(np.linalg.norm((volume.affine @ [d, h, w, 1])[:3] - stated)))
    return worst


def _describe(study: Study) -> str:
    volume = study.volume
    words = f"{volume.modality} {volume.axes} {' x '.join(map(str, volume.pixels.shape))}"
    return "; ".join([words, *study.notes])


def page(found: dict[str, list[Outcome]]) -> str:
    """The table of outcomes as Markdown."""
    kinds = Counter(outcome.kind for many in found.values() for outcome in many)
    placed = [outcome.off for many in found.values() for outcome in many if outcome.off == outcome.off]
    each = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    lines = [
        "# What ingest makes of files that others collected",
        "",
        "Every file of pydicom's test data and of the real data, through discovery and reading. What is *refused* or",
        "*rejected* ends in quarantine with these words, the rest became images. `python -m tests.ingest.corpus`",
        "writes this page.",
        "",
        f"In all {sum(kinds.values())} inputs: {each}. Of {len(placed)} volumes whose headers state a place, the voxel",
        f"furthest from it is off by {max(placed, default=0.0):.1g} mm.",
    ]
    for title, many in found.items():
        rows = Counter((o.kind, o.words if o.kind != "read" or len(many) < 80 else "") for o in many)
        first: dict[tuple[str, str], str] = {}
        for o in many:
            first.setdefault((o.kind, o.words if o.kind != "read" or len(many) < 80 else ""), o.name)
        lines += ["", f"## {title}", "", "| inputs | outcome | what is said | for instance |", "|---|---|---|---|"]
        for (kind, words), count in sorted(rows.items()):
            said = " ".join(words.split()).replace("|", "/")
            lines.append(f"| {count} | {kind} | {said[:200]} | {first[kind, words]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    found = {title: list(outcomes(root)) for title, root in roots().items()}
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
