"""What is read of an object before it is kept: four identifiers, from any syntax and from damaged bytes."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless

from medxai.transport.incoming import Incoming, NotUnderstoodError, file_head, identify
from tests.studies import dicom_study
from tests.transport.callers import encoded, first, storescu
from tests.transport.conftest import Gate

EXPLICIT, IMPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series."""
    return dicom_study(tmp_path_factory.mktemp("study") / "ct", 340)


def identifiers(folder: Path) -> Incoming:
    """Of its first slice."""
    dataset = first(folder)
    return Incoming(
        str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(dataset.StudyInstanceUID),
        str(dataset.SeriesInstanceUID),
    )  # fmt: skip


def test_every_encoding(study: Path) -> None:
    """Explicit, implicit and deflated; the pixels may be cut off."""
    dataset = first(study)
    plain = encoded(dataset)
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = deflate.compress(plain) + deflate.flush()
    for data, syntax in ((plain, EXPLICIT), (plain[:-500], EXPLICIT), (packed, DEFLATED)):
        assert identify(memoryview(data), syntax) == identifiers(study)
    assert identify(implicit(study), IMPLICIT) == identifiers(study)


def implicit(folder: Path) -> bytes:
    """Data set in implicit VR little endian."""
    import io

    from pydicom.filebase import DicomFileLike
    from pydicom.filewriter import write_dataset

    buffer = io.BytesIO()
    stream = DicomFileLike(buffer)  # type: ignore[no-untyped-call]
    stream.is_implicit_VR, stream.is_little_endian = True, True
    write_dataset(stream, first(folder))
    return buffer.getvalue()


def test_a_bomb_is_not_unpacked(study: Path) -> None:
    """Of 128 MiB of zeros in a small object only the head is unpacked."""
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(deflate.compress(bytes(1 << 24)) for _ in range(8)) + deflate.flush()
    tracemalloc.start()
    with pytest.raises(NotUnderstoodError):
        identify(bomb, DEFLATED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


def test_damaged_bytes_end_in_one_error(study: Path) -> None:
    """Two thousand mutations: identified, or not understood; nothing else is raised, no value is repeated."""
    plain = encoded(first(study))
    random.seed(9)
    outcomes = {"identified": 0, "not understood": 0}
    said: list[str] = []
    for _ in range(2000):
        data = bytearray(plain[: random.randrange(1, len(plain))] if random.random() < 0.3 else plain)
        for _ in range(random.randrange(1, 12)):
            data[random.randrange(min(len(data), 900))] = random.randrange(256)
        try:
            identify(bytes(data), EXPLICIT)
            outcomes["identified"] += 1
        except NotUnderstoodError as error:
            outcomes["not understood"] += 1
            said.append(str(error))
    assert min(outcomes.values()) > 50
    assert not [line for line in said if "PHANTOM" in line]


def test_the_head_makes_a_file(study: Path, tmp_path: Path) -> None:
    """Preamble, prefix and meta information before the data set: a DICOM file of this product."""
    dataset = first(study)
    head = file_head(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), EXPLICIT)
    path = tmp_path / "x.dcm"
    path.write_bytes(head + encoded(dataset))
    back = dcmread(path)
    assert back == dataset
    assert back.file_meta.TransferSyntaxUID == EXPLICIT
    assert str(back.file_meta.ImplementationVersionName).startswith("medxai")


@pytest.mark.pacs
def test_compressed_objects_stay_compressed(gate: Callable[..., Gate], study: Path, tmp_path: Path) -> None:
    """RLE by dcmtk: kept in its transfer syntax, same pixels."""
    there = gate()
    dataset = first(study)
    pixels = dataset.pixel_array
    dataset.compress(RLELossless)
    path = tmp_path / "rle.dcm"
    dataset.save_as(path, enforce_file_format=True)
    assert storescu(there.port, path, "-xr").returncode == 0
    (kept,) = there.files()
    back = dcmread(kept)
    assert back.file_meta.TransferSyntaxUID == RLELossless
    assert (back.pixel_array == pixels).all()
