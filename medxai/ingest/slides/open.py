"""Any slide, opened by what its files are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from medxai.errors import IngestError
from medxai.ingest.dicom_file import is_dicom
from medxai.ingest.slides.dicom_pyramid import open_dicom
from medxai.ingest.slides.level import Slide
from medxai.ingest.slides.patch import open_patch
from medxai.ingest.slides.vendor import open_vendor

#: First bytes of PNG and JPEG.
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff")


def open_slide(
    source: Path | Sequence[Path], *, mpp: float | tuple[float, float] | None = None, name: str | None = None
) -> Slide:
    """Open a slide without reading its pixels.

    Args:
        source: a file, a folder with the DICOM files of one slide, or those files.
        mpp: micrometres per pixel of the finest level (rows, columns), where the file does not state them: plain
            pictures, some TIFF. DICOM states them always.
        name: for messages; that of the first file, which may say who the patient is, if None.

    Returns:
        The slide, with its files open.

    Raises:
        IngestError: nothing that can be read as a slide; the message says why and what to do.
    """
    spacing = _spacing(mpp)
    given = [source] if isinstance(source, Path) else list(source)
    if not given:
        msg = "no file was given"
        raise IngestError(msg, study=name)
    name = given[0].name if name is None else name
    absent = [path for path in given if not path.exists()]
    if absent:
        msg = "does not exist"
        raise IngestError(msg, study=name)
    files = [p for path in given for p in (sorted(path.rglob("*")) if path.is_dir() else [path]) if p.is_file()]
    dicom = [path for path in files if is_dicom(path)]
    if dicom:
        if spacing is not None:
            msg = "DICOM states its micrometres per pixel; leave --mpp (mpp=...) out"
            raise IngestError(msg, study=name)
        return open_dicom(dicom, name)
    if len(files) != 1:
        msg = f"{len(files)} files and none of them DICOM; give one file, or the DICOM files of one slide"
        raise IngestError(msg, study=name)
    with files[0].open("rb") as stream:
        start = stream.read(4)
    if start.startswith(_PICTURES):
        return open_patch(files[0], spacing, name)
    return open_vendor(files[0], spacing, name)


def _spacing(mpp: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if mpp is None:
        return None
    rows, columns = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    if not all(math.isfinite(value) and 0 < value < 1000 for value in (rows, columns)):
        msg = f"micrometres per pixel are between 0 and 1000, not {mpp}"
        raise IngestError(msg)
    return float(rows), float(columns)
