"""Scans of a BIDS data set, raw or as fMRIPrep writes it: which files belong to which subject."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medxai.errors import IngestError
from medxai.prepare.brain.settings import FeatureSettings
from medxai.study import SourceFiles

_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
#: Endings of given structural matrices.
_MATRICES = (".tsv", ".csv", ".txt", ".edgelist", ".mat")


@dataclass(frozen=True)
class Scans:
    """Files of one subject; None for what is not there.

    Attributes:
        subject: with its prefix, ``sub-01``: the pseudonym of the data set.
        bold: functional series of four axes.
        confounds: table of the series.
        mask: brain on the series' grid.
        white_matter: probability in the space of the series.
        csf: likewise.
        dwi: diffusion series of four axes; ``.bval`` and ``.bvec`` lie beside it.
        matrix: structural connectivity made by another program, where there is no diffusion series.
        bold_volumes: instead of `bold`, DICOM volumes of a functional series.
        dwi_volumes: instead of `dwi`, likewise.
        fault: why this subject cannot be computed, where that is known already.
    """

    subject: str
    bold: Path | None = None
    confounds: Path | None = None
    mask: Path | None = None
    white_matter: Path | None = None
    csf: Path | None = None
    dwi: Path | None = None
    matrix: Path | None = None
    bold_volumes: tuple[SourceFiles, ...] = ()
    dwi_volumes: tuple[SourceFiles, ...] = ()
    fault: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read, gradients and sidecars included."""
        named = (self.bold, self.confounds, self.mask, self.white_matter, self.csf, self.dwi, self.matrix)
        found = [path for path in named if path is not None]
        for path in (self.bold, self.dwi):
            if path is not None:
                stem = path.name.removesuffix(".gz").removesuffix(".nii")
                beside = (path.with_name(stem + end) for end in (".json", ".bval", ".bvec"))
                found += [file for file in beside if file.is_file()]
        found += [path for volume in (*self.bold_volumes, *self.dwi_volumes) for path in volume.files]
        return tuple(found)


def subjects(folder: Path) -> tuple[str, ...]:
    """Names of the subject folders, in order.

    Raises:
        IngestError: there is none.
    """
    if not folder.is_dir():
        raise IngestError("is no folder", study=str(folder))
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and _SUBJECT.fullmatch(path.name))
    if not found:
        raise IngestError("holds no sub-* folder; a BIDS data set is needed", study=str(folder))
    return tuple(found)


def scans_of(folder: Path, subject: str, settings: FeatureSettings) -> Scans:
    """Files of one subject.

    Preprocessed series (``desc-preproc``) are taken before raw ones. Entities of the settings choose between several.

    Raises:
        IngestError: several series fit, or none of any kind.
    """
    root = folder / subject
    if settings.session:
        root = root / f"ses-{settings.session}"
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    wanted = {"task": settings.task, "space": settings.space, "run": settings.run}
    bold = _one([f for f in files if _kind(f) == "bold" and f.parent.name == "func"], wanted, subject, "functional")
    dwi = _one([f for f in files if _kind(f) == "dwi" and f.parent.name == "dwi"], {}, subject, "diffusion")
    matrices = [f for f in files if f.parent.name == "dwi" and f.suffix.lower() in _MATRICES and "relmat" in f.name]
    matrix = _one(matrices, {}, subject, "structural") if dwi is None else None
    if bold is None and dwi is None and matrix is None:
        asked = ", ".join(f"{name}-{value}" for name, value in wanted.items() if value)
        words = f"has no functional or diffusion series{' with ' + asked if asked else ''}"
        raise IngestError(words, study=subject)
    confounds = mask = white_matter = csf = None
    if bold is not None:
        own, space = _entities(bold), _entities(bold).get("space", "")
        runs: dict[str, str | None] = {name: own[name] for name in ("sub", "ses", "task", "run", "acq") if name in own}
        tables = [f for f in files if f.name.endswith("desc-confounds_timeseries.tsv") and _has(f, runs)]
        confounds = _one(tables, {}, subject, "confounds")
        same = [f for f in files if "desc-brain_mask.nii" in f.name and _has(f, runs)]
        mask = _one([f for f in same if _entities(f).get("space", "") == space], {}, subject, "mask")
        anatomy = [f for f in files if "_probseg.nii" in f.name and _entities(f).get("space", "") == space]
        white_matter = next((f for f in anatomy if _entities(f).get("label") == "WM"), None)
        csf = next((f for f in anatomy if _entities(f).get("label") == "CSF"), None)
    return Scans(subject, bold, confounds, mask, white_matter, csf, dwi, matrix)


def _kind(path: Path) -> str:
    if not path.name.endswith((".nii", ".nii.gz")):
        return ""
    return path.name.removesuffix(".gz").removesuffix(".nii").rpartition("_")[2]


def _entities(path: Path) -> dict[str, str]:
    parts = path.name.split(".")[0].split("_")
    return dict(part.split("-", 1) for part in parts if "-" in part)


def _has(path: Path, entities: dict[str, str | None]) -> bool:
    own = _entities(path)
    return all(value is None or own.get(name) == value for name, value in entities.items())


def _one(files: Sequence[Path], wanted: dict[str, str | None], subject: str, what: str) -> Path | None:
    fitting = [path for path in files if _has(path, wanted)]
    done = [path for path in fitting if _entities(path).get("desc") == "preproc"]
    fitting = done or fitting
    if len(fitting) > 1:
        differing = sorted(
            {
                f"{k}-{v}"
                for f in fitting
                for k, v in _entities(f).items()
                if any(_entities(g).get(k) != v for g in fitting)
            }
        )
        words = f"has {len(fitting)} {what} files ({', '.join(differing[:8])})"
        raise IngestError(f"{words}; choose by task, space, session or run", study=subject)
    return fitting[0] if fitting else None
