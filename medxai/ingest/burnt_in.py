"""Text of the patient in the pixels: which images may show it, and blackening ultrasound outside its regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medxai.errors import IngestError
from medxai.ingest.dicom_file import read_pixels

if TYPE_CHECKING:
    from pydicom import Dataset

BurntIn = Literal["refuse", "mask", "keep"]

#: Modalities whose pictures often show the patient's name: only a header that says NO clears them.
_OFTEN_BURNT_IN = {"US", "IVUS", "ES", "GM", "XC", "OT", "SC", "DOC", "ECG", "HD", "OP", "OPT", "XA", "RF"}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def treat_text(dataset: Dataset, path: Path, burnt_in: BurntIn) -> bool:
    """Apply the policy for burnt-in text; True where the pixels were masked.

    Raises:
        IngestError: the image may show text and cannot be cleaned.
    """
    said = str(dataset.get("BurnedInAnnotation", "") or "").upper()
    modality = str(dataset.get("Modality", ""))
    capture = str(dataset.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)
    risky = said == "YES" or (said != "NO" and (modality in _OFTEN_BURNT_IN or capture))
    if not risky or burnt_in == "keep" or "PixelData" not in dataset:
        return False
    if burnt_in == "mask" and modality == "US" and dataset.get("SequenceOfUltrasoundRegions"):
        _mask(dataset, path)
        return True
    why = "the header says so" if said == "YES" else f"{'secondary capture' if capture else modality}, not cleared"
    msg = f"may show text of the patient ({why}); left out, since nothing tells where"
    raise IngestError(msg)


def _mask(dataset: Dataset, path: Path) -> None:
    """Blacken what lies outside the ultrasound regions; native pixels, colour as RGB."""
    from pydicom.uid import ExplicitVRLittleEndian

    _, array = read_pixels(path)
    colour = int(dataset.get("SamplesPerPixel", 1)) == 3 or str(dataset.PhotometricInterpretation) == "PALETTE COLOR"
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    keep = np.zeros((rows, columns), bool)
    for region in dataset.SequenceOfUltrasoundRegions:
        top, left = int(region.RegionLocationMinY0), int(region.RegionLocationMinX0)
        keep[top : int(region.RegionLocationMaxY1) + 1, left : int(region.RegionLocationMaxX1) + 1] = True
    shape = (*([1] * (array.ndim - 2 - colour)), rows, columns, *([1] * colour))
    black = array.max() if str(dataset.PhotometricInterpretation) == "MONOCHROME1" else 0
    cleaned = np.where(keep.reshape(shape), array, np.array(black, array.dtype))
    dataset.PixelData = cleaned.astype(array.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW" if array.dtype.itemsize > 1 else "OB"
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if colour:
        dataset.PhotometricInterpretation, dataset.PlanarConfiguration, dataset.SamplesPerPixel = "RGB", 0, 3
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        for element in list(dataset):
            if element.tag.group == 0x0028 and 0x1101 <= element.tag.element <= 0x1223:  # palettes
                del dataset[element.tag]
