"""Phantoms as CT Image Storage series and as NIfTI, byte for byte the same for the same input."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medxai.files import atomic_path, write_bytes
from medxai.identity import derive_uid, sha256_text
from sample_cases.shapes import Affine, FloatArray

#: Fixed date and time: outputs depend on the seed alone.
_DATE, _TIME = "20240102", "101500"
_IMPLEMENTATION = derive_uid("sample_cases", "implementation")


class Drawn(Protocol):
    """A phantom or a synthetic CT."""

    @property
    def hu(self) -> FloatArray:
        """``[D, H, W]`` whole Hounsfield units."""

    @property
    def affine(self) -> Affine:
        """Index ``(d, h, w)`` -> LPS mm."""


@dataclass(frozen=True)
class SeriesStyle:
    """How a series is stored; different scanners do it differently.

    Attributes:
        patient_name: synthetic name in DICOM's form.
        patient_id: synthetic identifier.
        unsigned: store HU + 1024 as unsigned 12 bit with an intercept; otherwise signed 16 bit.
        descending: number the instances from the head down.
        missing: index of a slice that is left out; None for a whole series.
    """

    patient_name: str
    patient_id: str
    unsigned: bool = False
    descending: bool = False
    missing: int | None = None


def write_dicom(folder: Path, drawn: Drawn, style: SeriesStyle, seed: int) -> str:
    """Write one series, one file a slice, under names that say nothing of the order.

    Args:
        folder: created when absent.
        drawn: phantom; values are whole Hounsfield units.
        style: storage.
        seed: enters the UIDs and file names.

    Returns:
        The StudyInstanceUID.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = (style.patient_id, str(seed))
    study_uid = derive_uid("phantom study", *parts)
    depth = drawn.hu.shape[0]
    for index in range(depth):
        if index == style.missing:
            continue
        dataset = _slice(drawn, index, style, parts)
        dataset.InstanceNumber = depth - index if style.descending else index + 1
        name = sha256_text("phantom file", *parts, str(index))[:8].upper()
        with atomic_path(folder / f"{name}.dcm") as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    return study_uid


def write_nifti(path: Path, drawn: Drawn) -> Path:
    """Write the phantom as gzipped NIfTI-1: int16, axes (x, y, z), RAS affine as sform and qform."""
    import nibabel

    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ drawn.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(drawn.hu.transpose(2, 1, 0).astype(np.int16), ras)
    image.set_sform(ras, code=1)
    image.set_qform(ras, code=1)
    image.header.set_xyzt_units("mm")
    return write_bytes(path, gzip.compress(image.to_bytes(), mtime=0))


def _slice(drawn: Drawn, index: int, style: SeriesStyle, parts: tuple[str, ...]) -> Dataset:
    affine = drawn.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    row, column = affine[:3, 2] / spacing[2], affine[:3, 1] / spacing[1]
    position = affine[:3, 3] + index * affine[:3, 0]
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = derive_uid("phantom image", *parts, str(index))
    for part in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{part}Date", _DATE)
        setattr(dataset, f"{part}Time", _TIME)
    dataset.AccessionNumber = ""
    dataset.Modality = "CT"
    dataset.Manufacturer = "Phantom"
    dataset.ManufacturerModelName = "medxai sample_cases"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "Chest phantom"
    dataset.SeriesDescription = "Chest phantom, axial"
    dataset.PatientName = style.patient_name
    dataset.PatientID = style.patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.BodyPartExamined = "CHEST"
    dataset.KVP = "120"
    dataset.SliceThickness = _decimal(spacing[0])
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = derive_uid("phantom study", *parts)
    dataset.SeriesInstanceUID = derive_uid("phantom series", *parts)
    dataset.FrameOfReferenceUID = derive_uid("phantom frame", *parts)
    dataset.StudyID = "1"
    dataset.SeriesNumber = 2
    dataset.AcquisitionNumber = 1
    dataset.PositionReferenceIndicator = ""
    dataset.ImagePositionPatient = [_decimal(v) for v in position]
    dataset.ImageOrientationPatient = [_decimal(v, 9) for v in (*row, *column)]
    dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    _pixels(dataset, drawn.hu[index], unsigned=style.unsigned)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = _IMPLEMENTATION
    dataset.file_meta.ImplementationVersionName = "MEDXAI_SAMPLE"
    return dataset


def _pixels(dataset: Dataset, hu: np.ndarray, *, unsigned: bool) -> None:
    intercept = -1024 if unsigned else 0
    stored = hu - intercept
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12 if unsigned else 16
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0 if unsigned else 1
    dataset.RescaleIntercept = str(intercept)
    dataset.RescaleSlope = "1"
    dataset.RescaleType = "HU"
    dataset.WindowCenter = "-500"
    dataset.WindowWidth = "1500"
    dataset.PixelData = stored.astype("<u2" if unsigned else "<i2").tobytes()


def _decimal(value: float, digits: int = 6) -> str:
    """DICOM decimal string, at most 16 characters, never minus zero."""
    text = f"{float(value):.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text
