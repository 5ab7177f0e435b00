"""Outlines of the bands as a softcopy presentation state: a viewer that knows it draws them over the source slices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai.export.naming import NOTICE, ascii_text, method_title, series_title, stem, with_evidence
from medxai.export.outlines import outlines
from medxai.export.placement import detached_reason
from medxai.export.provenance import device, equipment, moment, settle, shallow, source_header, state_body_part, uid_of
from medxai.export.reporting import region_place
from medxai.export.segmentation import band_colour
from medxai.export.slide import is_slide
from medxai.export.tracking import tracking
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result

if TYPE_CHECKING:
    from highdicom.pr import (
        ColorSoftcopyPresentationState,
        GraphicAnnotation,
        GraphicLayer,
        GrayscaleSoftcopyPresentationState,
    )
    from pydicom import Dataset

ROLE = "presentation_state"


def applies(result: Result) -> str | None:
    """Return None for DICOM sources with some evidence, otherwise the reason why not."""
    if reason := detached_reason(result):
        return reason
    if is_slide(result.study.volume):
        return (
            "a presentation state counts pixels from the corner of one tile, and outlines of a slide reach over tiles"
        )
    if not any(explanation.map.max(initial=0.0) > 0 for explanation in result.explanations):
        return "no map has positive evidence, so there is nothing to outline"
    if any(header.get("PhotometricInterpretation") == "PALETTE COLOR" for header in result.study.volume.source):
        return "neither the grey nor the colour kind of presentation state that can be written takes palette images"
    if len({key for header in result.study.volume.source for key in _rescales(header)}) > 1:
        return "the rescale differs between slices, and a presentation state has one for all of them"
    return None


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write one object per chosen explanation with evidence and return the paths."""
    paths = []
    for number, explanation in with_evidence(result, options):
        dataset = build(result, explanation, options, options.series_number_base + 400 + number)
        paths.append(write_dicom(folder / f"{stem(ROLE, explanation)}.dcm", dataset))
    return paths


def build(
    result: Result, explanation: Explanation, options: ExportOptions, series_number: int
) -> GrayscaleSoftcopyPresentationState | ColorSoftcopyPresentationState:
    """Return the object (PS3.3 A.33.1, A.33.2 for colour): a layer per band, on every slice that reaches it.

    Window and rescale are those of the source; only outlines and a line of text are added.

    Args:
        result: study, decision and maps.
        explanation: map ``[*S]`` with some positive value.
        options: bands and tracking.
        series_number: SeriesNumber of the new series.
    """
    from highdicom.pr import ColorSoftcopyPresentationState, GrayscaleSoftcopyPresentationState

    volume = result.study.volume
    sources = {str(header.SOPInstanceUID): _drawable(header) for header in volume.source}
    layers = _layers(options)
    annotations = list(_annotations(result, explanation, options, sources, layers))
    used = {annotation.GraphicLayer for annotation in annotations}
    # Only slices with an outline belong to the state, so that the others stay as they are.
    shown = {
        str(item.ReferencedSOPInstanceUID) for annotation in annotations for item in annotation.ReferencedImageSequence
    }
    images = [header for uid, header in sources.items() if uid in shown]
    method = method_title(explanation.method)
    shape = f"outlines {options.bands}"
    arguments: dict[str, Any] = {
        "referenced_images": images,
        "series_instance_uid": uid_of(result, ROLE, explanation, shape, "series"),
        "series_number": series_number,
        "sop_instance_uid": uid_of(result, ROLE, explanation, shape),
        "instance_number": 1,
        "content_label": "EXPLANATION",
        "content_description": ascii_text(f"{method} {explanation.class_label}, outlines of the map", 64),
        "graphic_layers": [layer for layer in layers if layer.GraphicLayer in used],
        "graphic_annotations": annotations,
        "contributing_equipment": equipment(result),
        "series_description": series_title(result, explanation),
        **device(result),
    }
    colour = int(images[0].get("SamplesPerPixel", 1)) == 3
    make = ColorSoftcopyPresentationState if colour else GrayscaleSoftcopyPresentationState
    if colour:
        arguments["icc_profile"] = images[0].get("ICCProfile") or _srgb()
    dataset = make(**arguments)
    # The library takes the time of creation from the clock (PS3.3 C.11.10).
    when = moment(result)
    dataset.PresentationCreationDate = when.strftime("%Y%m%d")
    dataset.PresentationCreationTime = when.strftime("%H%M%S")
    state_body_part(dataset, result, images[0])
    settle(dataset, result)
    return dataset


