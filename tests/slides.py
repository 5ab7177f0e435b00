"""Synthetic whole slides: levels of a pyramid, tiled either way, placed on the glass with known numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit
from pydicom.valuerep import format_number_as_ds

from medxai.identity import derive_uid
from medxai.ingest.slide import SLIDE
from medxai.ingest.slides.one_level import read_level
from medxai.ingest.slides.open import open_slide
from tests.export.build import Case, blob, result_of

Colours = npt.NDArray[np.uint8]
Syntax = Literal["native", "jpeg", "j2k"]

#: Rows and columns of the finest level, no multiple of the tile, and of the tile, which is no square.
SIZE, TILE = (920, 1236), (96, 128)
#: Between pixels of the finest level, rows and columns.
SPACING_MM = (0.002, 0.002)
#: Of the first pixel of the finest level, in the slide coordinate system.
ORIGIN_MM = (31.5, 17.25)
#: As most scanners write it: rows run along -Y, columns along -X.
ORIENTATION = (0.0, -1.0, 0.0, -1.0, 0.0, 0.0)


def tissue(size: tuple[int, int] = SIZE, spot: tuple[float, float] = (0.62, 0.28)) -> Colours:
    """Return ``[H, W, 3]``: pale tissue with a dark spot at a share of height and width."""
    h, w = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]), indexing="ij")
    inside = ((h - 0.5) / 0.42) ** 2 + ((w - 0.5) / 0.44) ** 2 < 1
    dark = ((h - spot[0]) * size[0] / size[1]) ** 2 + (w - spot[1]) ** 2 < 0.05**2
    red = np.where(inside, 225 - 30 * h, 245)
    green = np.where(inside, 160 + 60 * w, 244)
    blue = np.where(inside, 200 + 20 * np.sin(20 * h) * np.cos(14 * w), 246)
    picture = np.stack([red, green, blue], -1)
    picture[dark] = (90, 40, 130)
    return np.asarray(np.rint(picture), np.uint8)


def level(
    pixels: Colours, number: int = 0, *, tile: tuple[int, int] = TILE, sparse: bool = False, syntax: Syntax = "native",
    skip: Sequence[int] = (), orientation: Sequence[float] = ORIENTATION, spacing: tuple[float, float] = SPACING_MM,
    origin: tuple[float, float] = ORIGIN_MM, tag: str = "slide",
) -> Dataset:  # fmt: skip
    """Return one level; its pixels are those of the finest one taken together in squares of ``2 ** number``.

    Args:
        pixels: ``[H, W, 3]`` of this level.
        number: 0 for the finest one.
        tile: rows and columns.
        sparse: tiles tell their place, and are stored from the last to the first.
        syntax: of the pixel data.
        skip: tiles, counted row by row, that are not stored.
        orientation: directions of rows and of columns.
        spacing: of the finest level.
        origin: centre of the first pixel of the finest level.
        tag: what the identifiers are derived from.
    """
    factor = 2**number
    rows, columns = pixels.shape[:2]
    right, down = np.asarray(orientation, float).reshape(2, 3)
    # The first pixel of a coarse level covers several of the finest; its centre is in their middle.
    first = np.array([*origin, 0.0]) + (factor - 1) / 2 * (right * spacing[1] + down * spacing[0])
    ds = _general(tag, number)
    ds.ImageType = ["DERIVED" if number else "ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if number else "NONE"]
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixFocalPlanes = rows, columns, 1
    ds.ImagedVolumeHeight, ds.ImagedVolumeWidth = rows * spacing[0] * factor, columns * spacing[1] * factor
    ds.ImagedVolumeDepth = 4.0
    ds.ImageOrientationSlide = [format_number_as_ds(float(v)) for v in orientation]
    place = Dataset()
    place.XOffsetInSlideCoordinateSystem = format_number_as_ds(float(first[0]))
    place.YOffsetInSlideCoordinateSystem = format_number_as_ds(float(first[1]))
    ds.TotalPixelMatrixOriginSequence = [place]
    _groups(ds, (spacing[0] * factor, spacing[1] * factor))
    down_count, across = -(-rows // tile[0]), -(-columns // tile[1])
    order = [n for n in range(down_count * across) if n not in skip]
    if sparse:
        order.reverse()
        ds.PerFrameFunctionalGroupsSequence = [
            _position(n // across * tile[0], n % across * tile[1], first, right, down, spacing, factor) for n in order
        ]
        _dimensions(ds, tag, number)
        for item, n in zip(ds.PerFrameFunctionalGroupsSequence, order, strict=True):
            content = Dataset()
            content.DimensionIndexValues = [n // across + 1, n % across + 1]
            item.FrameContentSequence = [content]
    else:
        organisation = Dataset()
        organisation.DimensionOrganizationUID = derive_uid("test", tag, str(number), "dimensions")
        ds.DimensionOrganizationSequence = [organisation]
    ds.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    padded = np.pad(
        pixels, ((0, down_count * tile[0] - rows), (0, across * tile[1] - columns), (0, 0)), constant_values=7
    )
    tiles = [
        padded[n // across * tile[0] :, n % across * tile[1] :][: tile[0], : tile[1]] for n in order
    ]  # what lies over the edge is never to be seen
    _store(ds, tiles, tile, syntax)
    return ds


def pyramid(size: tuple[int, int] = SIZE, levels: int = 3, **settings: object) -> list[Dataset]:
    """Return the levels of a slide, the finest first; a coarse one is the mean of squares of the finest."""
    finest = tissue(size)
    found = []
    for number in range(levels):
        factor = 2**number
        rows, columns = size[0] // factor, size[1] // factor
        blocks = finest[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
        found.append(level(np.rint(blocks.mean((1, 3))).astype(np.uint8), number, **settings))  # type: ignore[arg-type]
    return found


def label(tag: str = "slide", flavour: str = "LABEL") -> Dataset:
    """Return a small image of the same series that is no level."""
    ds = level(tissue((60, 50)), 6, tag=tag)
    ds.ImageType = ["ORIGINAL", "PRIMARY", flavour, "NONE"]
    ds.SOPInstanceUID = derive_uid("test", tag, flavour)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def save(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write the levels and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(datasets):
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)
        paths.append(folder / f"{number}.dcm")
    return paths


def _general(tag: str, number: int) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = SLIDE, derive_uid("test", tag, str(number))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = derive_uid("test", tag, "study"), derive_uid("test", tag, "series")
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = derive_uid("test", tag, "frame"), "SLIDE_CORNER"
    ds.StudyDate = ds.ContentDate = "20240305"
    ds.StudyTime = ds.ContentTime = "101112"
    ds.AcquisitionDateTime = "20240305101112"
    ds.AccessionNumber, ds.Modality, ds.Manufacturer = "A1", "SM", "Phantom Works"
    ds.ManufacturerModelName, ds.DeviceSerialNumber, ds.SoftwareVersions = "Phantom", "1", "1"
    ds.ReferringPhysicianName = "Referrer^Test"
    ds.PatientName, ds.PatientID = "Secret^Patient^Name", "SECRET-4711"
    ds.PatientBirthDate, ds.PatientSex = "19500101", "F"
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 3, number + 1
    ds.AcquisitionContextSequence = []
    ds.VolumetricProperties, ds.BurnedInAnnotation, ds.LossyImageCompression = "VOLUME", "NO", "00"
    ds.SpecimenLabelInImage, ds.FocusMethod, ds.ExtendedDepthOfField = "NO", "AUTO", "NO"
    ds.NumberOfOpticalPaths = 1
    _specimen(ds, tag)
    path, light, channel = (
        Dataset(),
        _code("414298005", "SCT", "Full Spectrum"),
        _code("111744", "DCM", "Brightfield illumination"),
    )
    path.OpticalPathIdentifier = "1"
    path.IlluminationColorCodeSequence, path.IlluminationTypeCodeSequence = [light], [channel]
    path.ICCProfile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path.ICCProfile += b"\0" * (len(path.ICCProfile) % 2)
    ds.OpticalPathSequence = [path]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = SLIDE
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _specimen(ds: Dataset, tag: str) -> None:
    ds.ContainerIdentifier, ds.IssuerOfTheContainerIdentifierSequence = "S-1", []
    ds.ContainerTypeCodeSequence = [_code("433466003", "SCT", "Microscope slide")]
    item = Dataset()
    item.SpecimenIdentifier, item.SpecimenUID = "S-1", derive_uid("test", tag, "specimen")
    item.IssuerOfTheSpecimenIdentifierSequence, item.SpecimenPreparationSequence = [], []
    ds.SpecimenDescriptionSequence = [item]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _position(
    row: int, column: int, first: npt.NDArray[np.float64], right: npt.NDArray[np.float64],
    down: npt.NDArray[np.float64], spacing: tuple[float, float], factor: int,
) -> Dataset:  # fmt: skip
    item, place = Dataset(), Dataset()
    corner = first + factor * (row * spacing[0] * down + column * spacing[1] * right)
    place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix = row + 1, column + 1
    place.XOffsetInSlideCoordinateSystem = format_number_as_ds(float(corner[0]))
    place.YOffsetInSlideCoordinateSystem = format_number_as_ds(float(corner[1]))
    place.ZOffsetInSlideCoordinateSystem = "0"
    item.PlanePositionSlideSequence = [place]
    return item


def _dimensions(ds: Dataset, tag: str, number: int) -> None:
    organisation = Dataset()
    organisation.DimensionOrganizationUID = derive_uid("test", tag, str(number), "dimensions")
    ds.DimensionOrganizationSequence = [organisation]
    ds.DimensionIndexSequence = []
    for pointer in (0x0048021F, 0x0048021E):
        item = Dataset()
        item.DimensionOrganizationUID = organisation.DimensionOrganizationUID
        item.DimensionIndexPointer, item.FunctionalGroupPointer = pointer, 0x0048021A
        ds.DimensionIndexSequence.append(item)


def _store(ds: Dataset, tiles: list[Colours], tile: tuple[int, int], syntax: Syntax) -> None:
    ds.Rows, ds.Columns, ds.NumberOfFrames = *tile, len(tiles)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    if syntax == "jpeg":
        frames = []
        for picture in tiles:
            stream = io.BytesIO()
            Image.fromarray(picture).save(stream, "JPEG", quality=95, subsampling="4:2:2")
            frames.append(stream.getvalue())
        ds.file_meta.TransferSyntaxUID, ds.PhotometricInterpretation = JPEGBaseline8Bit, "YBR_FULL_422"
        ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", "ISO_10918_1"
        ds.LossyImageCompressionRatio = "10"
        ds.PixelData = encapsulate(frames)
        ds["PixelData"].is_undefined_length = True
        return
    data = np.stack(tiles).tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB"
    if syntax == "j2k":
        ds.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)


def slide_case(folder: Path, spot: tuple[float, float] = (0.62, 0.28), **settings: object) -> Case:
    """Return a slide read from files below `folder`, with a map that peaks on its dark spot and reaches over tiles."""
    sources = pyramid(**settings)  # type: ignore[arg-type]
    with open_slide(save(sources, folder)) as slide:
        volume, notes = read_level(slide, "0123456789ab")
    shape = volume.shape
    values = blob(shape, (spot[0] * (shape[0] - 1), spot[1] * (shape[1] - 1)), (0.05 * shape[0], 0.03 * shape[1]))
    result = result_of(volume, values, seed=str(sorted(settings)))
    return Case(replace(result, study=replace(result.study, notes=notes)), sources)


def real_level(path: Path) -> Dataset:
    """Return the JPEG tiles of a real slide (42 of 500 x 500) in a complete header.

    The file says nothing of the order of its tiles. The padding within them shows it: they go down column by column.
    """
    stored = dcmread(path)
    ds = _general("real", 0)
    for keyword in (
        "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "TotalPixelMatrixOriginSequence", "ImageOrientationSlide",
        "ImagedVolumeWidth", "ImagedVolumeHeight", "ImagedVolumeDepth", "Rows", "Columns", "NumberOfFrames",
        "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit",
        "PixelRepresentation", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
        "PixelData",
    ):  # fmt: skip
        ds.add(stored[keyword])
    ds.ImageType, ds.TotalPixelMatrixFocalPlanes = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], 1
    rows, columns = int(ds.TotalPixelMatrixRows), int(ds.TotalPixelMatrixColumns)
    spacing = (float(ds.ImagedVolumeHeight) / rows, float(ds.ImagedVolumeWidth) / columns)
    origin = ds.TotalPixelMatrixOriginSequence[0]
    first = np.array([float(origin.XOffsetInSlideCoordinateSystem), float(origin.YOffsetInSlideCoordinateSystem), 0.0])
    right, down = np.array([float(v) for v in ds.ImageOrientationSlide]).reshape(2, 3)
    _groups(ds, spacing)
    _dimensions(ds, "real", 0)
    ds.DimensionOrganizationType = "TILED_SPARSE"
    ds.PerFrameFunctionalGroupsSequence = []
    for number in range(int(ds.NumberOfFrames)):
        row, column = number % 6, number // 6
        item = _position(row * 500, column * 500, first, right, down, spacing, 1)
        item.FrameContentSequence = [Dataset()]
        item.FrameContentSequence[0].DimensionIndexValues = [row + 1, column + 1]
        ds.PerFrameFunctionalGroupsSequence.append(item)
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return ds


def _groups(ds: Dataset, spacing: tuple[float, float]) -> None:
    shared, measures, kind, path = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [format_number_as_ds(v) for v in spacing], "0.004"
    kind.FrameType = ds.ImageType
    path.OpticalPathIdentifier = "1"
    shared.PixelMeasuresSequence, shared.WholeSlideMicroscopyImageFrameTypeSequence = [measures], [kind]
    shared.OpticalPathIdentificationSequence = [path]
    ds.SharedFunctionalGroupsSequence = [shared]
