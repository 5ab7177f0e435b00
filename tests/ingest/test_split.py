"""Volumes that share a series are told apart, and one volume is never torn."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from medxai.errors import GeometryError, IngestError
from medxai.ingest.diffusion import Diffusion, read_diffusion
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.ingest.split import Slice, split
from medxai.study import Study
from tests.export.build import affine_of, anatomy, ct_series, save_sources

SHAPE = (4, 12, 18)


def written(folder: Path, change: Callable[[Dataset, int], None], *, turn: bool = False, offset: float = 0.0) -> None:
    """Add one volume to the series in a folder; `turn` makes it coronal."""
    affine = affine_of(SHAPE)
    if turn:
        affine = affine.copy()
        affine[:3] = affine[[0, 2, 1]]
    sources = ct_series(affine, anatomy(SHAPE) + offset)
    for number, dataset in enumerate(sources):
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}.{len(list(folder.glob('*')))}.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        change(dataset, number)
    part = folder / str(len(list(folder.glob("*"))))
    save_sources(sources, part)


def unchanged(_dataset: Dataset, _number: int) -> None:
    """Leave a slice as it is."""


def studies(folder: Path, work: Path) -> list[Study]:
    """All volumes below a folder."""
    return [read_study(source) for source in discover([folder], work).sources]


def test_one_volume_stays_one(tmp_path: Path) -> None:
    """Attributes that differ from slice to slice do not matter where every place is occupied once."""

    def vary(dataset: Dataset, number: int) -> None:
        dataset.AcquisitionNumber = number // 2
        dataset.EchoTime = str(number)

    written(tmp_path / "in", vary)
    (source,) = discover([tmp_path / "in"], tmp_path / "work").sources
    assert source.part == ""
    study = read_study(source)
    assert study.volume.shape == SHAPE
    assert not any("several" in note for note in study.notes)


@pytest.mark.parametrize(
    ("keyword", "values", "words"),
    [
        ("EchoTime", ("4.9", "7.4"), ["echo time 4.9", "echo time 7.4"]),
        ("AcquisitionNumber", (1, 2), ["acquisition 1", "acquisition 2"]),
        ("TriggerTime", ("0", "120"), ["trigger time 0", "trigger time 120"]),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
         ["component magnitude", "component phase"]),
        ("DiffusionBValue", (0.0, 1000.0), ["b 0 s/mm2", "b 1000 s/mm2"]),
    ],
)  # fmt: skip
def test_repetitions_are_told_apart(tmp_path: Path, keyword: str, values: tuple[object, ...], words: list[str]) -> None:
    for number, value in enumerate(values):
        written(tmp_path / "in", lambda d, _n, v=value: setattr(d, keyword, v), offset=100 * number)
    found = studies(tmp_path / "in", tmp_path / "work")
    notes = sorted(study.notes[0].removeprefix("one of several volumes of its series: ") for study in found)
    assert notes == words
    assert {study.volume.shape for study in found} == {SHAPE}
    for study in found:
        second = study.notes[0].endswith(words[1])
        assert np.array_equal(study.volume.pixels[0], np.rint(anatomy(SHAPE) + 100 * second))
    assert len({study.key for study in found}) == 2


def test_two_attributes_together(tmp_path: Path) -> None:
    """Two echoes of two phases: neither attribute alone tells the four apart."""
    for echo in ("4", "8"):
        for time in (1, 2):

            def change(dataset: Dataset, _number: int, echo: str = echo, time: int = time) -> None:
                dataset.EchoTime, dataset.TemporalPositionIdentifier = echo, time

            written(tmp_path / "in", change)
    found = studies(tmp_path / "in", tmp_path / "work")
    assert len(found) == 4
    assert sum("echo time 8, time point 2" in study.notes[0] for study in found) == 1


def test_orientations_and_localisers(tmp_path: Path) -> None:
    """An axial and a coronal volume are two; scouts are left out and counted."""
    written(tmp_path / "in", unchanged)
    written(tmp_path / "in", unchanged, turn=True)
    written(tmp_path / "in", lambda d, _n: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    found = discover([tmp_path / "in"], tmp_path / "work")
    assert sorted(source.part for source in found.sources) == ["axial", "coronal"]
    assert found.left_out == {"localiser images": SHAPE[0]}
    normals = []
    for source in found.sources:
        affine = read_study(source).volume.affine
        normals.append(int(np.abs(affine[:3, 0]).argmax()))
    assert sorted(normals) == [1, 2]


def test_a_stray_slice_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    """One slice turned by a damaged header, or one of another plane: no volume of one slice comes out of it."""
    written(
        tmp_path / "in", lambda d, n: setattr(d, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]) if n == 0 else None
    )
    sources = discover([tmp_path / "in"], tmp_path / "work").sources
    assert sorted(len(source.files) for source in sources) == [1, SHAPE[0] - 1]
    for source in sources:
        if len(source.files) > 1:
            assert read_study(source).volume.shape == (SHAPE[0] - 1, *SHAPE[1:])
        else:
            with pytest.raises(GeometryError, match="a single slice apart from the rest of its series"):
                read_study(source)


def test_phases_of_one_slice_are_refused_once(tmp_path: Path) -> None:
    """A cine of one slice is no volume, and no hundred volumes."""
    for phase in range(5):
        written(tmp_path / "in", lambda d, _n, p=phase: setattr(d, "TriggerTime", str(40 * p)))
    for path in sorted((tmp_path / "in").rglob("*.dcm")):
        if not path.name.endswith("_000.dcm"):
            path.unlink()
    (source,) = discover([tmp_path / "in"], tmp_path / "work").sources
    with pytest.raises(GeometryError, match="4 duplicate slice positions"):
        read_study(source)


def test_only_localisers_are_no_study(tmp_path: Path) -> None:
    written(tmp_path / "in", lambda d, _n: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    with pytest.raises(IngestError, match="4 localiser images"):
        discover([tmp_path / "in"], tmp_path / "work")


def test_copies_are_left_out_and_conflicts_are_not(tmp_path: Path) -> None:
    """The same bytes twice are one slice; another slice under the same identifier is refused."""
    written(tmp_path / "in", unchanged)
    files = sorted((tmp_path / "in").rglob("*.dcm"))
    shutil.copy(files[1], tmp_path / "in" / "again.dcm")
    found = discover([tmp_path / "in"], tmp_path / "work")
    assert found.left_out == {"copies of another file": 1}
    assert read_study(found.sources[0]).volume.shape == SHAPE
    other = dcmread(files[1])
    other.RescaleIntercept = "7"
    other.save_as(tmp_path / "in" / "again.dcm")
    (source,) = discover([tmp_path / "in"], tmp_path / "work").sources
    with pytest.raises(GeometryError, match="duplicate"):
        read_study(source)


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "in", unchanged)
    written(tmp_path / "in", unchanged, offset=50)
    (source,) = discover([tmp_path / "in"], tmp_path / "work").sources
    with pytest.raises(GeometryError, match="4 duplicate slice positions"):
        read_study(source)


@given(
    depth=st.integers(2, 6),
    echoes=st.integers(1, 3),
    times=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_every_file_is_in_one_part_and_no_place_twice(depth: int, echoes: int, times: int, order: object) -> None:
    slices = [
        Slice(Path(f"{d}-{e}-{t}"), (8.0, 9.0, 1.0, 1.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), 2.5 * d,
              {"echo time": str(e), "time point": str(t)}, scout=False)
        for d in range(depth) for e in range(echoes) for t in range(times)
    ]  # fmt: skip
    order.shuffle(slices)  # type: ignore[attr-defined]
    parts = split(slices)
    assert len(parts) == echoes * times
    assert sorted(path for part in parts for path in part.files) == sorted(item.path for item in slices)
    assert len({part.sign for part in parts}) == len(parts)
    for part in parts:
        assert len({str(path).split("-")[0] for path in part.files}) == depth


def test_vendors_state_diffusion_in_their_own_way() -> None:
    standard = Dataset()
    standard.DiffusionBValue, standard.DiffusionGradientOrientation = 700.0, [0.0, 0.6, 0.8]
    assert read_diffusion(standard) == Diffusion(700.0, (0.0, 0.6, 0.8))
    siemens = Dataset()
    block = siemens.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0E, "FD", [0.0, 0.0, -1.0])
    assert read_diffusion(siemens) == Diffusion(1000.0, (0.0, 0.0, -1.0))
    unknown = Dataset()  # implicit syntax: the representation of private elements is lost
    block = unknown.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "UN", b"1000")
    block.add_new(0x0E, "UN", np.array([0.0, 1.0, 0.0]).tobytes())
    assert read_diffusion(unknown) == Diffusion(1000.0, (0.0, 1.0, 0.0))
    ge = Dataset()
    ge.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "IS", ["1000000800", "8", "0", "0"])
    assert read_diffusion(ge) == Diffusion(800.0)
    philips = Dataset()
    philips.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", 0.0)
    assert read_diffusion(philips) == Diffusion(0.0)
    assert read_diffusion(Dataset()) is None
    junk = Dataset()
    junk.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "LO", "none")
    assert read_diffusion(junk) is None
