"""Whatever is wrong with an input: one line that names it, exit code 2, a record, nothing partial, the rest done."""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from pydicom import dcmread

from medxai.identity import derive_uid
from medxai.predict.bundle import SHIPPED, AllowList, bundle_sha256
from tests.studies import (
    Done,
    command,
    dicom_study,
    edit,
    hashes,
    jobs,
    key_of,
    leftovers,
    nifti_study,
    record,
    small_phantom,
)

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Bad:
    """One kind of bad input.

    Attributes:
        make: writes it below a folder, and returns what the user gives.
        code: reason code of the record.
        stage: where it is found.
        reason: pattern of the cause.
    """

    make: Callable[[Path], Path]
    code: str
    stage: str
    reason: str


def _seed(root: Path) -> int:
    """Another patient for each folder, so that cases side by side stay apart."""
    return 100 + int(root.parent.name) if root.parent.name.isdigit() else 9


def _truncated_header(root: Path) -> Path:
    path = root / "IM0001.dcm"
    root.mkdir()
    whole = next(dicom_study(root.parent / "whole", _seed(root)).iterdir()).read_bytes()
    path.write_bytes(whole[: whole.index(b"Chest phantom") + 5])
    return path


def _truncated_meta(root: Path) -> Path:
    path = root / "IM0001.dcm"
    root.mkdir()
    whole = next(dicom_study(root.parent / "whole", _seed(root)).iterdir()).read_bytes()
    path.write_bytes(whole[:170])
    return path


def _truncated_pixels(root: Path) -> Path:
    dicom_study(root, _seed(root))
    path = sorted(root.iterdir())[3]
    path.write_bytes(path.read_bytes()[:-700])
    return root


def _no_pixels(root: Path) -> Path:
    dicom_study(root, _seed(root))
    edit(root, lambda dataset: delattr(dataset, "PixelData"), [2])
    return root


def _text(root: Path) -> Path:
    root.mkdir()
    (root / "report.dcm").write_text("Findings: none. " * 20)
    return root


def _empty_file(root: Path) -> Path:
    root.mkdir()
    (root / "empty.dcm").touch()
    return root


