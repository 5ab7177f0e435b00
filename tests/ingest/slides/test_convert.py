"""Conversion by wsidicomizer where it is installed: the same pixels, valid, no label; and what is one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from medxai.errors import IngestError
from medxai.ingest.slides.convert import PROGRAM, convert
from medxai.ingest.slides.open import open_slide
from tests.studies import command
from tests.tools import dicom_errors, require_data

Capture = pytest.CaptureFixture[str]


@pytest.mark.data
@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"the program {PROGRAM} is installed apart, and is not here")
def test_a_real_slide_keeps_its_pixels(tmp_path: Path, capfd: Capture) -> None:
    source, folder = require_data("wsi", "small_HE.svs"), tmp_path / "new" / "dicom"
    done = command(capfd, "slide", "convert", source, "-o", folder)
    assert done.code == 0, done.err
    assert "1 level(s): 2220 x 2967 pixels" in done.out
    assert "no patient and no study is stated" in done.out
    assert "small_HE" not in done.out + done.err
    for path in folder.iterdir():
        assert dicom_errors(path) == [], path.name
    with open_slide(folder) as made, open_slide(source) as before:
        assert made.kind == "dicom"
        assert made.levels[0].mpp == pytest.approx(before.levels[0].mpp, rel=1e-3)
        for row, column in ((1000, 700), (2900, 2100)):
            # Decoders differ in the last bit.
            pixels = [slide.read(0, row, column, 300, 260).astype(int) for slide in (made, before)]
            assert np.abs(pixels[0] - pixels[1]).max() <= 3
    again = command(capfd, "slide", "convert", source, "-o", folder)
    assert again.code == 2
    assert "is there already" in again.errors[0]
    assert [path.name for path in folder.parent.iterdir()] == ["dicom"]


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"the program {PROGRAM} is installed apart, and is not here")
def test_what_is_no_slide_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "NAME.svs").write_bytes(b"II*\0 no slide")
    with pytest.raises(IngestError, match=r"cannot convert it \(exit code \d+\)|libjpeg-turbo is missing") as told:
        convert(tmp_path / "NAME.svs", tmp_path / "out", name="key")
    assert "NAME" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["NAME.svs"]


def test_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    """What to install is said, and the slide goes by its pseudonym."""
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    (tmp_path / "NAME.svs").write_bytes(b"II*\0")
    done = command(capfd, "slide", "convert", tmp_path / "NAME.svs", "-o", tmp_path / "out")
    assert done.code == 2
    assert "conversion needs the program wsidicomizer" in done.errors[0]
    assert "NAME" not in done.err
    assert not (tmp_path / "out").exists()
