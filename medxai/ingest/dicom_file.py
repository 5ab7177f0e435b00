"""One DICOM file: header, identifier check and pixel decoding through one pinned decoder per syntax."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.ingest.decoder_process import DecodingError, decode
from medxai.ingest.overlays import without_overlay_bits
from medxai.study import FloatArray

if TYPE_CHECKING:
    from pydicom import Dataset

#: One decoder per transfer syntax, so that the same file gives the same pixels on every machine.
_DECODER = {
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    "1.2.840.10008.1.2.4.50": "gdcm",  # JPEG baseline
    "1.2.840.10008.1.2.4.51": "gdcm",  # JPEG extended
    "1.2.840.10008.1.2.4.57": "gdcm",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "gdcm",  # JPEG lossless SV1
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",  # HTJ2K
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
}
#: These run in a process of their own, since they may end it.
_IN_C = frozenset({"gdcm", "pyjpegls", "pylibjpeg"})
_DEFLATED = "1.2.840.10008.1.2.1.99"
_UNDEFINED = 0xFFFFFFFF
#: Bytes of an element without a value (PS3.5 section 7.1).
_SHORTEST_ELEMENT = 8


def is_dicom(path: Path) -> bool:
    """True when the file carries the DICM prefix after its 128-byte preamble (PS3.10 7.1)."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_header(path: Path) -> Dataset:
    """Read everything but the pixel data.

    Raises:
        IngestError: not DICOM, or damaged before the pixel data.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        header = dcmread(path, stop_before_pixels=True)
        if _ends_early(path, header):
            raise EOFError
        header.file_meta.decode()  # values are only looked at when they are asked for
        header.decode()
    except InvalidDicomError as error:
        msg = "is not a DICOM file (no DICM prefix)"
        raise IngestError(msg, study=path.name) from error
    except Exception as error:  # pydicom raises many kinds on damaged streams
        msg = f"cannot be parsed as DICOM ({type(error).__name__}); the file is damaged or truncated"
        raise IngestError(msg, study=path.name) from error
    return header


def image_type(header: Dataset) -> list[str]:
    """Values of ImageType in upper case; a single value is no list in pydicom."""
    value = header.get("ImageType", None) or []
    return [str(v).upper() for v in ([value] if isinstance(value, str) else value)]


def _ends_early(path: Path, header: Dataset) -> bool:
    """True when the file ends within its last element, which pydicom passes over."""
    from pydicom.dataelem import RawDataElement

    if not len(header) or str(header.file_meta.get("TransferSyntaxUID", "")) == _DEFLATED:
        return False
    last = header.get_item(max(header.keys()))
    if not isinstance(last, RawDataElement) or last.length == _UNDEFINED:
        return False
    rest = path.stat().st_size - (last.value_tell + last.length)
    return bool(rest < 0 or 0 < rest < _SHORTEST_ELEMENT)


def read_pixels(path: Path, frame: int | None = None) -> tuple[Dataset, npt.NDArray[Any]]:
    """Read a file and decode its pixels with colour converted to RGB and palettes applied.

    Args:
        path: the file.
        frame: zero-based frame, or None for all.

    Returns:
        The dataset (with pixel data) and ``[H, W]``, ``[H, W, 3]``, or both with a leading frame axis.

    Raises:
        IngestError: truncated or undecodable pixel data, or an unsupported transfer syntax.
    """
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    try:
        dataset = dcmread(path)
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        if dataset.get("PixelData") is None:
            msg = "holds no pixel data"
            raise IngestError(msg, study=path.name)
        plugin = _DECODER.get(syntax, "")
        if plugin in _IN_C:
            array = decode(path, frame, plugin)
        else:
            array = pixel_array(dataset, index=frame, decoding_plugin=plugin)
        array = without_overlay_bits(array, dataset)
        if str(dataset.PhotometricInterpretation) == "PALETTE COLOR":
            array = apply_color_lut(array, dataset)
            if array.dtype != np.uint8:  # 16-bit palettes store 8-bit colours in the high byte
                array = (array >> 8).astype(np.uint8)
    except IngestError:
        raise
    except DecodingError as error:
        msg = f"pixel data cannot be decoded ({error}); the file is damaged, truncated or of an unsupported syntax"
        raise IngestError(msg, study=path.name) from error
    except Exception as error:  # every decoder has its own kinds
        # Messages about byte counts are safe to repeat; others may quote paths or header values.
        detail = str(error).split("\n")[0][:160] if "bytes" in str(error) else type(error).__name__
        msg = f"pixel data cannot be decoded ({detail}); the file is damaged, truncated or of an unsupported syntax"
        raise IngestError(msg, study=path.name) from error
    return dataset, array


def _philips_scale(dataset: Dataset) -> float:
    """Scale slope of Philips MR (2005,100E); 0 where there is none."""
    if str(dataset.get("Modality", "")) != "MR" or "PHILIPS" not in str(dataset.get("Manufacturer", "")).upper():
        return 0.0
    try:
        value = dataset.private_block(0x2005, "Philips MR Imaging DD 001")[0x0E].value
        if isinstance(value, bytes):  # implicit syntax hides the representation
            value = np.frombuffer(value, "<f4")[0]
        scale = float(value)
    except (KeyError, TypeError, ValueError, IndexError):
        return 0.0
    return scale if np.isfinite(scale) and scale > 0 else 0.0


def rescaled(array: npt.NDArray[Any], dataset: Dataset) -> FloatArray:
    """Apply the modality LUT or rescale (PS3.3 C.11.1), for Philips MR the scale of the scanner's own units; float32.

    Padding takes the lowest value of the image. Rescale maps Philips MR to displayed values, which differ in scale from
    series to series; (2005,100E) leads back from them.
    """
    from pydicom.pixels.processing import apply_modality_lut

    result: FloatArray
    if "ModalityLUTSequence" in dataset:
        result = apply_modality_lut(array, dataset).astype(np.float32)
    else:
        slope = np.float32(dataset.get("RescaleSlope", None) or 1.0)
        intercept = np.float32(dataset.get("RescaleIntercept", None) or 0.0)
        result = array.astype(np.float32)
        if slope != 1:
            result *= slope
        if intercept != 0:
            result += intercept
        if scale := _philips_scale(dataset):
            result /= np.float32(scale) * slope
    padding = dataset.get("PixelPaddingValue", None)
    if padding is not None:
        mask = array == padding
        if mask.any() and not mask.all():
            result[mask] = result[~mask].min()
    return result