def _bomb(root: Path) -> Path:
    root.mkdir()
    with zipfile.ZipFile(root / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("zeros.dcm", bytes(64 << 20))
    return root / "bomb.zip"


def _traversal(root: Path) -> Path:
    root.mkdir()
    with zipfile.ZipFile(root / "bad.zip", "w") as archive:
        archive.writestr("good.dcm", b"x")
        archive.writestr("../../../escaped.dcm", b"x")
    return root / "bad.zip"


def _broken_zip(root: Path) -> Path:
    root.mkdir()
    with zipfile.ZipFile(root / "cut.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in dicom_study(root.parent / "whole", _seed(root)).iterdir():
            archive.write(path, path.name)
    data = (root / "cut.zip").read_bytes()
    (root / "cut.zip").write_bytes(data[: len(data) // 2])
    return root


def _wrong_modality(root: Path) -> Path:
    dicom_study(root, _seed(root))
    edit(root, lambda dataset: setattr(dataset, "Modality", "MR"))
    return root


def _missing(root: Path) -> Path:
    return dicom_study(root, _seed(root), missing=5)


def _duplicate(root: Path) -> Path:
    dicom_study(root, _seed(root))
    path = sorted(root.iterdir())[4]
    twin = dcmread(path)
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = derive_uid("twin")
    twin.save_as(root / "twin.dcm")
    return root


def _sent_twice(root: Path) -> Path:
    dicom_study(root, _seed(root))
    dataset = dcmread(sorted(root.iterdir())[4])
    dataset.RescaleIntercept = -1000  # a copy byte by byte would be left out
    dataset.save_as(root / "copy.dcm")
    return root


def _bad_identifiers(root: Path) -> Path:
    dicom_study(root, _seed(root))
    edit(root, lambda dataset: setattr(dataset, "FrameOfReferenceUID", ""))
    return root


def _nan(root: Path) -> Path:
    return _altered_nifti(root, lambda data: data.__setitem__((2, 3, 4), np.nan))


def _altered_nifti(root: Path, change: Callable[[np.ndarray], None]) -> Path:
    image = nibabel.load(nifti_study(root / "source.nii.gz", _seed(root)))
    data = np.asarray(image.dataobj, dtype=np.float32)
    change(data)
    (root / "source.nii.gz").unlink()
    nibabel.save(nibabel.Nifti1Image(data, image.affine), root / "volume.nii.gz")
    return root / "volume.nii.gz"


def _disagree(root: Path) -> Path:
    path = nifti_study(root / "volume.nii.gz", _seed(root))
    image = nibabel.load(path)
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine)
    moved = image.affine.copy()
    moved[0, 3] += 12
    image.set_sform(image.affine, code=1)
    image.set_qform(moved, code=1)
    nibabel.save(image, path)
    return path


def _cut_nifti(root: Path) -> Path:
    path = nifti_study(root / "volume.nii.gz", _seed(root))
    path.write_bytes(path.read_bytes()[:-4000])
    return path


def _four_axes(root: Path) -> Path:
    root.mkdir()
    data = np.stack([small_phantom(_seed(root)).hu] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), root / "volume.nii")
    return root / "volume.nii"


def _picture(root: Path) -> Path:
    from PIL import Image

    root.mkdir()
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(root / "still.png")
    return root / "still.png"


def _noise_picture(root: Path) -> Path:
    root.mkdir()
    (root / "noise.png").write_bytes(random.Random(1).randbytes(4000))
    return root


CASES = {
    "truncated in the file meta": Bad(_truncated_meta, "ingest", "discover", "damaged or truncated"),
    "truncated in the header": Bad(_truncated_header, "ingest", "discover", "damaged or truncated"),
    "truncated in the pixels": Bad(_truncated_pixels, "ingest", "ingest", "pixel data cannot be decoded .* truncated"),
    "without pixels": Bad(_no_pixels, "ingest", "ingest", "no pixel data"),
    "text named dcm": Bad(_text, "ingest", "discover", "not a DICOM file"),
    "empty file": Bad(_empty_file, "ingest", "discover", "not a DICOM file"),
    "zip bomb": Bad(_bomb, "ingest", "discover", "zip bomb"),
    "path traversal": Bad(_traversal, "ingest", "discover", "path traversal"),
    "broken zip": Bad(_broken_zip, "ingest", "discover", "damaged or encrypted"),
    "wrong modality": Bad(_wrong_modality, "mismatch", "ingest", "phantom_ct reads CT, the study is MR"),
    "missing slice": Bad(_missing, "geometry", "ingest", r"1 missing slice \(gap of 13.00 mm"),
    "duplicate slice": Bad(_duplicate, "geometry", "ingest", "1 duplicate slice position"),
    "the same slice twice": Bad(_sent_twice, "geometry", "ingest", "1 duplicate slice"),
    "bad identifiers": Bad(_bad_identifiers, "identifiers", "ingest", "FrameOfReferenceUID is empty .*'medxai repair"),
    "NaN": Bad(_nan, "ingest", "ingest", "1 NaN or infinite voxels"),
    "sform and qform": Bad(_disagree, "geometry", "ingest", r"sform and qform disagree by up to 12.0 mm"),
    "truncated NIfTI": Bad(_cut_nifti, "ingest", "ingest", "damaged or incomplete"),
    "four axes": Bad(_four_axes, "ingest", "ingest", "one 3D volume per file is needed"),
    "picture for a volume model": Bad(_picture, "mismatch", "ingest", "reads volumes, the study is a single image"),
    "noise named png": Bad(_noise_picture, "ingest", "ingest", "damaged"),
}


def explain(capfd: Capture, *paths: Path, out: Path, options: tuple[object, ...] = ()) -> Done:
    """``medxai run`` with phantom_ct."""
    return command(capfd, "run", *paths, "-b", "phantom_ct", "-o", out, "--modality", "CT", *options)


@pytest.mark.parametrize("name", CASES)
def test_bad_study_among_good_ones(name: str, tmp_path: Path, capfd: Capture) -> None:
    """One line, exit code 2, record and row; no partial output; the good study is done."""
    bad = CASES[name]
    given = bad.make(tmp_path / "bad")
    good = dicom_study(tmp_path / "good", 4)
    out = tmp_path / "out"
    key, good_key = key_of(given, tmp_path / "look"), key_of(good, tmp_path / "look")
    outside = {p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "look")}

    done = explain(capfd, given, good, out=out)

    assert done.code == 2
    (line,) = done.errors
    assert line.startswith(f"error: {key}: ")
    assert re.search(bad.reason, line), line
    assert "Traceback" not in done.err + done.out
    entry = record(out, key)
    assert (entry["key"], entry["code"], entry["stage"]) == (key, bad.code, bad.stage)
    assert line == f"error: {key}: {entry['reason']}"
    assert entry["files"]
    assert all(Path(path).exists() for path in entry["files"])
    rows = {row.study_key: row for row in jobs(out)}
    assert set(rows) == {key, good_key}
    assert (rows[key].state, rows[key].reason_code, rows[key].reason) == ("quarantined", bad.code, entry["reason"])
    assert rows[good_key].state == "done"
    assert {p.name for p in out.iterdir()} == {".medxai", "quarantine", good_key}
    assert [p.name for p in (out / "quarantine").iterdir()] == [f"{key}.json"]
    assert leftovers(out) == []
    assert not list((out / ".medxai" / "work").iterdir())
    assert "manifest.json" in hashes(out / good_key)
    written = {p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "look")} - outside
    assert all(p.is_relative_to(out) for p in written)


