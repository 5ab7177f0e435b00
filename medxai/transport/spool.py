"""Received objects on disk: one folder per study, named by pseudonym, one file per object, named by a hash of its UID.

The files are the record of what has arrived: one is there, whole and synchronised, before anybody is told so.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from medxai.errors import MedxaiError
from medxai.files import alone
from medxai.identity import pseudonym, sha256_text
from medxai.records.received import ReceivedStudies


class SpoolFullError(MedxaiError):
    """There is no room for the object: the disk, or the limit of its study."""

    code = "spool"


@dataclass
class _Study:
    """What this process knows of a study's folder."""

    sizes: dict[str, int] = field(default_factory=dict)
    arrived: float = 0.0  # monotonic
    noted: float = float("-inf")

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


def study_key(study_uid: str) -> str:
    """Pseudonym of a study in the spool, in logs and in the database."""
    return pseudonym("study", study_uid)


def object_name(sop_uid: str) -> str:
    """File name of an object: the same for the same SOP Instance UID, and nothing that is in the object."""
    return f"{sha256_text('object', sop_uid)[:32]}.dcm"


class Spool:
    """The folder of received objects. All methods may be called by any thread.

    Args:
        root: the folder; it is created.
        records: where studies are noted.
        study_bytes: largest study.
        free_bytes: space that must stay free.
        note_seconds: shortest time between two notes of one study in the database; shorter than any quiet time.
    """

    def __init__(
        self,
        root: Path,
        records: ReceivedStudies,
        *,
        study_bytes: int = 1 << 62,
        free_bytes: int = 0,
        note_seconds: float = 0.5,
    ) -> None:
        self.root = root
        self.records = records
        self._study_bytes = study_bytes
        self._free_bytes = free_bytes
        self._note_seconds = note_seconds
        self._lock = threading.Lock()
        self._studies: dict[str, _Study] = {}
        self._writing: Counter[str] = Counter()
        root.mkdir(parents=True, exist_ok=True)

    def folder(self, key: str) -> Path:
        """Folder of a study."""
        return self.root / key

    def has_room(self, size: int = 0) -> bool:
        """True when an object of `size` bytes leaves enough of the disk free."""
        state = os.statvfs(self.root)
        return state.f_bavail * state.f_frsize >= self._free_bytes + size

    def store(self, study_uid: str, sop_uid: str, parts: Sequence[bytes | memoryview]) -> str:
        """Keep an object and return the pseudonym of its study.

        An object that is there already, byte by byte, is not written again; one with other content replaces it.

        Args:
            study_uid: StudyInstanceUID.
            sop_uid: SOPInstanceUID.
            parts: bytes of the file in order, from the preamble on.

        Raises:
            SpoolFullError: it does not fit.
            OSError: the disk failed.
        """
        key = study_key(study_uid)
        with self._lock:
            self._writing[key] += 1
        try:
            self._store(key, object_name(sop_uid), parts)
        finally:
            with self._lock:
                self._writing[key] -= 1
        return key

    def _store(self, key: str, name: str, parts: Sequence[bytes | memoryview]) -> None:
        size = sum(len(part) for part in parts)
        target = self.folder(key) / name
        with self._lock:
            study = self._known(key)
            if study.bytes - study.sizes.get(name, 0) + size > self._study_bytes:
                self._refuse(key, study, f"the study is larger than study_bytes ({self._study_bytes} bytes)")
        if not self.has_room(size):
            msg = f"less than free_bytes ({self._free_bytes} bytes) would be left on the disk of the spool"
            raise SpoolFullError(msg, study=key)
        if not _same(target, parts, size):
            self._write(target, parts)
        with self._lock:
            study = self._known(key)
            study.sizes[name] = size
            study.arrived = time.monotonic()
            due = study.arrived - study.noted >= self._note_seconds
            count, total = len(study.sizes), study.bytes
            if due:
                study.noted = study.arrived
        if due:
            self.records.arrived(key, count, total)

    def refuse(self, study_uid: str, reason: str) -> None:
        """An object of a study cannot be taken: the study is put aside, since it will never be whole.

        Raises:
            SpoolFullError: always, with the reason.
        """
        key = study_key(study_uid)
        with self._lock:
            self._refuse(key, self._known(key), reason)

    def _refuse(self, key: str, study: _Study, reason: str) -> None:
        study.arrived = time.monotonic()
        self.records.refuse(key, reason)  # each time: a person may have queued the study in between
        raise SpoolFullError(reason, study=key)

    def touch(self, key: str) -> None:
        """Something of this study is on its way."""
        with self._lock:
            if key in self._studies:
                self._studies[key].arrived = time.monotonic()

    def complete_quiet(self, seconds: float) -> list[str]:
        """Queue the gathering studies of which nothing has arrived for `seconds`; returns their keys."""
        complete = []
        for row in self.records.rows(("gathering",)):
            with self._lock:
                known = row.study_key in self._studies
                study = self._known(row.study_key)
                ours = time.monotonic() - study.arrived if known else float("inf")
                count, total = len(study.sizes), study.bytes
                quiet = min(ours, time.time() - row.touched) >= seconds
                if quiet or not known:
                    self._studies.pop(row.study_key)  # its next object is noted in the database at once
            if quiet and self.records.complete(row.study_key, row.generation, count, total):
                complete.append(row.study_key)
        return complete

    def queue(self, key: str) -> bool:
        """Queue a study that was fetched as a whole."""
        with self._lock:
            self._studies.pop(key, None)  # another process may have received it
            study = self._known(key)
            self._studies.pop(key)
        return self.records.queue(key, objects=len(study.sizes), bytes=study.bytes)

    def recover(self) -> int:
        """After a stop: find what is there, remove half-written files; returns the number of studies found."""
        self.records.recover()
        for left in self.root.glob(".gone-*"):
            shutil.rmtree(left, ignore_errors=True)
        found = 0
        for folder in sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")):
            for left in folder.glob(".*"):
                left.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
                continue
            found += 1
            row = self.records.get(folder.name)
            with self._lock:
                study = self._known(folder.name)
                count, total = len(study.sizes), study.bytes
            # More files than were noted: they arrived in the moment before the stop.
            if row is None or (row.state != "refused" and (row.objects, row.bytes) != (count, total)):
                self.records.arrived(folder.name, count, total)
        return found

    def remove(self, key: str, generation: int) -> bool:
        """Delete a study that is done; False when something of it has arrived or is arriving."""
        gone = self.root / f".gone-{key}-{secrets.token_hex(4)}"
        with self._lock:  # nothing is written to the folder from here to its renaming
            if self._writing[key] or not self.records.remove(key, generation):
                return False
            self._studies.pop(key, None)
            self._writing.pop(key, None)
            with contextlib.suppress(FileNotFoundError):
                self.folder(key).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def exclusive(self) -> AbstractContextManager[bool]:
        """Yield True while no other process works on this spool."""
        return alone(self.root)

    def _known(self, key: str) -> _Study:
        if key not in self._studies:
            folder = self.folder(key)
            files = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
            self._studies[key] = _Study({path.name: path.stat().st_size for path in files})
        return self._studies[key]

    def _write(self, target: Path, parts: Sequence[bytes | memoryview]) -> None:
        fresh = not target.parent.is_dir()
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{secrets.token_hex(8)}"
        try:
            with temporary.open("wb") as stream:
                for part in parts:
                    stream.write(part)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
        if fresh:
            _sync_folder(self.root)


def _same(path: Path, parts: Sequence[bytes | memoryview], size: int) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        with path.open("rb") as stream:
            return all(stream.read(len(part)) == part for part in parts)
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    """A rename is only on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
