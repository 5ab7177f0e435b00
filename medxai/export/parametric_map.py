"""The map itself as a DICOM Parametric Map: float32, on the source grid, one object per class and method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.export.anatomy import frame_anatomy
from medxai.export.naming import ascii_text, chosen, method_title, series_title, stem
from medxai.export.placement import placed_sources, restore_frame_numbers, unplaced_reason
from medxai.export.provenance import cell_text, concept, dates, device, equipment, finish, peak, uid_of
from medxai.export.slide import is_slide, slide_source, tiling
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap
    from pydicom import Dataset

ROLE = "parametric_map"


def applies(result: Result) -> str | None:
    """Return None for DICOM sources with a place in the patient or on a slide, otherwise the reason why not."""
    return None if is_slide(result.study.volume) else unplaced_reason(result)


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write one object per chosen explanation and return the paths."""
    sources = [slide_source(result)] if is_slide(result.study.volume) else placed_sources(result)
    paths = []
    for number, explanation in enumerate(chosen(result, options)):
        dataset = build(result, explanation, sources, options, options.series_number_base + number)
        paths.append(write_dicom(folder / f"{stem(ROLE, explanation)}.dcm", dataset))
    return paths


def build(
    result: Result, explanation: Explanation, sources: list[Dataset], options: ExportOptions, series_number: int
) -> ParametricMap:
    """Return the object (PS3.3 A.75): values 0..1 of the map normalised over the study.

    Args:
        result: study, decision and maps.
        explanation: map ``[D, H, W]`` on the grid of the study, or ``[H, W]`` on that of a slide.
        sources: headers in the order of the ``D`` axis, see `placed_sources`; for a slide see `slide_source`.
        options: content qualification.
        series_number: SeriesNumber of the new series.

    Returns:
        Object whose frames ascend along the normal of the planes, **not** in the order of the map: readers must go
        by ImagePositionPatient. Frames of a slide are its tiles, row by row. The real world value mapping is the
        identity; the scale before normalisation is in its explanation and in DerivationDescription.
    """
    import highdicom as hd
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.codedict import codes

    method = method_title(explanation.method)
    mapping = RealWorldValueMapping(
        lut_label=ascii_text(explanation.method.upper(), 16),
        lut_explanation=ascii_text(f"0..1 of max {peak(explanation):.4g}; cell {cell_text(result, explanation)}", 64),
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=concept(explanation.method),
    )
    values = explanation.normalised()
    slide = is_slide(result.study.volume)
    # Maps are large: none is kept beside the one that becomes the pixels.
    pixels = np.clip(values, 0.0, 1.0, out=None if values is explanation.map else values)
    dataset = ParametricMap(
        source_images=sources,
        pixel_array=np.ascontiguousarray(pixels, dtype=np.float32),
        series_instance_uid=uid_of(result, ROLE, explanation, "series"),
        series_number=series_number,
        sop_instance_uid=uid_of(result, ROLE, explanation),
        instance_number=1,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="HEATMAP",
        content_description=ascii_text(
            f"{method} {explanation.class_label} score {explanation.score:.3g} {explanation.layer}", 64
        ),
        content_qualification=options.content_qualification,
        contributing_equipment=equipment(result),
        series_description=series_title(result, explanation),
        **device(result),
        **dates(result),
        **(tiling(sources[0], full=True) if slide else {}),
    )
    del values, pixels
    finish(dataset, result, explanation, sources[0])
    restore_frame_numbers(dataset, result.study.volume)
    anatomy = frame_anatomy(result, sources[0])
    if anatomy is not None:
        # Some readers (dcmqi 1.5) take it for granted and crash without.
        dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]
        # The side is now that of the frames; the series must not say it again (PS3.3 C.7.3.1).
        dataset.pop("Laterality", None)
    if slide:
        dataset.pop("Laterality", None)  # a specimen has none (PS3.3 C.7.3.1)
    else:
        _ascend(dataset)
    return dataset


def _ascend(dataset: Dataset) -> None:
    """Order the frames along the normal of the planes (rows x columns directions), in place.

    Any order is valid, since each frame has its position. OHIF 3.13 however lays the frames of a map into its volume
    in the order of the file, and its volumes ascend along the normal; highdicom writes them descending, which put
    the evidence on mirrored slices.
    """
    cosines = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    normal = np.cross(*np.asarray([float(v) for v in cosines]).reshape(2, 3))
    items = list(dataset.PerFrameFunctionalGroupsSequence)
    heights = [
        float(np.dot([float(v) for v in item.PlanePositionSequence[0].ImagePositionPatient], normal)) for item in items
    ]
    order = np.argsort(heights, kind="stable")
    frames, size = memoryview(dataset.FloatPixelData), len(dataset.FloatPixelData) // len(items)
    dataset.FloatPixelData = b"".join(frames[index * size : (index + 1) * size] for index in order)
    items = [items[index] for index in order]
    for number, item in enumerate(items):
        item.FrameContentSequence[0].DimensionIndexValues = [number + 1]
    dataset.PerFrameFunctionalGroupsSequence = items
