"""Bands of the map as a DICOM Segmentation: what most viewers can draw, labelled as an explanation."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.errors import ExportError
from medxai.export.colours import heat
from medxai.export.naming import NOTICE, ascii_text, method_title, series_title, stem, with_evidence
from medxai.export.placement import placed_sources, restore_frame_numbers, unplaced_reason
from medxai.export.provenance import (
    algorithm,
    concept,
    dates,
    device,
    equipment,
    finish,
    shallow,
    source_header,
    uid_of,
)
from medxai.export.slide import is_slide, slide_source, tiling
from medxai.export.tracking import tracking
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset

ROLE = "segmentation"

_ULTRASOUND_IMAGE = "1.2.840.10008.5.1.4.1.1.6.1"


def applies(result: Result) -> str | None:
    """Return None for DICOM sources with positive evidence, otherwise the reason why not."""
    if result.study.kind != "dicom" or not result.study.volume.source:
        return unplaced_reason(result)
    if not any(explanation.map.max(initial=0.0) > 0 for explanation in result.explanations):
        return "no map has positive evidence, and a segmentation without segments says nothing"
    if is_slide(result.study.volume):
        return None
    if unplaced_reason(result) and len(result.study.volume.source) != 1:
        return "several images without FrameOfReferenceUID cannot share one segmentation"
    return None


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write one object per chosen explanation with evidence and return the paths; empty maps give none."""
    placed = unplaced_reason(result) is None
    if is_slide(result.study.volume):
        placed, sources = True, [slide_source(result)]
    else:
        sources = placed_sources(result) if placed else [source_header(result.study.volume.source[0])]
    paths = []
    for number, explanation in with_evidence(result, options):
        series_number = options.series_number_base + 100 + number
        make = build if placed else build_unplaced
        dataset = make(result, explanation, sources, options, series_number)
        paths.append(write_dicom(folder / f"{stem(ROLE, explanation)}.dcm", dataset))
    return paths


def band_labels(bands: tuple[float, ...], labelmap: bool) -> tuple[str, ...]:
    """Return segment labels: nested bands ``CAM >= t``, or exclusive ranges for a label map."""
    if not labelmap:
        return tuple(f"CAM >= {low:g} (explanation)" for low in bands)
    ranges = [f"CAM {low:g} to {high:g} (explanation)" for low, high in pairwise(bands)]
    return (*ranges, f"CAM >= {bands[-1]:g} (explanation)")


def band_masks(values: npt.NDArray[np.float32], bands: tuple[float, ...], labelmap: bool) -> npt.NDArray[np.uint8]:
    """Return ``[*S, n]`` nested masks of 0 and 1, or for a label map ``[*S]`` with the number of the band (0: none).

    A voxel belongs to band ``t`` when its normalised value is at least ``t``.
    """
    limits = np.asarray(bands, dtype=np.float32)
    if labelmap:
        return np.searchsorted(limits, values, side="right").astype(np.uint8)
    # One after the other in memory: each is written, and read frame by frame, as a whole.
    masks = np.empty((len(bands), *values.shape), dtype=np.uint8)
    for index, limit in enumerate(limits):
        np.greater_equal(values, limit, out=masks[index], casting="unsafe")
    return np.moveaxis(masks, 0, -1)


def band_colour(low: float) -> tuple[int, int, int]:
    """Return the RGB colour of a band: that of the middle between its threshold and the maximum."""
    red, green, blue = (int(v) for v in heat(np.float32((low + 1.0) / 2.0)))
    return red, green, blue


def descriptions(result: Result, explanation: Explanation, options: ExportOptions) -> list[SegmentDescription]:
    """Return the segment descriptions (PS3.3 C.8.20.4).

    Category and type say "spatial concept, class activation": the bands are where the model looked, not tissue.
    """
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    items = []
    for index, label in enumerate(band_labels(options.bands, options.labelmap)):
        name, uid = tracking(result, explanation, options, options.bands[index])
        item = SegmentDescription(
            segment_number=index + 1,
            segment_label=ascii_text(label, 64),
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=concept(explanation.method),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm(result, explanation),
            tracking_id=name,
            tracking_uid=uid,
            display_color=CIELabColor.from_rgb(*band_colour(options.bands[index])),
        )
        item.SegmentDescription = ascii_text(
            f"{method_title(explanation.method)} of {explanation.class_label}: {label}; {NOTICE}", 1024
        )
        items.append(item)
    return items


def _arguments(result: Result, explanation: Explanation, options: ExportOptions, series_number: int) -> dict[str, Any]:
    shape = f"{'labelmap' if options.labelmap else 'binary'} {options.bands} {options.omit_empty_frames}"
    method = method_title(explanation.method)
    return {
        "segmentation_type": "LABELMAP" if options.labelmap else "BINARY",
        "segment_descriptions": descriptions(result, explanation, options),
        "series_instance_uid": uid_of(result, ROLE, explanation, shape, "series"),
        "series_number": series_number,
        "sop_instance_uid": uid_of(result, ROLE, explanation, shape),
        "instance_number": 1,
        "content_label": "EXPLANATION",
        "content_description": ascii_text(f"{method} {explanation.class_label}, bands of the map", 64),
        "contributing_equipment": equipment(result),
        "series_description": series_title(result, explanation),
        **device(result),
        **dates(result),
    }