def test_all_at_once(tmp_path: Path, capfd: Capture) -> None:
    """A night's folder with everything in it: each its own line, one good study done, exit code 2, and again so."""
    for number, bad in enumerate(CASES.values()):
        (tmp_path / "in" / f"{number}").mkdir(parents=True)
        bad.make(tmp_path / "in" / f"{number}" / "bad")
        shutil.rmtree(tmp_path / "in" / f"{number}" / "whole", ignore_errors=True)
    good = dicom_study(tmp_path / "in" / "good", 4)
    out = tmp_path / "out"
    first = explain(capfd, tmp_path / "in", out=out)
    assert first.code == 2
    rows = jobs(out)
    assert {row.state for row in rows} == {"done", "quarantined"}
    assert [row.study_key for row in rows if row.state == "done"] == [key_of(good, tmp_path / "look")]
    aside = [row for row in rows if row.state == "quarantined"]
    assert len(aside) == len(CASES)
    assert sorted(first.errors) == sorted(f"error: {row.study_key}: {row.reason}" for row in aside)
    assert {p.stem for p in (out / "quarantine").iterdir()} == {row.study_key for row in aside}
    second = explain(capfd, tmp_path / "in", out=out)
    assert second.code == 2
    assert second.errors == first.errors
    assert [(row.id, row.state, row.analyses) for row in jobs(out)] == [
        (row.id, row.state, row.analyses) for row in rows
    ]
    assert leftovers(out) == []


