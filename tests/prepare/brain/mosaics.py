"""Functional series of a scanner with a known truth: Siemens mosaics with their private header, and classic slices."""

from __future__ import annotations

import copy
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.identity import derive_uid
from tests.export import build

#: ``(D, H, W)``; ten slices fill a square of four by four tiles but for six.
SHAPE, STEPS = (10, 12, 14), (4.0, 3.0, 3.4)
SECONDS = 2.0


def affine() -> npt.NDArray[np.float64]:
    """Oblique, index ``(d, h, w)`` -> LPS mm, slices ascending along the normal of rows and columns."""
    found = np.eye(4)
    found[:3, :3] = build.rotation(12.0, -8.0)[:, [2, 1, 0]] * STEPS
    found[:3, 3] = (-21.0, -15.0, 9.0)
    return found


def csa(slices: int, normal: npt.NDArray[np.float64]) -> bytes:
    """The two entries of the private header (0029,1010), in its form of syngo B (``SV10``), that place the tiles."""
    tags = {
        "NumberOfImagesInMosaic": (b"US", [str(slices)]),
        "SliceNormalVector": (b"FD", [f"{v:.12f}" for v in normal]),
    }
    out = b"SV10\x04\x03\x02\x01" + struct.pack("<2I", len(tags), 77)
    for name, (kind, values) in tags.items():
        out += struct.pack("<64si4s3i", name.encode(), len(values), kind, 0, len(values), 77)
        for value in values:
            text = value.encode() + b"\0"
            out += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + bytes(-len(text) % 4)
    return out


def write_mosaics(folder: Path, data: npt.NDArray[np.float32], number: int, description: str, tag: str) -> str:
    """Write a series ``[D, H, W, T]`` as one mosaic a volume; its SeriesInstanceUID."""
    place = affine()
    side = int(np.ceil(np.sqrt(data.shape[0])))
    rows, columns = data.shape[1:3]
    first = build.ct_series(place, np.zeros((1, side * rows, side * columns), np.float32), tag)[0]
    # The position that Siemens writes is that of a slice as large as the whole mosaic (nibabel, dicom_mosaic).
    half = np.array([0, (side - 1) * rows / 2, (side - 1) * columns / 2])
    corner = place[:3, 3] - place[:3, :3] @ half
    first.ImagePositionPatient = [f"{v:.8f}" for v in corner]
    first.SpacingBetweenSlices = STEPS[0]
    block = first.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", csa(data.shape[0], place[:3, 0] / STEPS[0]))
    tiles = np.zeros((side * side, rows, columns, data.shape[3]), np.float32)
    tiles[: data.shape[0]] = data
    planes = tiles.reshape(side, side, rows, columns, -1).transpose(0, 2, 1, 3, 4)
    planes = planes.reshape(side * rows, side * columns, -1)
    made = []
    for volume in range(data.shape[3]):
        ds = copy.deepcopy(first)
        _functional(ds, number, description, volume, tag)
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        ds.PixelData = np.round(planes[..., volume]).astype("<u2").tobytes()
        made.append(ds)
    build.save_sources(made, folder)
    return str(first.SeriesInstanceUID)


def write_slices(folder: Path, data: npt.NDArray[np.float32], number: int, description: str, tag: str) -> str:
    """The same as one object a slice, the volumes told apart by TemporalPositionIdentifier."""
    made = []
    for volume in range(data.shape[3]):
        for plane, ds in enumerate(build.ct_series(affine(), np.zeros(data.shape[:3], np.float32), tag)):
            _functional(ds, number, description, volume, tag, plane)
            ds.TemporalPositionIdentifier, ds.NumberOfTemporalPositions = volume + 1, data.shape[3]
            ds.PixelData = np.round(data[plane, ..., volume]).astype("<u2").tobytes()
            made.append(ds)
    build.save_sources(made, folder)
    return str(made[0].SeriesInstanceUID)


def _functional(ds: object, number: int, description: str, volume: int, tag: str, plane: int = 0) -> None:
    """Make a CT slice one of a functional MR volume, of a patient with a name, in place."""
    ds.SOPClassUID, ds.Modality, ds.BodyPartExamined = build.MR, "MR", "BRAIN"
    ds.file_meta.MediaStorageSOPClassUID = build.MR
    ds.SOPInstanceUID = derive_uid("test", tag, str(volume), str(plane))
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.StudyInstanceUID = derive_uid("test", "functional study")
    ds.SeriesNumber, ds.SeriesDescription = number, description
    ds.AcquisitionNumber, ds.InstanceNumber = volume + 1, volume * 100 + plane + 1
    ds.RepetitionTime = SECONDS * 1000
    started = 36000 + volume * SECONDS
    ds.AcquisitionTime = f"{int(started // 3600):02d}{int(started % 3600 // 60):02d}{started % 60:09.6f}"
    ds.PatientName, ds.PatientID = "Secret^Person", "HOSPITAL-77"
    for keyword in ("KVP", "RescaleIntercept", "RescaleSlope", "RescaleType", "WindowCenter", "WindowWidth"):
        delattr(ds, keyword)
