"""Nuclei of a DICOM slide as Microscopy Bulk Simple Annotations (PS3.3 A.87): certain and doubtful ones, with areas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medxai import __version__
from medxai.export.naming import NOTICE, ascii_text
from medxai.export.nuclei_contours import CERTAIN, DOUBTFUL, contour
from medxai.export.provenance import MANUFACTURER, Maker, dates, device, equipment, settle, source_header
from medxai.identity import derive_uid
from medxai.predict.slide_nuclei import SlideNuclei

if TYPE_CHECKING:
    from highdicom.ann import AnnotationGroup, MicroscopyBulkSimpleAnnotations
    from pydicom import Dataset

ROLE = "nuclei_annotations"
#: SeriesNumber of the new series: above those of the objects of a run.
SERIES_NUMBER = 9500
_GROUPS = (("Nuclei", False, CERTAIN), ("Nuclei, doubtful", True, DOUBTFUL))


def build(
    nuclei: SlideNuclei, level: Dataset, made: Maker, identity: tuple[str, ...]
) -> MicroscopyBulkSimpleAnnotations:
    """Return the object: a group of polygons for certain and one for doubtful nuclei, as far as there are any.

    Points are pixels of the finest level's total pixel matrix from its outer corner (PS3.3 C.37.1.1).

    Args:
        nuclei: at least one.
        level: header of the finest level.
        made: what made it.
        identity: hashes of input, model and settings, which the identifiers are derived from.
    """
    from highdicom.ann import MicroscopyBulkSimpleAnnotations

    groups: list[AnnotationGroup] = []
    for label, doubtful, colour in _GROUPS:
        which = [n for n, words in enumerate(nuclei.flags) if bool(words) is doubtful]
        if which:
            groups.append(_group(nuclei, which, label, colour, len(groups) + 1, made, identity))
    dataset = MicroscopyBulkSimpleAnnotations(
        source_images=[source_header(level)],
        annotation_coordinate_type="2D",
        annotation_groups=groups,
        series_instance_uid=derive_uid(*identity, ROLE, "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derive_uid(*identity, ROLE),
        instance_number=1,
        content_label="NUCLEI",
        content_description=ascii_text(f"{len(nuclei)} nuclei, outlines", 64),
        contributing_equipment=equipment(made),
        series_description=ascii_text(f"Nuclei: {NOTICE}", 64),
        **device(made),
        **dates(made),
    )
    settle(dataset, made)
    return dataset


def _group(
    nuclei: SlideNuclei, which: list[int], label: str, colour: tuple[int, int, int], number: int, made: Maker,
    identity: tuple[str, ...],
) -> AnnotationGroup:  # fmt: skip
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.ann import AnnotationGroup, Measurements
    from highdicom.color import CIELabColor
    from pydicom.sr.codedict import codes

    method = AlgorithmIdentificationSequence(
        name="Nuclei from points",
        family=codes.DCM.ArtificialIntelligence,
        version=ascii_text(f"medxai {__version__}", 64),
        source=MANUFACTURER,
        parameters={"model": ascii_text(made.model, 256).replace(",", ";")},
    )
    words = "; unseeded, uncertain, merged? or split?" if nuclei.flags[which[0]] else ""
    return AnnotationGroup(
        number=number,
        uid=derive_uid(*identity, ROLE, "group", label),
        label=label,
        annotated_property_category=codes.SCT.AnatomicalStructure,
        annotated_property_type=codes.SCT.Nucleus,
        graphic_type="POLYGON",
        graphic_data=[contour(nuclei, n)[:-1].astype(np.float32) for n in which],
        algorithm_type="AUTOMATIC",
        algorithm_identification=method,
        measurements=[
            Measurements(codes.SCT.Area, nuclei.areas_um2[which].astype(np.float32), codes.UCUM.SquareMicrometer)
        ],
        description=ascii_text(f"{len(which)} nuclei{words}; {NOTICE}", 1024),
        display_color=CIELabColor.from_rgb(*colour),
    )
