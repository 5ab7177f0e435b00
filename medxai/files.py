"""Atomic writing: a file is either absent or complete, whatever happens in between; and one process at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success fsync it and rename it over `target`.

    The temporary name is hidden and keeps the suffix of `target`. On an exception it is removed and
    `target` stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}{''.join(target.suffixes[-2:])}"
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Yield whether no other process works in `folder`; the system lets go of it when this one dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def write_bytes(target: Path, data: bytes) -> Path:
    """Write `data` to `target` atomically and return `target`."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    return target


def write_text(target: Path, text: str) -> Path:
    """Write UTF-8 `text` to `target` atomically and return `target`."""
    return write_bytes(target, text.encode())


def write_dicom(path: Path, dataset: Dataset) -> Path:
    """Write a DICOM file (PS3.10) atomically and return its path."""
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return path


def read_arrays(path: Path) -> dict[str, Any] | None:
    """Return the arrays of an ``.npz`` file by name; None where there is none, or a damaged one."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def arrays_once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the arrays of an ``.npz`` file, which is made and written first when it is not there or damaged.

    Args:
        path: of the file.
        make: returns the arrays by name.
    """
    import numpy as np

    found = read_arrays(path)
    if found is None:
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **make())
        found = read_arrays(path)
    assert found is not None  # noqa: S101
    return found


def sweep(folder: Path, pattern: str) -> None:
    """Remove what a killed process left of an atomic replacement; the claim keeps living ones away."""
    for left in folder.glob(pattern):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