def build(
    result: Result, explanation: Explanation, sources: list[Dataset], options: ExportOptions, series_number: int
) -> Segmentation:
    """Return the object for a source with a place in the patient or on a slide (PS3.3 A.51).

    Args:
        result: study, decision and maps.
        explanation: map ``[D, H, W]`` on the grid of the study, or ``[H, W]`` on that of a slide, with some positive
            value.
        sources: headers in the order of the ``D`` axis, see `placed_sources`; for a slide see `slide_source`.
        options: bands, kind and treatment of empty frames.
        series_number: SeriesNumber of the new series.
    """
    from highdicom.seg import Segmentation

    values = explanation.normalised()
    slide = is_slide(result.study.volume)
    dataset = Segmentation(
        source_images=sources,
        pixel_array=band_masks(values[np.newaxis] if slide else values, options.bands, options.labelmap),
        omit_empty_frames=options.omit_empty_frames,
        **_arguments(result, explanation, options, series_number),
        **(tiling(sources[0], full=not options.omit_empty_frames) if slide else {}),
    )
    _compress(dataset, options)
    finish(dataset, result, explanation, sources[0])
    restore_frame_numbers(dataset, result.study.volume)
    return dataset


def _compress(dataset: Segmentation, options: ExportOptions) -> None:
    """RLE-compress a label map in place, which makes it an order of magnitude smaller; BINARY must stay native.

    The encoder is named: GDCM's, which is picked first where it is installed, aborts the whole process on frames
    whose RLE segments do not divide by the number of rows (GDCM 3.2.6).
    """
    from pydicom.uid import RLELossless

    if options.labelmap:
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)


def build_unplaced(
    result: Result, explanation: Explanation, sources: list[Dataset], options: ExportOptions, series_number: int
) -> Segmentation:
    """Return the object for one ultrasound image or cine without a frame of reference.

    Frames are tied to the source by DerivationImageSequence alone (PS3.3 C.7.6.16.2.6). highdicom accepts a
    single frame of such a source, so the frames of a cine are built one by one and joined: the second dimension
    index is TemporalPositionIndex (PS3.3 C.7.6.16.2.2), and ReferencedFrameNumber names the source frame.

    Raises:
        ExportError: the map is neither ``[H, W]``, ``[1, H, W]`` nor ``[T, H, W]``.
    """
    from highdicom.seg import Segmentation

    values = explanation.normalised()
    values = values[np.newaxis] if values.ndim == 2 else values
    if values.ndim != 3:
        raise ExportError(f"a map of {explanation.map.ndim} axes has no frames", study=result.study.key)
    masks = band_masks(values, options.bands, options.labelmap)
    header = shallow(sources[0])
    multi_frame = "NumberOfFrames" in header
    if multi_frame:
        # Stand-in for the constructor, which wants functional groups of multi-frame classes; undone below.
        del header.NumberOfFrames
        header.SOPClassUID = _ULTRASOUND_IMAGE
    strongest = int(values.reshape(len(values), -1).max(axis=1).argmax())
    dataset = Segmentation(
        source_images=[header],
        pixel_array=masks[strongest : strongest + 1],
        omit_empty_frames=False,
        **_arguments(result, explanation, options, series_number),
    )
    dataset.PatientOrientation = sources[0].get("PatientOrientation", "")
    if multi_frame:
        _restore_class(dataset, sources[0])
        numbers = result.study.volume.frame_numbers or tuple(range(1, len(values) + 1))
        _join_frames(dataset, masks, numbers, options)
    _compress(dataset, options)
    finish(dataset, result, explanation, sources[0])
    return dataset


def _restore_class(dataset: Dataset, source: Dataset) -> None:
    """Name the real class of the source in every reference to it, in place."""
    for element in dataset.iterall():
        if element.keyword == "ReferencedSOPClassUID" and element.value == _ULTRASOUND_IMAGE:
            element.value = source.SOPClassUID


def _join_frames(
    dataset: Segmentation, masks: npt.NDArray[np.uint8], numbers: tuple[int, ...], options: ExportOptions
) -> None:
    """Replace the single-frame content of `dataset` by all frames of a cine, in place.

    Args:
        dataset: segmentation of one frame; its per-frame items are the templates, one per segment.
        masks: ``[T, H, W, n]`` nested masks, or ``[T, H, W]`` band numbers.
        numbers: source frame number of each time point.
        options: kind and treatment of empty frames.
    """
    import copy

    from pydicom.pixels.utils import pack_bits

    pointer = copy.deepcopy(dataset.DimensionIndexSequence[0])
    pointer.DimensionIndexPointer = 0x00209128  # TemporalPositionIndex
    pointer.FunctionalGroupPointer = 0x00209111  # FrameContentSequence
    pointer.DimensionDescriptionLabel = "Temporal Position Index"
    # A label map has no segment dimension; its only dimension is then time.
    dataset.DimensionIndexSequence = [pointer] if options.labelmap else [dataset.DimensionIndexSequence[0], pointer]
    templates = list(dataset.PerFrameFunctionalGroupsSequence)
    planes: list[npt.NDArray[np.uint8]] = []
    items = []
    for segment, template in enumerate(templates):
        for time, number in enumerate(numbers):
            plane = masks[time] if options.labelmap else masks[time, ..., segment]
            if options.omit_empty_frames and not plane.any():
                continue
            item = copy.deepcopy(template)
            content = item.FrameContentSequence[0]
            content.TemporalPositionIndex = time + 1
            content.DimensionIndexValues = [time + 1] if options.labelmap else [segment + 1, time + 1]
            if "FrameLabel" in content:
                content.FrameLabel = f"Frame {number}"
            item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number
            items.append(item)
            planes.append(plane)
    dataset.PerFrameFunctionalGroupsSequence = items
    dataset.NumberOfFrames = len(planes)
    frames = np.stack(planes)
    if options.labelmap:
        data = frames.tobytes()
        dataset.PixelData = data + b"\0" * (len(data) % 2)
    else:
        # One-bit frames follow each other without padding between them (PS3.5 section 8.1.1).
        dataset.PixelData = pack_bits(frames.ravel(), pad=True)
