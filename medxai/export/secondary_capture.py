"""Evidence burned over the anatomy as RGB Secondary Capture: the object that every viewer can show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai import __version__
from medxai.explain.cine import cine_evidence
from medxai.export.colours import UInt8, blend
from medxai.export.display import View, frames, plane, rgb_plane, view_of, window_of
from medxai.export.lettering import AMBER, FAINT, GROUND, INK, bar, wrap, write_text
from medxai.export.naming import NOTICE, ascii_text, is_hidden, method_title, percent, stem, trust_line
from medxai.export.placement import detached_reason, is_multi_frame, unplaced_reason
from medxai.export.provenance import (
    IMPLEMENTATION_CLASS_UID,
    MANUFACTURER,
    MODEL_NAME,
    copy_patient_and_study,
    equipment,
    finish,
    moment,
    source_header,
    uid_of,
)
from medxai.export.slide import reduced
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from pydicom import Dataset

ROLE = "secondary_capture"

_SINGLE = "1.2.840.10008.5.1.4.1.1.7"
_MULTI_TRUE_COLOUR = "1.2.840.10008.5.1.4.1.1.7.4"


def applies(result: Result) -> str | None:
    """Return None for DICOM sources, otherwise the reason why not."""
    return detached_reason(result)


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the primary explanation as a new series: one file per slice, or one multi-frame file for a cine.

    Every slice of the source is there, with or without evidence, so that both series scroll together. A large slide
    becomes a smaller picture.
    """
    result = reduced(result)
    explanation = result.explanations[0]
    name = stem(ROLE, explanation)
    pictures = render(result, explanation, options)
    total = frames(result.study.volume)
    if result.study.volume.axes == "THW":
        return [
            write_dicom(folder / f"{name}.dcm", build(result, explanation, options, np.stack(list(pictures)), None))
        ]
    digits = max(3, len(str(total)))
    paths = []
    for index, picture in enumerate(pictures):
        suffix = "" if total == 1 else f"_{index + 1:0{digits}d}"
        paths.append(write_dicom(folder / f"{name}{suffix}.dcm", build(result, explanation, options, picture, index)))
    return paths


