"""Outlines of the evidence on a slide as Microscopy Bulk Simple Annotations (PS3.3 A.87, Supplement 222)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.export.naming import NOTICE, ascii_text, method_title, series_title, stem, with_evidence
from medxai.export.outlines import outlines
from medxai.export.provenance import algorithm, concept, dates, device, equipment, settle, uid_of
from medxai.export.segmentation import band_colour
from medxai.export.slide import is_slide, slide_source
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result

if TYPE_CHECKING:
    from highdicom.ann import MicroscopyBulkSimpleAnnotations
    from pydicom import Dataset

ROLE = "annotations"


def applies(result: Result) -> str | None:
    """Return None for a DICOM slide with evidence that was decided tile by tile, otherwise the reason why not."""
    if not is_slide(result.study.volume):
        return "annotations refer to a DICOM whole slide, and this is none: convert the slide to DICOM first"
    if result.prediction.tiles is None:
        return "not decided tile by tile"
    if not any(explanation.map.max(initial=0.0) > 0 for explanation in result.explanations):
        return "no map has positive evidence"
    return None


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write one object per chosen explanation with evidence and return the paths."""
    source, paths = slide_source(result), []
    for number, explanation in with_evidence(result, options):
        dataset = build(result, explanation, source, options, options.series_number_base + 200 + number)
        paths.append(write_dicom(folder / f"{stem(ROLE, explanation)}.dcm", dataset))
    return paths


def build(
    result: Result, explanation: Explanation, source: Dataset, options: ExportOptions, series_number: int
) -> MicroscopyBulkSimpleAnnotations:
    """Return the object: a group of polygons for each band, in pixels of the level's total pixel matrix.

    Args:
        result: slide, decision and maps.
        explanation: with some positive value.
        source: header of the level, see `slide_source`.
        options: bands.
        series_number: SeriesNumber of the new series.
    """
    from highdicom.ann import AnnotationGroup, MicroscopyBulkSimpleAnnotations
    from highdicom.color import CIELabColor
    from pydicom.sr.codedict import codes

    values = explanation.normalised()
    groups: list[AnnotationGroup] = []
    for band in options.bands:
        # Points are from the outer corner of the first pixel, as PS3.3 C.37.1.1 has it; the last one is not repeated.
        polygons = [points[:-1].astype(np.float32) for points in outlines(values, band)]
        if not polygons:
            continue
        label = f"CAM >= {band:g} (explanation)"
        groups.append(
            AnnotationGroup(
                number=len(groups) + 1,
                uid=uid_of(result, ROLE, explanation, "group", f"{band:g}"),
                label=ascii_text(label, 64),
                annotated_property_category=codes.SCT.SpatialAndRelationalConcept,
                annotated_property_type=concept(explanation.method),
                graphic_type="POLYGON",
                graphic_data=polygons,
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm(result, explanation),
                description=ascii_text(f"{explanation.class_label}: {label}; {NOTICE}", 1024),
                display_color=CIELabColor.from_rgb(*band_colour(band)),
            )
        )
    dataset = MicroscopyBulkSimpleAnnotations(
        source_images=[source],
        annotation_coordinate_type="2D",
        annotation_groups=groups,
        series_instance_uid=uid_of(result, ROLE, explanation, "series"),
        series_number=series_number,
        sop_instance_uid=uid_of(result, ROLE, explanation),
        instance_number=1,
        content_label="EXPLANATION",
        content_description=ascii_text(f"{method_title(explanation.method)} {explanation.class_label}, outlines", 64),
        contributing_equipment=equipment(result),
        series_description=series_title(result, explanation),
        **device(result),
        **dates(result),
    )
    settle(dataset, result)
    return dataset
