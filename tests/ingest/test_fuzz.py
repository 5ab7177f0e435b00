from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medxai.errors import IngestError
from medxai.ingest import decoder_process
from medxai.ingest.decoder_process import DecodingError, decode
from medxai.ingest.dicom_file import read_header, read_pixels
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from tests.ingest.fuzz import fuzz, mutate

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
JPEG = FILES / "SC_rgb_jpeg.dcm"


@pytest.mark.slow
def test_thousands_of_damaged_files_end_with_a_reason() -> None:
    """The first of the ten thousand that `make bench ONLY=fuzz_crashes` goes through."""
    outcomes, faults = fuzz(3_000)
    assert not faults
    assert outcomes["read"] > 100  # some damage is harmless, and the others did not fail for one and the same reason
    assert outcomes["refused"] > 100


def test_some_damaged_files_end_with_a_reason() -> None:
    outcomes, faults = fuzz(300, first=20_000)
    assert not faults
    assert sum(outcomes.values()) == 300


def test_a_decoder_that_aborts_takes_only_its_file_with_it(tmp_path: Path) -> None:
    """GDCM throws on this one where nobody catches, which ends its process."""
    path = tmp_path / "damaged.dcm"
    path.write_bytes(mutate(JPEG.read_bytes(), np.random.default_rng([0, 617])))
    with pytest.raises(IngestError, match="pixel data cannot be decoded"):
        read_pixels(path)
    assert read_pixels(JPEG)[1].shape == (256, 256, 3)


@pytest.mark.parametrize(
    ("name", "plugin", "frame"),
    [
        ("SC_rgb_jpeg.dcm", "gdcm", None),
        ("examples_jpeg2k.dcm", "pylibjpeg", None),
        ("examples_ybr_color.dcm", "gdcm", 3),
        ("JPEGLSNearLossless_16.dcm", "pyjpegls", None),
    ],
)
def test_the_same_pixels_as_in_this_process(name: str, plugin: str, frame: int | None) -> None:
    path = FILES / name
    expected = pydicom.pixels.pixel_array(pydicom.dcmread(path), index=frame, decoding_plugin=plugin)
    found = decode(path, frame, plugin)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_a_decoder_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecodingError, match="did not finish"):
        decode(JPEG, None, "gdcm", seconds=0.0)
    assert decode(JPEG, None, "gdcm").shape == (256, 256, 3)


def test_a_killed_decoder_is_replaced() -> None:
    decode(JPEG, None, "gdcm")
    decoder_process._local.process._process.kill()
    decoder_process._local.process._process.wait()
    with pytest.raises(DecodingError, match="the decoder ended on it"):
        decode(JPEG, None, "gdcm")
    assert decode(JPEG, None, "gdcm").shape == (256, 256, 3)


def test_every_thread_and_fork_has_its_own() -> None:
    decode(JPEG, None, "gdcm")
    mine = decoder_process._local.process
    found = []

    def work() -> None:
        decode(JPEG, None, "gdcm")
        found.append(decoder_process._local.process)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] is not mine
    assert mine.owner == os.getpid()


@pytest.mark.parametrize("change", ["thickness", "columns", "meta"])
def test_damaged_values_are_named(tmp_path: Path, change: str) -> None:
    dataset = pydicom.dcmread(FILES / "MR_small.dcm")
    path = tmp_path / "damaged.dcm"
    if change == "columns":
        del dataset.Columns
    dataset.save_as(path)
    if change == "thickness":
        value = f"{dataset.SliceThickness}".encode()
        content = path.read_bytes()
        place = content.index(b"\x18\x00\x50\x00DS") + 8
        path.write_bytes(content[:place] + b"0.8\xfe" + content[place + 4 :])
        assert value
    if change == "meta":
        content = path.read_bytes()
        path.write_bytes(content.replace(b"\x02\x00\x02\x00UI", b"\x02\x00\x02\x00U8", 1))
        with pytest.raises(IngestError, match="cannot be parsed as DICOM"):
            read_header(path)
        return
    (source,) = discover([path], tmp_path).sources
    with pytest.raises(IngestError, match=r"header is damaged: (Columns is missing|a value cannot be used)") as error:
        read_study(source)
    assert source.key in str(error.value)
