"""Synthetic studies with known geometry and known maps; every number in them can be computed by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from medxai.identity import derive_uid, sha256_text
from medxai.study import Confidence, Explanation, Prediction, Result, Study, Volume

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
US = "1.2.840.10008.5.1.4.1.1.6.1"
US_MULTI = "1.2.840.10008.5.1.4.1.1.3.1"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"

#: D, H and W differ, H*W is not a multiple of 8, and the three spacings differ.
SHAPE = (7, 45, 61)
SPACING = (4.0, 0.8, 0.6)
#: Probabilities of the five frames of the cine for its three classes: the first three frames speak for "bleeding".
COURSE = np.array(
    [[0.05, 0.9, 0.05], [0.02, 0.95, 0.03], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=np.float32
)


def rotation(about_x: float, about_z: float) -> npt.NDArray[np.float64]:
    """Return the 3x3 rotation by two angles in degrees."""
    a, b = np.radians([about_x, about_z])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return np.asarray(z @ x)


def affine_of(
    shape: tuple[int, ...] = SHAPE, spacing: tuple[float, float, float] = SPACING,
    *, oblique: bool = True, flipped: bool = False,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Return index (d, h, w) -> LPS mm; `flipped` makes the first slice the highest one."""
    turn = rotation(17.0, 11.0) if oblique else np.eye(3)
    matrix = np.eye(4)
    matrix[:3, 2] = turn @ [spacing[2], 0, 0]
    matrix[:3, 1] = turn @ [0, spacing[1], 0]
    matrix[:3, 0] = turn @ [0, 0, -spacing[0] if flipped else spacing[0]]
    matrix[:3, 3] = [-20.5, -31.25, 112.0]
    return matrix


