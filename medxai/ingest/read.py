"""SourceFiles -> Study: choose the reader and name the study in every error."""

from __future__ import annotations

from medxai.errors import GeometryError, IngestError, MedxaiError
from medxai.identity import sha256_files
from medxai.ingest.dicom_file import read_header
from medxai.ingest.dicom_series import read_series
from medxai.ingest.discover import is_enhanced, is_volume_series
from medxai.ingest.mosaic import is_mosaic, read_mosaic
from medxai.ingest.multiframe import read_multiframe
from medxai.ingest.nifti import read_nifti
from medxai.ingest.picture import read_picture
from medxai.ingest.slide import is_slide
from medxai.ingest.slides.one_level import read_level
from medxai.ingest.slides.open import open_slide
from medxai.ingest.ultrasound import read_image
from medxai.ingest.vframe import is_vframe, read_vframe
from medxai.ingest.video import read_video
from medxai.study import SourceFiles, Study, Volume


def read_study(
    source: SourceFiles, modality: str | None = None, largest_gap_mm: float | None = None, cell_um: float | None = None
) -> Study:
    """Decode one discovered source.

    Args:
        source: what discovery found.
        modality: DICOM modality to assume for formats that store none (NIfTI ``OT``, pictures and
            video ``US`` by default).
        largest_gap_mm: straighten irregular DICOM series whose slices are at most so far apart; None refuses them.
        cell_um: read the level of a whole slide that is just finer than this; None for the finest that fits into
            memory.

    Raises:
        MedxaiError: one line with the study's pseudonym and the cause.
    """
    try:
        volume, notes = _read(source, modality, largest_gap_mm, cell_um)
        if source.part:
            notes = (f"one of several volumes of its series: {source.part}", *notes)
        return Study(source.key, source.kind, sha256_files(source.files), volume, notes)
    except MedxaiError as error:
        # File names may carry patient names, so messages use the pseudonym; quarantine records list the files.
        raise type(error)(error.reason, study=source.key) from error


def _read(
    source: SourceFiles, modality: str | None, largest_gap_mm: float | None, cell_um: float | None
) -> tuple[Volume, tuple[str, ...]]:
    first = source.files[0]
    if source.kind == "slide":
        return _slide(source, cell_um)
    if source.kind == "nifti":
        return read_nifti(first, modality or "OT"), ()
    if source.kind == "picture":
        return read_picture(first, modality or "US"), ()
    if source.kind == "video":
        return read_video(first, modality or "US"), ()
    try:
        header = read_header(first)
        if is_enhanced(header):
            return read_multiframe(first, source.key, largest_gap_mm)
        if is_slide(header):
            return _slide(source, cell_um)
        if is_mosaic(header):
            return read_mosaic(first, source.key)
        if is_vframe(header):
            return read_vframe(first, source.key)
        if is_volume_series(header):
            if source.part and len(source.files) == 1:
                msg = f"a single slice apart from the rest of its series ({source.part}) is no volume"
                raise GeometryError(msg, study=source.key)
            return read_series(source.files, source.key, largest_gap_mm)
        return read_image(first, source.key)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        # Damage may sit in any value of a header; what Python says of it may quote the value.
        name = error.name if isinstance(error, AttributeError) and error.name else ""
        what = f"{name} is missing" if name else f"a value cannot be used ({type(error).__name__})"
        msg = f"header is damaged: {what}; the file was changed or cut off after it was written"
        raise IngestError(msg, study=source.key) from error


def _slide(source: SourceFiles, cell_um: float | None) -> tuple[Volume, tuple[str, ...]]:
    with open_slide(source.files, name=source.key) as slide:
        return read_level(slide, source.key, cell_um)
