"""Folders, archives and files -> the studies in them, found recursively."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medxai.errors import IngestError, MedxaiError
from medxai.identity import pseudonym, sha256_file, sha256_text
from medxai.ingest.archive import unpack
from medxai.ingest.dicom_file import is_dicom, read_header
from medxai.ingest.mosaic import is_mosaic
from medxai.ingest.slide import aside, is_slide
from medxai.ingest.split import Slice, read_slice, split
from medxai.ingest.vframe import is_vframe
from medxai.study import SourceFiles, SourceKind

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

_SUFFIXES: dict[str, SourceKind] = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".png": "picture",
    ".jpg": "picture",
    ".jpeg": "picture",
    ".svs": "slide",
    ".tif": "slide",
    ".tiff": "slide",
    ".mp4": "video",
    ".avi": "video",
    ".mov": "video",
    ".mpeg": "video",
    ".mpg": "video",
    ".gif": "video",
}
_DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}
#: Result and document classes that share folders with images (SR, SEG, PM, PR, KO, PDF, RT, DICOMDIR).
_NOT_IMAGES = (
    "1.2.840.10008.5.1.4.1.1.88.",
    "1.2.840.10008.5.1.4.1.1.66",
    "1.2.840.10008.5.1.4.1.1.30",
    "1.2.840.10008.5.1.4.1.1.11.",
    "1.2.840.10008.5.1.4.1.1.104.",
    "1.2.840.10008.5.1.4.1.1.481.",
    "1.2.840.10008.1.3.10",
)
_ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
    "1.2.840.10008.5.1.4.1.1.128.1",
}
_VOLUME_MODALITIES = {"CT", "MR", "PT"}


@dataclass(frozen=True)
class Rejected:
    """An input that cannot become a study: pseudonymous key, hash, the file and the reason."""

    key: str
    sha256: str
    path: Path
    error: MedxaiError


@dataclass(frozen=True)
class Discovery:
    """What lies under a path: sources to analyse, and inputs that were refused.

    Attributes:
        sources: studies, sorted by key.
        rejected: inputs that cannot become a study.
        ignored: number of files of unknown kinds.
        left_out: why images were passed over that nobody wants analysed -> how many files.
        archives: folder of an unpacked archive -> the archive.
    """

    sources: tuple[SourceFiles, ...]
    rejected: tuple[Rejected, ...]
    ignored: int
    archives: Mapping[Path, Path] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


def discover(roots: Sequence[Path], workspace: Path) -> Discovery:
    """Find every study below `roots`; archives are unpacked below `workspace`.

    DICOM instances are grouped by study and series, and a series that holds several volumes (orientations, echoes,
    diffusion weightings, phases) is split into them; enhanced multi-frame objects and ultrasound are one study per
    instance, the levels of a whole slide one study together. Localisers, labels and overviews of slides and byte-equal
    copies are left out. Files of unknown kinds are ignored and counted. Symbolic links are not followed.

    Raises:
        IngestError: a root does not exist, or nothing under all of them looks like an image.
    """
    sources: dict[str, SourceFiles] = {}
    rejected: list[Rejected] = []
    series: dict[tuple[str, str], list[tuple[Path, Dataset]]] = {}
    slides: dict[tuple[str, str, str], list[tuple[Path, str]]] = {}
    left_out: Counter[str] = Counter()
    archives: dict[Path, Path] = {}
    seen: set[Path] = set()  # roots may overlap
    ignored = 0
    for root in roots:
        if not root.exists():
            msg = "does not exist"
            raise IngestError(msg, study=str(root))
        for path in _files(root, workspace, rejected, archives):
            real = path.resolve()
            if real in seen:
                continue
            seen.add(real)
            try:
                found = _classify(path)
                if found is None:
                    ignored += 1
                elif isinstance(found, SourceFiles):
                    sources.setdefault(found.key, found)
                else:
                    uids, header = found
                    if not is_slide(header):
                        series.setdefault(uids, []).append((path, header))
                    elif what := aside(header):
                        left_out[what] += 1
                    else:
                        frame = str(header.get("FrameOfReferenceUID", "") or "")
                        slides.setdefault((*uids, frame), []).append((path, _instance(path, header)))
            except MedxaiError as error:
                rejected.append(_reject(path, error))
            except OSError as error:
                rejected.append(_reject(path, _unreadable(error)))
    for (study_uid, series_uid), files in series.items():
        for part in split(_without_copies(files, left_out)):
            if part.scout:
                left_out["localiser images"] += len(part.files)
                continue
            key = pseudonym("dicom", study_uid, series_uid, *([part.sign] if part.sign else []))
            sources.setdefault(key, SourceFiles(key, "dicom", tuple(sorted(part.files)), part.sign))
    for slide_uids, levels in slides.items():
        key = pseudonym("slide", *slide_uids)
        sources.setdefault(key, SourceFiles(key, "dicom", tuple(sorted(_distinct(levels, left_out)))))
    if not sources and not rejected:
        names = ", ".join(str(root) for root in roots)
        others = [f"{ignored} other files", *(f"{count} {what}" for what, count in sorted(left_out.items()))]
        msg = f"no DICOM, NIfTI, picture or video found ({', '.join(others)})"
        raise IngestError(msg, study=names)
    for what, count in sorted(left_out.items()):
        logger.info("left out: %d %s", count, what)
    found_sources = tuple(sorted(sources.values(), key=lambda s: s.key))
    return Discovery(found_sources, tuple(rejected), ignored, archives, left_out)


def _without_copies(files: Sequence[tuple[Path, Dataset]], left_out: Counter[str]) -> list[Slice]:
    """Slices of a series without files that repeat another byte by byte."""
    headers = dict(files)
    named = [(path, _instance(path, header)) for path, header in files]
    return [read_slice(path, headers[path]) for path in _distinct(named, left_out)]


def _instance(path: Path, header: Dataset) -> str:
    return str(header.get("SOPInstanceUID", "") or path)


def _distinct(files: Sequence[tuple[Path, str]], left_out: Counter[str]) -> list[Path]:
    """Paths with their SOPInstanceUID -> those that do not repeat another file byte by byte."""
    named: dict[str, list[Path]] = {}
    for path, uid in sorted(files):
        named.setdefault(uid, []).append(path)
    kept: list[Path] = []
    for same in named.values():
        seen: set[str] = set()
        for path in same:
            if len(same) > 1:
                digest = sha256_file(path)
                if digest in seen:
                    left_out["copies of another file"] += 1
                    continue
                seen.add(digest)
            kept.append(path)
    return kept


def is_volume_series(header: Dataset) -> bool:
    """True when instances of this kind are the slices of one volume."""
    alone = "NumberOfFrames" in header or is_mosaic(header) or is_vframe(header)
    return str(header.get("Modality", "")) in _VOLUME_MODALITIES and not alone


def is_enhanced(header: Dataset) -> bool:
    """True for enhanced multi-frame objects, whose geometry lies in functional groups."""
    return str(header.get("SOPClassUID", "")) in _ENHANCED


def _files(root: Path, workspace: Path, rejected: list[Rejected], archives: dict[Path, Path]) -> Iterator[Path]:
    paths = [root] if root.is_file() else sorted(root.rglob("*"))
    for path in paths:
        if not path.is_file() or path.is_symlink() or path.name.startswith("."):
            continue
        if path.suffix.lower() != ".zip":
            yield path
            continue
        try:
            folder = unpack(path, workspace / f"zip-{pseudonym('file', sha256_file(path))}")
        except MedxaiError as error:
            rejected.append(_reject(path, error))
            continue
        except OSError as error:
            rejected.append(_reject(path, _unreadable(error)))
            continue
        archives[folder] = path
        yield from (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))


def _reject(path: Path, error: MedxaiError) -> Rejected:
    try:
        digest = sha256_file(path)
    except OSError:  # the path has to stand for content that nobody can read
        digest = sha256_text("unreadable", str(path))
    key = pseudonym("file", digest)
    return Rejected(key, digest, path, type(error)(error.reason, study=key))


def _unreadable(error: OSError) -> IngestError:
    return IngestError(f"cannot be read ({type(error).__name__}: {error.strerror}); check the medium and permissions")


def _classify(path: Path) -> SourceFiles | tuple[tuple[str, str], Dataset] | None:
    name = path.name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    kind = _SUFFIXES.get(suffix)
    if kind is not None:
        key = pseudonym("file", sha256_file(path))
        return SourceFiles(key, kind, (path,))
    if not is_dicom(path):
        if suffix in _DICOM_SUFFIXES:
            msg = "is named as DICOM but is not a DICOM file (no DICM prefix)"
            raise IngestError(msg)
        return None
    header = read_header(path)
    sop_class = str(header.get("SOPClassUID", "") or header.file_meta.get("MediaStorageSOPClassUID", ""))
    if sop_class.startswith(_NOT_IMAGES):
        return None
    if "Rows" not in header:
        msg = "holds no image (no Rows); the file is damaged or truncated, or not an image at all"
        raise IngestError(msg)
    study_uid = str(header.get("StudyInstanceUID", "") or "")
    series_uid = str(header.get("SeriesInstanceUID", "") or path.parent)
    if is_volume_series(header) or is_slide(header):
        return (study_uid, series_uid), header
    key = pseudonym("instance", study_uid, series_uid, str(header.get("SOPInstanceUID", "") or sha256_file(path)))
    return SourceFiles(key, "dicom", (path,))
