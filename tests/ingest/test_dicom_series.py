"""Series of slices: order, geometry and refusal, against volumes whose every voxel is known."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, RLELossless

from medxai.errors import GeometryError, IdentifierError, IngestError
from medxai.ingest.dicom_series import read_series
from medxai.ingest.multiframe import read_multiframe
from tests.export.build import affine_of, anatomy, ct_series, enhanced_ct, save_sources

SHAPE = (6, 20, 26)


def series(folder: Path, *, oblique: bool = True, flipped: bool = False, shuffle: int = 0) -> list[Path]:
    """Write a series in shuffled file order."""
    files = save_sources(ct_series(affine_of(SHAPE, oblique=oblique, flipped=flipped), anatomy(SHAPE)), folder)
    random.Random(shuffle).shuffle(files)
    return files


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
def test_any_file_order_gives_the_grid(tmp_path: Path, oblique: bool, flipped: bool) -> None:
    """Slices ascend along the normal and every voxel lies where its own header says."""
    files = series(tmp_path, oblique=oblique, flipped=flipped, shuffle=3)
    volume, _ = read_series(files, "s")
    truth = np.rint(anatomy(SHAPE))
    assert np.array_equal(volume.pixels[0], truth[::-1] if flipped else truth)
    for d, header in enumerate(volume.source):
        corner = volume.affine @ [d, 0, 0, 1]
        assert np.allclose(corner[:3], [float(v) for v in header.ImagePositionPatient], atol=1e-6)
        assert np.allclose(volume.positions[d], corner[:3], atol=1e-6)
        assert "PixelData" not in header
    far = volume.affine @ [2, 7, 11, 1]
    header = volume.source[2]
    row, column = np.array(header.ImageOrientationPatient[:3]), np.array(header.ImageOrientationPatient[3:])
    expected = (
        np.array(header.ImagePositionPatient) + 7 * header.PixelSpacing[0] * column + 11 * header.PixelSpacing[1] * row
    )
    assert np.allclose(far[:3], expected.astype(float), atol=1e-6)
    assert np.cross(row, column) @ volume.affine[:3, 0] > 0


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_equals_uncompressed(tmp_path: Path, syntax: str) -> None:
    """Lossless syntaxes give the same Hounsfield units."""
    shape = (3, 72, 80)
    files = save_sources(ct_series(affine_of(shape), anatomy(shape), "packed"), tmp_path)
    plain, _ = read_series(files, "s")
    for path in files:
        dataset = dcmread(path)
        if syntax == RLELossless:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            dataset.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
        dataset.save_as(path)
    packed, _ = read_series(files, "s")
    assert np.array_equal(plain.pixels, packed.pixels)


def test_missing_slice_is_named(tmp_path: Path) -> None:
    """The gap and the spacing appear in the message."""
    files = sorted(series(tmp_path))
    with pytest.raises(GeometryError, match=r"1 missing slice \(gap of 8.00 mm .* spacing 4.00 mm\)"):
        read_series(files[:2] + files[3:], "s")


def test_duplicate_slice(tmp_path: Path) -> None:
    """The same instance twice, and two instances at one place."""
    files = sorted(series(tmp_path))
    with pytest.raises(GeometryError, match="1 duplicate slice"):
        read_series([*files, files[2]], "s")
    twin = dcmread(files[2])
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = "2.25.7"
    twin.save_as(tmp_path / "twin.dcm")
    with pytest.raises(GeometryError, match="1 duplicate slice position"):
        read_series([*files, tmp_path / "twin.dcm"], "s")


def test_two_orientations(tmp_path: Path) -> None:
    """A localiser inside the series is counted and named."""
    files = sorted(series(tmp_path, oblique=False))
    stray = dcmread(files[0])
    stray.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    stray.SOPInstanceUID = stray.file_meta.MediaStorageSOPInstanceUID = "2.25.8"
    stray.save_as(tmp_path / "stray.dcm")
    with pytest.raises(GeometryError, match=r"2 orientations in one series \(6 axial and 1 coronal slices\)"):
        read_series([*files, tmp_path / "stray.dcm"], "s")


def test_gantry_tilt(tmp_path: Path) -> None:
    """Positions that slide sideways are a tilt, with its angle."""
    files = sorted(series(tmp_path, oblique=False))
    for number, path in enumerate(files):
        dataset = dcmread(path)
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, round(y + 4.0 * number * np.tan(np.radians(15)), 6), z]
        dataset.save_as(path)
    with pytest.raises(GeometryError, match=r"gantry tilt 15.0 degrees"):
        read_series(files, "s")


def test_identifier_faults_are_listed_once(tmp_path: Path) -> None:
    """All faults in one message, with the way out."""
    files = sorted(series(tmp_path))
    for path in files:
        dataset = dcmread(path)
        dataset.SeriesInstanceUID = "not-a-uid"
        del dataset.PatientName
        dataset.save_as(path)
    with pytest.raises(IdentifierError) as caught:
        read_series(files, "s")
    assert "SeriesInstanceUID is not a valid UID (6 of 6 files)" in str(caught.value)
    assert "PatientName is absent (6 of 6 files)" in str(caught.value)
    assert "medxai repair" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_pixels(tmp_path: Path) -> None:
    """A file cut in its pixel data is refused, not read as a dark slice."""
    files = sorted(series(tmp_path))
    data = files[3].read_bytes()
    files[3].write_bytes(data[: len(data) - 300])
    with pytest.raises(IngestError, match="damaged"):
        read_series(files, "s")


def test_padding_and_monochrome1(tmp_path: Path) -> None:
    """Padding takes the lowest real value; MONOCHROME1 is inverted once and noted."""
    files = sorted(series(tmp_path))
    for path in files:
        dataset = dcmread(path)
        pixels = dataset.pixel_array.copy()
        pixels[0, 0] = 65000
        dataset.PixelData = pixels.tobytes()
        dataset.add_new("PixelPaddingValue", "US", 65000)
        dataset.save_as(path)
    volume, _ = read_series(files, "s")
    assert volume.pixels.max() < 2000
    plain = volume.pixels
    for path in files:
        dataset = dcmread(path)
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.save_as(path)
    inverted, notes = read_series(files, "s")
    assert "MONOCHROME1 inverted" in notes
    assert np.allclose(inverted.pixels, plain.max() + plain.min() - plain)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(7)))
def test_enhanced_frames_in_any_order(tmp_path: Path, order: list[int]) -> None:
    """Frames of a multi-frame object go to their places, with the frame number kept."""
    shape = (7, 12, 10)
    source = enhanced_ct(affine_of(shape), anatomy(shape), list(order))
    path = tmp_path / "enhanced.dcm"
    source.save_as(path, enforce_file_format=True)
    volume, _ = read_multiframe(path, "s")
    assert np.allclose(volume.pixels[0], np.rint(anatomy(shape) + 1024))
    assert list(volume.frame_numbers) == [order.index(d) + 1 for d in range(7)]
    assert np.allclose(volume.affine, affine_of(shape), atol=1e-5)