def _rescales(header: Dataset) -> set[tuple[str, ...]]:
    """Return the different rescales (slope, intercept, type) of a source: of its frames, or its own."""
    items = [header]
    if "NumberOfFrames" in header:
        groups = [
            *header.get("SharedFunctionalGroupsSequence", []),
            *header.get("PerFrameFunctionalGroupsSequence", []),
        ]
        items = [item for group in groups for item in group.get("PixelValueTransformationSequence", [])]
    names = ("RescaleSlope", "RescaleIntercept", "RescaleType")
    return {tuple(str(item.get(name, "")) for name in names) for item in items}


def _drawable(header: Dataset) -> Dataset:
    """Return the header in the form from which highdicom takes window and rescale, see `applies`.

    It looks for the rescale of a multi-frame object in the shared groups alone and needs them to be there (classic
    ultrasound has none); and it refuses half a window, or one beside a table.
    """
    from pydicom.dataset import Dataset

    clean = source_header(header)
    if "NumberOfFrames" in clean:
        shared = shallow(next(iter(clean.get("SharedFunctionalGroupsSequence", [])), Dataset()))
        frames = [shallow(group) for group in clean.get("PerFrameFunctionalGroupsSequence", [])]
        for frame in frames:
            if "PixelValueTransformationSequence" in frame:
                shared.PixelValueTransformationSequence = frame.PixelValueTransformationSequence
                del frame.PixelValueTransformationSequence
        clean.SharedFunctionalGroupsSequence, clean.PerFrameFunctionalGroupsSequence = [shared], frames
    elif "WindowCenter" in clean and "WindowWidth" in clean:
        clean.pop("VOILUTSequence", None)
    else:
        clean.pop("WindowCenter", None)
        clean.pop("WindowWidth", None)
    return clean


def _srgb() -> bytes:
    """Return the sRGB profile, which images without one are taken to have, dated so that it is always the same.

    DICOM wants an input profile (PS3.3 C.11.15.1.1): the tags of a matrix profile are those of a display (ICC.1 8.3.3).
    """
    import struct

    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[12:16] = b"scnr"
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)  # time of creation (ICC.1 section 7.2.8)
    return bytes(profile)


def _layers(options: ExportOptions) -> list[GraphicLayer]:
    from highdicom.color import CIELabColor
    from highdicom.pr import GraphicLayer

    return [
        GraphicLayer(
            layer_name=f"CAM {low:g}".replace(".", "_"),
            order=number + 1,
            description=f"CAM >= {low:g} (explanation)",
            display_color=CIELabColor.from_rgb(*band_colour(low)),
        )
        for number, low in enumerate(options.bands)
    ]


def _annotations(
    result: Result,
    explanation: Explanation,
    options: ExportOptions,
    sources: dict[str, Dataset],
    layers: list[GraphicLayer],
) -> Iterator[GraphicAnnotation]:
    from highdicom.pr import GraphicAnnotation, GraphicObject, TextObject

    values = explanation.normalised()
    planes = values[np.newaxis] if values.ndim == 2 else values
    method = method_title(explanation.method)
    for index, plane in enumerate(planes):
        header, frames = region_place(result, index)
        image = sources[str(header.SOPInstanceUID)]
        for layer, low in zip(layers, options.bands, strict=True):
            lines = outlines(plane, low)
            if not lines:
                break  # bands are nested
            name, uid = tracking(result, explanation, options, low)
            texts = []
            if low == options.bands[0]:
                words = f"{method} of {explanation.class_label}: {NOTICE}"
                box = (0.02, 0.95, 0.98, 0.99)
                texts.append(
                    TextObject(ascii_text(words, 1024), "DISPLAY", bounding_box=box, text_justification="LEFT")
                )
            yield GraphicAnnotation(
                referenced_images=[image],
                graphic_layer=layer,
                referenced_frame_number=frames,
                graphic_objects=[
                    GraphicObject("POLYLINE", points, "PIXEL", tracking_id=name, tracking_uid=uid) for points in lines
                ],
                text_objects=texts,
            )
