"""The whole map as a FRACTIONAL segmentation, for viewers that read no Parametric Map; written only on request.

Many viewers refuse the kind (OHIF 3.13 among them), and its values mean neither probability nor occupancy here: they
are the map, 255 where it is strongest. The segment says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.errors import ExportError
from medxai.export.naming import NOTICE, ascii_text, method_title, series_title, stem, with_evidence
from medxai.export.placement import placed_sources, restore_frame_numbers, unplaced_reason
from medxai.export.provenance import algorithm, concept, dates, device, equipment, finish, uid_of
from medxai.export.tracking import tracking
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from pydicom import Dataset

ROLE = "fractional_segmentation"

#: Stored value of the strongest evidence (PS3.3 C.8.20.2.3, MaximumFractionalValue).
LARGEST = 255


class Fractions(np.ndarray[Any, np.dtype[np.float32]]):
    """Values 0..1 whose distinct values are summed up by three of them.

    highdicom 0.28 asks ``np.unique`` of the whole array only to learn the smallest and largest value and whether
    there is one in between; the sort behind it takes nine tenths of the time. NumPy asks the array itself first
    (NEP 18), so the answer comes from here, for this array alone, with those three facts and nothing else.
    Everything else is numpy's.
    """

    def __array_function__(
        self, function: Callable[..., Any], types: Iterable[type], args: Iterable[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Answer ``np.unique(array)``; leave all other functions to numpy."""
        given = tuple(args)
        if function is np.unique and len(given) == 1 and given[0] is self and not kwargs:
            plain = self.view(np.ndarray)
            low, high = plain.min(), plain.max()
            inside = next((v for plane in plain for v in (_between(plane),) if v is not None), None)
            return np.array(sorted({float(low), float(high), *([] if inside is None else [inside])}), dtype=plain.dtype)
        return super().__array_function__(function, types, given, kwargs)


def _between(plane: npt.NDArray[np.float32]) -> float | None:
    """A value strictly between 0 and 1, if there is one."""
    found = plane[(plane > 0) & (plane < 1)]
    return float(found.flat[0]) if found.size else None


def applies(result: Result) -> str | None:
    """Return None for DICOM sources with a place in the patient and some evidence, otherwise the reason why not."""
    reason = unplaced_reason(result)
    if reason is None and not any(explanation.map.max(initial=0.0) > 0 for explanation in result.explanations):
        return "no map has positive evidence, and a segmentation without segments says nothing"
    return reason


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write one object per chosen explanation with evidence and return the paths; empty maps give none."""
    sources = placed_sources(result)
    paths = []
    for number, explanation in with_evidence(result, options):
        dataset = build(result, explanation, sources, options, options.series_number_base + 150 + number)
        paths.append(write_dicom(folder / f"{stem(ROLE, explanation)}.dcm", dataset))
    return paths


def build(
    result: Result, explanation: Explanation, sources: list[Dataset], options: ExportOptions, series_number: int
) -> Segmentation:
    """Return the object (PS3.3 A.51): one segment, 8 bits, ``rint(255 * normalised map)``.

    Args:
        result: study, decision and maps.
        explanation: map ``[D, H, W]`` on the grid of the study, with some positive value.
        sources: headers in the order of the ``D`` axis, see `placed_sources`.
        options: treatment of empty frames, tracking.
        series_number: SeriesNumber of the new series.

    Raises:
        ExportError: the map has values outside 0..1 or that are no numbers.
    """
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    values = explanation.normalised()
    if not (float(values.min(initial=0.0)) >= 0.0 and float(values.max(initial=0.0)) <= 1.0):
        raise ExportError("the map has values outside 0..1 or that are no numbers", study=result.study.key)
    method = method_title(explanation.method)
    name, uid = tracking(result, explanation, options)
    segment = SegmentDescription(
        segment_number=1,
        segment_label=f"CAM 0 to 1 as 0 to {LARGEST} (explanation)",
        segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
        segmented_property_type=concept(explanation.method),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm(result, explanation),
        tracking_id=name,
        tracking_uid=uid,
    )
    segment.SegmentDescription = ascii_text(
        f"{method} of {explanation.class_label}, {LARGEST} at its maximum over the study; neither a probability nor a "
        f"share of a voxel; {NOTICE}",
        1024,
    )
    frames = f"fractional {options.omit_empty_frames}"
    dataset = Segmentation(
        source_images=sources,
        pixel_array=np.ascontiguousarray(values).view(Fractions),
        segmentation_type="FRACTIONAL",
        # OCCUPANCY would claim a share of tissue; this is the term that viewers draw with varying opacity.
        fractional_type="PROBABILITY",
        max_fractional_value=LARGEST,
        segment_descriptions=[segment],
        series_instance_uid=uid_of(result, ROLE, explanation, frames, "series"),
        series_number=series_number,
        sop_instance_uid=uid_of(result, ROLE, explanation, frames),
        instance_number=1,
        content_label="EXPLANATION",
        content_description=ascii_text(f"{method} {explanation.class_label}, the whole map", 64),
        contributing_equipment=equipment(result),
        omit_empty_frames=options.omit_empty_frames,
        series_description=series_title(result, explanation),
        **device(result),
        **dates(result),
    )
    finish(dataset, result, explanation, sources[0])
    restore_frame_numbers(dataset, result.study.volume)
    return dataset
