"""Discovery: many studies in folders and archives, and archives that mean harm."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxai.errors import IngestError
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from tests.export.build import affine_of, anatomy, ct_series, save_sources, ultrasound

SHAPE = (4, 12, 10)


def _tree(root: Path) -> None:
    save_sources(ct_series(affine_of(SHAPE), anatomy(SHAPE), "one"), root / "a" / "deep")
    save_sources(ct_series(affine_of(SHAPE), anatomy(SHAPE), "two"), root / "b")
    save_sources([ultrasound(np.zeros((8, 8), np.float32))], root / "c")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "still.png")
    (root / "notes.txt").write_text("not an image")
    (root / "text.dcm").write_text("not DICOM either")


def test_folder_of_many_studies(tmp_path: Path) -> None:
    """Series are grouped wherever they lie; strangers are counted; a text named .dcm is refused."""
    _tree(tmp_path / "in")
    found = discover([tmp_path / "in"], tmp_path / "work")
    assert sorted(len(source.files) for source in found.sources) == [1, 1, 4, 4]
    assert found.ignored == 1
    (rejected,) = found.rejected
    assert "not a DICOM file" in rejected.error.reason
    assert rejected.path.name == "text.dcm"
    assert all("Secret" not in str(source) for source in found.sources)
    assert {read_study(source).volume.axes for source in found.sources} == {"DHW", "HW"}


def test_zip_equals_folder(tmp_path: Path) -> None:
    """An archive holds the same studies under the same keys."""
    _tree(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (tmp_path / "in").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "in"))
    folder = discover([tmp_path / "in"], tmp_path / "work")
    packed = discover([tmp_path / "all.zip"], tmp_path / "work")
    assert [s.key for s in folder.sources] == [s.key for s in packed.sources]
    assert [r.key for r in folder.rejected] == [r.key for r in packed.rejected]


@pytest.mark.parametrize("name", ["../evil.dcm", "/abs/evil.dcm", "a/../../evil.dcm", "..\\evil.dcm", "C:\\evil.dcm"])
def test_path_traversal(tmp_path: Path, name: str) -> None:
    """Nothing is written outside, and the reason says why."""
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("good.dcm", b"x")
        archive.writestr(name, b"x")
    before = {p for p in tmp_path.rglob("*")}
    found = discover([tmp_path / "bad.zip"], tmp_path / "work")
    assert "path traversal" in found.rejected[0].error.reason
    assert {p for p in tmp_path.rglob("*")} == before


def test_symbolic_link_in_zip(tmp_path: Path) -> None:
    """A link inside an archive is refused."""
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        info = zipfile.ZipInfo("link.dcm")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    found = discover([tmp_path / "link.zip"], tmp_path / "work")
    assert "symbolic link" in found.rejected[0].error.reason


def test_zip_bomb(tmp_path: Path) -> None:
    """Sizes out of proportion are refused before they are unpacked."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("zeros.dcm", bytes(64 << 20))
    found = discover([tmp_path / "bomb.zip"], tmp_path / "work")
    assert "zip bomb" in found.rejected[0].error.reason
    assert not list((tmp_path / "work").rglob("*.dcm"))


def test_lying_size(tmp_path: Path) -> None:
    """A member that unpacks to more than it declares is not read to its end."""
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(4 << 20))
    data = path.read_bytes()
    true = (4 << 20).to_bytes(4, "little")
    assert data.count(true) == 2
    path.write_bytes(data.replace(true, (1000).to_bytes(4, "little")))
    found = discover([path], tmp_path / "work")
    assert len(found.rejected) == 1
    assert not any(p.stat().st_size > 1 << 20 for p in (tmp_path / "work").rglob("*.dcm"))


def test_nothing_there(tmp_path: Path) -> None:
    """Empty folder and absent path."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(IngestError, match="no DICOM, NIfTI, picture or video found"):
        discover([tmp_path / "empty"], tmp_path / "work")
    with pytest.raises(IngestError, match="does not exist"):
        discover([tmp_path / "absent"], tmp_path / "work")
