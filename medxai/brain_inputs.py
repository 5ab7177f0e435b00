"""What lies beside the features of a subject: the atlas's image, a DICOM series, a transform to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from medxai.brain_settings import ExplainSettings
from medxai.errors import IngestError, MismatchError
from medxai.identity import sha256_text
from medxai.prepare.brain.atlas import Atlas
from medxai.prepare.brain.image import Image, nearest
from medxai.prepare.brain.onto import computed
from medxai.prepare.brain.subject import SubjectFeatures
from medxai.study import Study


def atlas_for(atlas: Atlas, subject: SubjectFeatures) -> npt.NDArray[np.int32] | None:
    """``[D, H, W]`` regions on the grid of the ALFF map: n for the nth region of the features; None without ALFF.

    Regions end where the ALFF does: an atlas of a template reaches over the brain of a subject.

    Raises:
        MismatchError: a probabilistic atlas, one of other regions than the features (both numbers), or one that lies
            nowhere in the brain.
    """
    check_atlas(atlas, subject)
    if subject.alff is None or subject.affine is None:
        return None
    place = {name: number for number, name in enumerate(subject.regions, 1)}
    table = np.zeros(max(atlas.labels) + 1, np.int32)
    for label, name in zip(atlas.labels, atlas.names, strict=True):
        table[label] = place[name]
    d, h, w = subject.alff.shape
    onto: npt.NDArray[np.int32] = nearest(
        Image(table[atlas.image.data], atlas.image.affine), (int(d), int(h), int(w)), subject.affine
    )
    onto[~computed(subject.alff)] = 0
    if not onto.any():
        words = f"no region of the atlas {atlas.key} lies in the brain of the ALFF map: they are not in one space"
        raise MismatchError(words, study=subject.subject)
    return onto


def check_atlas(atlas: Atlas, subject: SubjectFeatures) -> None:
    """Refuse an atlas of other regions than the features have.

    Raises:
        MismatchError: both numbers, or the first name that is not in the features.
    """
    if atlas.probabilistic:
        raise MismatchError(f"{atlas.key} is probabilistic; a map is painted into labels (3D)", study=subject.subject)
    has, wants = len(atlas.labels), len(subject.regions)
    if has != wants:
        words = f"the atlas {atlas.key} has {has} regions and the features have {wants}"
        raise MismatchError(f"{words}; give the atlas that they were computed with", study=subject.subject)
    unknown = [name for name in atlas.names if name not in set(subject.regions)]
    if unknown:
        words = f"{len(unknown)} of {has} regions of the atlas {atlas.key} are not among those of the features"
        raise MismatchError(f"{words} ({', '.join(unknown[:3])}); give its table with --labels", study=subject.subject)


def series_of(settings: ExplainSettings, subject: str, everyone: tuple[str, ...]) -> Path | None:
    """Folder of a subject's DICOM series; None where none is asked for.

    Raises:
        MismatchError: several subjects, and no folder of this one's name.
    """
    if settings.series is None:
        return None
    own = settings.series / subject
    if own.is_dir():
        return own
    if len(everyone) == 1 and not any(settings.series.glob("sub-*/")):
        return settings.series
    words = f"{settings.series.name} has no folder {subject}; the series of several subjects lie in folders of their"
    raise MismatchError(f"{words} names, or give --subject", study=subject)


def transform_of(settings: ExplainSettings, subject: str, everyone: tuple[str, ...]) -> Path | None:
    """File of a subject's transform; None where none is asked for.

    Raises:
        MismatchError: several subjects, and no file of this one's name.
    """
    path = settings.transform
    if path is None:
        return None
    if path.is_file():
        if len(everyone) == 1:
            return path
        raise MismatchError("one transform for several subjects; give a folder of sub-XX.* or --subject", study=subject)
    found = sorted(path.glob(f"{subject}.*")) + sorted(path.glob(f"{subject}_*"))
    if len(found) != 1:
        raise MismatchError(
            f"{len(found)} transforms in {path.name} begin with {subject}; one is needed", study=subject
        )
    return found[0]


def read_series(folder: Path, subject: str, more: tuple[str, ...]) -> tuple[Study, list[str]]:
    """An MR series of a subject; of a functional one the first volume.

    Args:
        folder: with the files of one series.
        subject: for messages.
        more: what the identifiers of new objects depend on beside the files.

    Returns:
        The study, and what was decided.

    Raises:
        MedxaiError: no MR series, several of them, or one that cannot be read.
    """
    from medxai.ingest.dicom_file import read_header
    from medxai.ingest.discover import discover
    from medxai.ingest.read import read_study

    if not folder.is_dir():
        raise IngestError("there is no such folder of a series", study=subject)
    with TemporaryDirectory() as workspace:
        sources = [s for s in discover([folder], Path(workspace)).sources if s.kind == "dicom"]
        headers = [(source, read_header(source.files[0])) for source in sources]
        volumes = [(s, h) for s, h in headers if str(h.get("Modality", "")) == "MR"]
        if not volumes:
            raise MismatchError("the folder of --series holds no MR series", study=subject)
        series = {str(h.get("SeriesInstanceUID", "")) for _, h in volumes}
        if len(series) > 1:
            words = f"the folder of --series holds {len(series)} MR series"
            raise MismatchError(f"{words}; give that of one, objects are placed on a single one", study=subject)
        first = min(volumes, key=lambda item: (item[0].part, item[0].key))[0]
        study = read_study(first)
    said = ["That the series is of this subject was taken from whoever gave it."]
    if len(volumes) > 1:
        said.append(f"Objects are placed on one of the {len(volumes)} volumes of the series.")
    return replace(study, input_sha256=sha256_text(study.input_sha256, *more)), said