def blob(shape: tuple[int, ...], centre: tuple[float, ...], width: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return a Gaussian of height 1 at `centre` (index units), exactly 0 where it is below 0.02."""
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    out = np.exp(-0.5 * sum(((g - c) / w) ** 2 for g, c, w in zip(grids, centre, width, strict=True)))
    return np.where(out < 0.02, 0.0, out).astype(np.float32)


def anatomy(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return a head-like phantom in Hounsfield units, ``[D, H, W]``; no two slices are alike."""
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt((h / 0.9) ** 2 + (w / 0.8) ** 2) + 0.12 * np.abs(d)
    pixels = np.full(shape, -1000.0)
    pixels[radius < 1.0] = 900.0
    inside = radius < 0.9
    pixels[inside] = (35 + 12 * np.sin(7 * h) * np.cos(6 * w + 2 * d))[inside]
    pixels[np.sqrt((h + 0.1) ** 2 + (np.abs(w) - 0.18) ** 2 * 4) < 0.2] = 5.0
    return pixels.astype(np.float32)


def _common(number: int, sop_class: str, modality: str, tag: str) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, derive_uid("test", tag, str(number))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = derive_uid("test", tag, "study"), derive_uid("test", tag, "series")
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = "20240305"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = "101112"
    ds.AccessionNumber, ds.Modality, ds.Manufacturer = "A1", modality, "Phantom Works"
    ds.ManufacturerModelName, ds.DeviceSerialNumber, ds.SoftwareVersions = "Phantom", "1", "1"
    ds.ReferringPhysicianName = "Referrer^Test"
    ds.PatientName, ds.PatientID = "Secret^Patient^Name", "SECRET-4711"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19500101", "F", "074Y"
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = "1", 3, number, 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _grey(ds: Dataset, pixels: npt.NDArray[np.float32], intercept: float = -1024.0) -> None:
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelData = np.rint(pixels - intercept).astype("<u2").tobytes()


def _orientation(affine: npt.NDArray[np.float64]) -> list[str]:
    right, down = affine[:3, 2], affine[:3, 1]
    return [format_number_as_ds(float(v)) for v in [*(right / np.linalg.norm(right)), *(down / np.linalg.norm(down))]]


def ct_series(affine: npt.NDArray[np.float64], pixels: npt.NDArray[np.float32], tag: str = "ct") -> list[Dataset]:
    """Return one CT image per slice, in the order of the ``D`` axis, with pixels."""
    datasets = []
    for index, plane in enumerate(pixels):
        ds = _common(index + 1, CT, "CT", tag)
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = derive_uid("test", tag, "frame"), ""
        position = affine @ [index, 0, 0, 1]
        ds.ImagePositionPatient = [format_number_as_ds(float(v)) for v in position[:3]]
        ds.ImageOrientationPatient = _orientation(affine)
        ds.PixelSpacing = [format_number_as_ds(float(np.linalg.norm(affine[:3, axis]))) for axis in (1, 2)]
        ds.SliceThickness = format_number_as_ds(float(np.linalg.norm(affine[:3, 0])))
        ds.KVP, ds.BodyPartExamined, ds.PatientPosition = "120", "HEAD", "HFS"
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
        ds.WindowCenter, ds.WindowWidth = "40", "120"
        _grey(ds, plane)
        datasets.append(ds)
    return datasets


def enhanced_ct(
    affine: npt.NDArray[np.float64], pixels: npt.NDArray[np.float32], order: list[int], tag: str = "enhanced"
) -> Dataset:
    """Return one enhanced CT whose frame ``k`` (0-based) is slice ``order[k]``; orientation stands in each frame."""
    ds = _common(1, ENHANCED_CT, "CT", tag)
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = derive_uid("test", tag, "frame"), ""
    ds.BodyPartExamined, ds.NumberOfFrames = "HEAD", len(order)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.LossyImageCompression = "00"
    frames = []
    for index in order:
        frame, position, plane, measures = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [format_number_as_ds(float(v)) for v in (affine @ [index, 0, 0, 1])[:3]]
        plane.ImageOrientationPatient = _orientation(affine)
        measures.PixelSpacing = [format_number_as_ds(float(np.linalg.norm(affine[:3, axis]))) for axis in (1, 2)]
        measures.SliceThickness = format_number_as_ds(float(np.linalg.norm(affine[:3, 0])))
        frame.PlanePositionSequence, frame.PlaneOrientationSequence = [position], [plane]
        frame.PixelMeasuresSequence = [measures]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence = frames, [Dataset()]
    _grey(ds, pixels[order])
    return ds


def ultrasound(pixels: npt.NDArray[np.float32], tag: str = "us") -> Dataset:
    """Return a grey ultrasound still ``[H, W]`` or cine ``[T, H, W]`` without frame of reference."""
    cine = pixels.ndim == 3
    ds = _common(1, US_MULTI if cine else US, "US", f"{tag}{pixels.ndim}")
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.BodyPartExamined, ds.Laterality, ds.PatientOrientation = "BREAST", "L", ""
    if cine:
        ds.NumberOfFrames, ds.FrameIncrementPointer, ds.FrameTime = len(pixels), 0x00181063, "40"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    data = np.rint(pixels).astype(np.uint8).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    return ds


def headers(datasets: list[Dataset]) -> tuple[Dataset, ...]:
    """Return copies without pixels, as ingestion keeps them."""
    out = []
    for ds in datasets:
        copy = Dataset()
        for element in ds:
            if element.keyword != "PixelData":
                copy.add(element)
        copy.file_meta = ds.file_meta
        out.append(copy)
    return tuple(out)


def explain(
    volume: Volume, values: npt.NDArray[np.float32], *, method: str = "gradcam", index: int = 1, label: str = "bleeding"
) -> Explanation:
    """Return an explanation whose map is `values`; input and layer grids are coarser by 1 and 4."""
    shape = values.shape
    cells = tuple(max(1, n // 4) for n in shape)
    raw = np.random.default_rng(3).normal(size=(1, *cells)).astype(np.float32)
    empty = float(values.max(initial=0.0)) <= 0
    spacing = volume.spacing if volume.axes != "THW" else (0.0, *volume.spacing[1:])
    return Explanation(
        method=method,
        layer="features.norm5",
        class_index=index,
        class_label=label,
        score=2.375,
        raw=raw,
        input_map=values.copy(),
        map=values,
        affine=volume.affine,
        input_affine=volume.affine,
        cell_mm=tuple(4 * v for v in spacing),  # type: ignore[arg-type]
        model_sha256="b" * 64,
        parameters={"relu": True},
        flags=frozenset({"empty"}) if empty else frozenset(),
        reason="all gradients are zero" if empty else "",
    )


def result_of(
    volume: Volume, values: npt.NDArray[np.float32],
    kind: Literal["dicom", "nifti", "picture", "video"] = "dicom", *, seed: str = "",
) -> Result:  # fmt: skip
    """Return a complete result around one map; a second map is a scaled mirror image for another class."""
    study = Study("0123456789ab", kind, sha256_text("input", seed), volume, ("frames sorted by position",))
    logits = np.array([-1.1, 2.375, 0.2], dtype=np.float32)
    weights = np.exp(logits)
    probabilities = (weights / weights.sum()).astype(np.float32)
    prediction = Prediction(("normal", "bleeding", "fracture"), logits, probabilities, 1, "head_ct 1.2.0", "b" * 64)
    second = np.ascontiguousarray(values[..., ::-1]) * np.float32(0.5)
    explanations = (
        explain(volume, values * np.float32(0.37)),
        explain(volume, second, method="layercam", index=2, label="fracture"),
    )
    return Result(study, prediction, explanations, "c" * 64, "2024-03-05T10:11:12")


@dataclass(frozen=True)
class Case:
    """A result with the source objects it came from (with pixels)."""

    result: Result
    sources: list[Dataset]


def ct_case(
    *, oblique: bool = True, flipped: bool = False, shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
) -> Case:  # fmt: skip
    """Return a CT series with a blob off the centre of every axis."""
    affine = affine_of(shape, spacing, oblique=oblique, flipped=flipped)
    pixels = anatomy(shape)
    sources = ct_series(affine, pixels, f"ct{oblique}{flipped}{shape}")
    positions = np.array([[float(v) for v in ds.ImagePositionPatient] for ds in sources])
    volume = Volume(
        pixels[np.newaxis], "DHW", affine, "CT", positions, str(sources[0].FrameOfReferenceUID), "HEAD", True,
        headers(sources),
    )  # fmt: skip
    centre = (0.3 * shape[0], 0.62 * shape[1], 0.35 * shape[2])
    values = blob(shape, centre, (max(0.8, 0.06 * shape[0]), 0.12 * shape[1], 0.1 * shape[2]))
    return Case(result_of(volume, values, seed=str((oblique, flipped, shape))), sources)


def mr_case(*, shape: tuple[int, int, int] = SHAPE, spacing: tuple[float, float, float] = SPACING) -> Case:
    """Return a sagittal MR series without rescale and window, of a knee whose side is known."""
    case = ct_case(oblique=False, shape=shape, spacing=spacing)
    turn = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])  # slices to the left, rows downwards, columns to the back
    volume = case.result.study.volume
    affine = volume.affine.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    for ds in (*case.sources, *volume.source):
        number = int(ds.InstanceNumber) - 1
        ds.SOPClassUID, ds.Modality, ds.BodyPartExamined, ds.Laterality = MR, "MR", "KNEE", "R"
        ds.file_meta.MediaStorageSOPClassUID = MR
        ds.ImagePositionPatient = [format_number_as_ds(float(v)) for v in (affine @ [number, 0, 0, 1])[:3]]
        ds.ImageOrientationPatient = _orientation(affine)
        for keyword in ("KVP", "RescaleIntercept", "RescaleSlope", "RescaleType", "WindowCenter", "WindowWidth"):
            delattr(ds, keyword)
    positions = np.array([[float(v) for v in ds.ImagePositionPatient] for ds in case.sources])
    volume = replace(volume, affine=affine, positions=positions, modality="MR", body_part="KNEE")
    return Case(result_of(volume, case.result.explanations[0].map / np.float32(0.37), seed="mr"), case.sources)


def enhanced_case(order: list[int] | None = None) -> Case:
    """Return an enhanced CT whose frames are shuffled; two of its nine frames are not part of the volume."""
    full = (9, *SHAPE[1:])
    affine = affine_of(full)
    pixels = anatomy(full)
    order = order or [4, 0, 8, 2, 6, 1, 7, 3, 5]
    source = enhanced_ct(affine, pixels, order)
    kept = list(range(7))
    numbers = tuple(order.index(index) + 1 for index in kept)
    positions = np.array([(affine @ [i, 0, 0, 1])[:3] for i in kept])
    volume = Volume(
        pixels[np.newaxis, :7], "DHW", affine, "CT", positions, str(source.FrameOfReferenceUID), "HEAD", True,
        headers([source]), numbers,
    )  # fmt: skip
    return Case(result_of(volume, blob((7, *SHAPE[1:]), (2, 28, 21), (0.9, 5, 6)), seed="enhanced"), [source])


def us_case(*, cine: bool) -> Case:
    """Return an ultrasound still or a cine of five frames, calibrated, without frame of reference."""
    shape = (5, 45, 61) if cine else (45, 61)
    rng = np.random.default_rng(5)
    pixels = np.rint(60 + 40 * rng.random(shape)).astype(np.float32)
    source = ultrasound(pixels)
    affine = np.diag([0.0, 0.3, 0.2, 1.0])
    numbers = tuple(range(1, 6)) if cine else ()
    volume = Volume(
        pixels[np.newaxis], "THW" if cine else "HW", affine, "US", None, None, "BREAST", True, headers([source]),
        numbers, 0.04 if cine else None,
    )  # fmt: skip
    centre = (1.0, 28.0, 21.0) if cine else (28.0, 21.0)
    width = (0.8, 6.0, 7.0) if cine else (6.0, 7.0)
    result = result_of(volume, blob(shape, centre, width), seed=f"us{cine}")
    if cine:
        sure = Confidence((0.9, 0.8, 0.95), (0.9, 0.86, 0.99), passes=10, pictures=5, low=0.5)
        result = replace(
            result,
            prediction=replace(result.prediction, window_probabilities=COURSE, confidence=sure, reject="fracture"),
        )
    return Case(result, [source])


def save_sources(sources: list[Dataset], folder: Path) -> list[Path]:
    """Write the source objects and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(sources):
        path = folder / f"source_{number:03d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def by_position(path: Path, values: npt.NDArray[np.float32]) -> dict[tuple[float, ...], npt.NDArray[np.float32]]:
    """Return the frames of a multi-frame object keyed by ImagePositionPatient rounded to a micrometre."""
    ds = dcmread(path)
    return {
        tuple(round(float(v), 3) for v in item.PlanePositionSequence[0].ImagePositionPatient): frame
        for item, frame in zip(ds.PerFrameFunctionalGroupsSequence, values, strict=True)
    }