def test_a_bad_member_of_a_good_archive(tmp_path: Path, capfd: Capture) -> None:
    """The record names archive and member, since the unpacked copy is gone."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in dicom_study(tmp_path / "good", 4).iterdir():
            archive.write(path, f"good/{path.name}")
        archive.writestr("notes/report.dcm", "no image")
    out = tmp_path / "out"
    done = explain(capfd, tmp_path / "all.zip", out=out)
    assert done.code == 2
    (bad,) = [row for row in jobs(out) if row.state == "quarantined"]
    assert record(out, bad.study_key)["files"] == [f"{tmp_path / 'all.zip'}!notes/report.dcm"]
    assert [row.state for row in jobs(out) if row.id != bad.id] == ["done"]
    assert leftovers(out) == []


def test_a_file_that_cannot_be_read(tmp_path: Path, capfd: Capture) -> None:
    """An input error of the operating system belongs to that file, not to the batch."""
    unreadable = Path("/proc/self/mem")
    if not unreadable.exists():
        pytest.skip("needs a file that raises an input error")
    good = dicom_study(tmp_path / "good", 4)
    done = explain(capfd, unreadable, good, out=tmp_path / "out")
    assert done.code == 2
    (line,) = done.errors
    assert "cannot be read (OSError" in line
    assert sorted(row.state for row in jobs(tmp_path / "out")) == ["done", "quarantined"]


@pytest.mark.parametrize("kind", ["empty folder", "absent path", "only other files"])
def test_nothing_to_do_is_an_error(kind: str, tmp_path: Path, capfd: Capture) -> None:
    """The path given is named; there is no study, hence no row."""
    given = tmp_path / "in"
    if kind != "absent path":
        given.mkdir()
    if kind == "only other files":
        (given / "notes.txt").write_text("nothing")
    done = explain(capfd, given, out=tmp_path / "out")
    assert done.code == 2
    reason = (
        "does not exist" if kind == "absent path" else r"no DICOM, NIfTI, picture or video found \(\d other files\)"
    )
    (line,) = done.err.splitlines()
    assert re.fullmatch(f"error: {re.escape(str(given))}: {reason}", line)
    assert jobs(tmp_path / "out") == []
    assert leftovers(tmp_path / "out") == []


def _copied_bundle(root: Path) -> Path:
    return Path(shutil.copytree(SHIPPED / "phantom_ct", root / "phantom_ct"))


def _refused(capfd: Capture, tmp_path: Path, bundle: Path, *options: object) -> str:
    """The only line of a run that the bundle prevents; nothing is written."""
    study = dicom_study(tmp_path / "good", 4)
    done = command(capfd, "run", study, "-b", bundle, "-o", tmp_path / "out", *options)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert "phantom_ct" in line
    assert not (tmp_path / "out").exists()
    return line


@pytest.mark.parametrize("part", ["models/model.safetensors", "configs/inference.json"])
def test_a_bundle_with_one_byte_changed(part: str, tmp_path: Path, capfd: Capture) -> None:
    """Refused by its hash, before any weight is read."""
    bundle = _copied_bundle(tmp_path)
    path = bundle / part
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    line = _refused(capfd, tmp_path, bundle)
    assert "changed or damaged, not loaded" in line
    assert bundle_sha256(bundle)[:12] in line


def test_an_unlisted_bundle(tmp_path: Path, capfd: Capture) -> None:
    """A bundle that nobody reviewed is refused with the hash to list."""
    bundle = _copied_bundle(tmp_path).rename(tmp_path / "phantom_ct_new")
    line = _refused(capfd, tmp_path, bundle)
    assert "not on the allow-list" in line
    assert bundle_sha256(bundle) in line


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        """Unpickling runs this."""
        return (Path.touch, (self.target,))


def _allow(bundle: Path, file: Path) -> Path:
    hashes_of = AllowList.of(bundle).hashes
    file.write_text(json.dumps({name: list(listed) for name, listed in hashes_of.items()}))
    return file


@pytest.mark.parametrize("container", ["torch", "plain"])
def test_a_bundle_with_a_pickle(container: str, tmp_path: Path, capfd: Capture) -> None:
    """Even on the site's allow-list, code in the weights does not run."""
    bundle = _copied_bundle(tmp_path)
    (bundle / "models" / "model.safetensors").unlink()
    state = {"weight": torch.zeros(2), "more": Trap(tmp_path / "ran")}
    if container == "torch":
        torch.save(state, bundle / "models" / "model.pt")
    else:
        (bundle / "models" / "model.pt").write_bytes(pickle.dumps(state))
    line = _refused(capfd, tmp_path, bundle, "--allow", _allow(bundle, tmp_path / "allow.json"))
    assert not (tmp_path / "ran").exists()
    assert re.search("holds code besides tensors and is refused|is damaged or not a PyTorch file", line)
    if container == "torch":
        assert "holds code" in line


def test_a_listed_copy_is_accepted(tmp_path: Path, capfd: Capture) -> None:
    """The refusals above are not refusals of every copy: a listed one runs."""
    bundle = _copied_bundle(tmp_path)
    study = dicom_study(tmp_path / "good", 4)
    done = command(capfd, "run", study, "-b", bundle, "-o", tmp_path / "out")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--method", "tarot"), "tarot"),
        (("--class", "tumour"), "no class 'tumour'; it has clean, lesion"),
        (("--device", "tpu"), "device"),
    ],
)
def test_wrong_options(options: tuple[str, ...], reason: str, tmp_path: Path, capfd: Capture) -> None:
    """Each is one line that names the value."""
    done = explain(capfd, dicom_study(tmp_path / "good", 4), out=tmp_path / "out", options=options)
    assert done.code == 2
    assert len(done.errors) == 1
    assert reason in done.errors[0]
    assert "Traceback" not in done.err
