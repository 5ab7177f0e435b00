"""What a DICOM image of a whole slide is: a level of its pyramid, or something beside it (PS3.3 A.32.8, C.8.12.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.ingest.dicom_file import image_type

if TYPE_CHECKING:
    from pydicom import Dataset

    from medxai.study import Study

#: VL Whole Slide Microscopy Image Storage.
SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
#: Third value of ImageType (PS3.3 C.8.12.4.1.1) of what is no level of the pyramid.
_ASIDE = {
    "LABEL": "slide labels",
    "OVERVIEW": "slide overviews",
    "LOCALIZER": "slide overviews",
    "THUMBNAIL": "slide thumbnails",
}


def is_slide(header: Dataset) -> bool:
    """True for an image of a whole slide: a level of its pyramid, its label or an overview."""
    return str(header.get("SOPClassUID", "")) == SLIDE


def shows_slide(study: Study) -> bool:
    """True for a study that is a whole slide, DICOM or not."""
    headers = study.volume.source
    return study.kind == "slide" or (len(headers) == 1 and is_slide(headers[0]))


def aside(header: Dataset) -> str | None:
    """What an image of a slide is when it is no level of the pyramid, in words; None for a level."""
    flavour = image_type(header)[2:3]
    return _ASIDE.get(flavour[0]) if flavour else None