def render(result: Result, explanation: Explanation, options: ExportOptions) -> Iterator[UInt8]:
    """Yield one picture ``[H + footer, W + margin, 3]`` per slice or frame.

    Of a cine the decisive frames carry the evidence; the others stay as they are and say so.

    The image keeps its pixel grid with the first pixel in the corner, so that position and spacing of the source
    hold; colour bar and text stand beside and below it and never cover anatomy.
    """
    from PIL import Image, ImageDraw

    volume = result.study.volume
    values = explanation.normalised()
    if is_hidden(result.trust_of(explanation), options):
        values = np.zeros_like(values)
    window = window_of(volume, result.model_window)
    view = view_of(volume, as_stored=True)
    total = frames(volume)
    rows, columns = volume.shape[-2:]
    size = max(9, min(16, columns // 30))
    margin = size * 4
    top = float(values.max(initial=0.0))
    what = "frame" if volume.axes == "THW" else "slice"
    nothing = "no positive evidence" if not explanation.map.any() else "evidence not shown"
    evidence = cine_evidence(volume, result.prediction, explanation)

    def label(index: int, here: float) -> list[str]:
        share = f"peak here {here:.2f}" if top > 0 else nothing
        if evidence is not None:
            decisive = index in evidence.decisive
            here_probability = percent(float(evidence.probabilities[index, explanation.class_index]))
            share = f"{here_probability}, {share if decisive else 'not decisive'}"
        text = share if total == 1 else f"{what} {index + 1} of {total}, {share}"
        return wrap(text, size, columns + margin - 8)

    # Room for the longest of the changing lines, so that all pictures of a series have one size.
    spare = max(len(label(index, 1.0)) for index in {total - 1, *(evidence.decisive[-1:] if evidence else ())})
    blank = _frame(result, explanation, options, rows, columns, size, margin, spare)
    for index in range(total):
        canvas = np.array(blank)
        here = plane(volume, values, index)
        if evidence is not None and index not in evidence.decisive:
            here = np.zeros_like(here)
        canvas[:rows, :columns] = blend(rgb_plane(volume, index, window), here, options.overlay_opacity)
        image = Image.fromarray(canvas)
        draw = ImageDraw.Draw(image)
        for number, text in enumerate(label(index, float(here.max(initial=0.0)))[:spare]):
            y = len(blank) - 2 - (spare - number) * (size + 3)
            write_text(draw, (4, y), text, size, FAINT)
        _edge_letters(draw, view, rows, columns, size)
        yield np.asarray(image, dtype=np.uint8)


def _frame(
    result: Result, explanation: Explanation, options: ExportOptions,
    rows: int, columns: int, size: int, margin: int, spare: int,
) -> UInt8:  # fmt: skip
    """Draw what all pictures of a series share; `spare` lines at the bottom stay free."""
    from PIL import Image, ImageDraw

    decided = result.prediction
    width = columns + margin - 8
    line = size + 3
    decision = f"{explanation.class_label}: {percent(float(decided.probabilities[explanation.class_index]))}"
    if explanation.class_index != decided.index:
        decision += f" (decided: {decided.label})"
    method = f"{method_title(explanation.method)} at {explanation.layer}, {decided.model}"
    lines = [(NOTICE, AMBER), (decision, INK), (method, FAINT)]
    report = result.trust_of(explanation)
    if report is not None:
        lines.insert(2, (trust_line(report), INK if report.verdict == "supported" else AMBER))
    texts = [(text, colour) for words, colour in lines for text in wrap(words, size, width)]
    footer = (len(texts) + spare) * line + 8
    canvas = np.empty((rows + footer, columns + margin, 3), dtype=np.uint8)
    canvas[:] = GROUND
    length = max(min(40, rows), min(rows - 4 * size, 256))  # never more than the image has rows
    top = (rows - length) // 2
    left = columns + size
    canvas[top : top + length, left : left + size] = bar(length, size, options.overlay_opacity)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    write_text(draw, (left + size + 3, top), "1", size, INK, anchor="lt")
    write_text(draw, (left + size + 3, top + length - 1), "0", size, INK, anchor="ls")
    for number, (text, colour) in enumerate(texts):
        write_text(draw, (4, rows + 6 + number * line), text, size, colour)
    return np.asarray(image, dtype=np.uint8)


def _edge_letters(draw: ImageDraw, view: View, rows: int, columns: int, size: int) -> None:
    places = (
        (view.left, (3, rows / 2), "lm"),
        (view.right, (columns - 3, rows / 2), "rm"),
        (view.top, (columns / 2, 3), "mt"),
        (view.bottom, (columns / 2, rows - 3), "mb"),
    )
    for text, at, anchor in places:
        write_text(draw, at, text, size, INK, anchor=anchor)


def build(
    result: Result, explanation: Explanation, options: ExportOptions, pixels: UInt8, index: int | None
) -> Dataset:
    """Return a Secondary Capture (PS3.3 A.8.1), or a Multi-frame True Color one (A.8.5) for a cine.

    Args:
        result: study, decision and maps.
        explanation: the map shown.
        options: series number.
        pixels: ``[rows, columns, 3]`` or ``[T, rows, columns, 3]`` uint8 RGB.
        index: slice on the ``D`` axis, 0 for a still, None for a cine.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    volume = result.study.volume
    source = source_header(volume.source[index if index is not None and index < len(volume.source) else 0])
    cine = index is None
    when = moment(result)
    dataset = Dataset()
    copy_patient_and_study(source, dataset)
    dataset.SOPClassUID = _MULTI_TRUE_COLOUR if cine else _SINGLE
    dataset.SOPInstanceUID = uid_of(result, ROLE, explanation, *(() if cine else (str(index),)))
    dataset.SeriesInstanceUID = uid_of(result, ROLE, explanation, "series")
    dataset.SeriesNumber = options.series_number_base + 200
    dataset.SeriesDescription = ascii_text(
        f"{method_title(explanation.method)} {explanation.class_label}: {NOTICE}", 64
    )
    dataset.InstanceNumber = 1 if index is None else index + 1
    # The modality stays that of the anatomy for hanging protocols; ConversionType says that it is a capture.
    dataset.Modality = volume.modality
    dataset.ConversionType = "WSD"
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = MODEL_NAME
    dataset.DeviceSerialNumber = result.prediction.model_sha256[:16]
    dataset.SoftwareVersions = __version__
    dataset.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    dataset.SecondaryCaptureDeviceSoftwareVersions = __version__
    dataset.ContentDate, dataset.ContentTime = when.strftime("%Y%m%d"), when.strftime("%H%M%S")
    dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = dataset.ContentDate, dataset.ContentTime
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BurnedInAnnotation = "YES"
    dataset.ImageComments = NOTICE
    lossy = str(source.get("LossyImageCompression", "") or "")
    if lossy:
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in source:
                dataset.add(source[keyword])
    dataset.SourceImageSequence = [_reference(source, volume.frame_numbers, index)]
    dataset.ContributingEquipmentSequence = equipment(result)
    _pixels(dataset, pixels)
    if cine:
        _time(dataset, pixels.shape[0], volume.frame_seconds)
        dataset.PatientOrientation = source.get("PatientOrientation", "")
    else:
        dataset.PatientOrientation = _row_column_letters(result)
        _position(dataset, result, index or 0)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    finish(dataset, result, explanation, source)
    return dataset


def _reference(source: Dataset, frame_numbers: tuple[int, ...], index: int | None) -> Dataset:
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes

    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if frame_numbers and index is not None:
        item.ReferencedFrameNumber = frame_numbers[index]
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = (
        purpose.value,
        purpose.scheme_designator,
        purpose.meaning,
    )
    item.PurposeOfReferenceCodeSequence = [code]
    return item


def _pixels(dataset: Dataset, pixels: UInt8) -> None:
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)


def _time(dataset: Dataset, count: int, seconds: float | None) -> None:
    """Set the frame clock of a cine (PS3.3 C.8.6.3, C.7.6.5); without a known rate frames are just numbered."""
    dataset.NumberOfFrames = count
    if seconds:
        dataset.FrameIncrementPointer = 0x00181063
        dataset.FrameTime = f"{seconds * 1000:.10g}"
    else:
        dataset.FrameIncrementPointer = 0x00182001  # PageNumberVector
        dataset.PageNumberVector = [str(number + 1) for number in range(count)]


def _position(dataset: Dataset, result: Result, index: int) -> None:
    """Set the plane of a slice as a standard extension of the capture, so that viewers can link both series."""
    from pydicom.valuerep import format_number_as_ds

    volume = result.study.volume
    if unplaced_reason(result) is None and volume.positions is not None:
        cosines = np.concatenate([volume.affine[:3, axis] / volume.spacing[axis] for axis in (2, 1)])
        dataset.FrameOfReferenceUID = volume.frame_of_reference
        dataset.PositionReferenceIndicator = ""
        dataset.ImagePositionPatient = [format_number_as_ds(float(v)) for v in volume.positions[index]]
        dataset.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in cosines]
        dataset.SliceThickness = format_number_as_ds(volume.spacing[0])
        if not is_multi_frame(volume):
            source = volume.source[index]
            for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"):
                # The source's own digits, where they are, are better than a decimal round trip.
                if keyword in source:
                    dataset.add(source[keyword])
    if volume.calibrated and volume.spacing[1] > 0 and volume.modality != "US":
        dataset.PixelSpacing = [format_number_as_ds(float(v)) for v in volume.spacing[1:]]


def _row_column_letters(result: Result) -> list[str]:
    view = view_of(result.study.volume, as_stored=True)
    return [view.right, view.bottom] if view.right and view.bottom else []
