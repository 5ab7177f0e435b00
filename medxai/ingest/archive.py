"""Zip archives, unpacked with distrust: no path leaves the target, no bomb fills the disk."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath

from medxai.errors import IngestError

_CHUNK = 1 << 20
_MAX_MEMBERS = 200_000
_MAX_TOTAL = 64 << 30
#: DICOM and NIfTI compress at most some tens of times; a bomb thousands of times.
_MAX_RATIO = 200
_RATIO_FLOOR = 16 << 20


def unpack(path: Path, target: Path) -> Path:
    """Unpack a zip archive under `target`.

    Raises:
        IngestError: not a zip, damaged, encrypted, a member that would leave `target`, a link, or sizes
            that only a zip bomb has. Nothing outside `target` is ever written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check(members, path)
            written = 0
            for member in members:
                destination = target.joinpath(*PurePosixPath(member.filename.replace("\\", "/")).parts)
                destination.parent.mkdir(parents=True, exist_ok=True)
                count = 0
                with archive.open(member) as source, destination.open("wb") as sink:
                    while chunk := source.read(_CHUNK):
                        count += len(chunk)
                        if count > member.file_size:  # the declared size lies
                            raise IngestError(_BOMB, study=path.name)
                        sink.write(chunk)
                written += count
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        msg = f"cannot be unpacked ({type(error).__name__}); the archive is damaged or encrypted"
        raise IngestError(msg, study=path.name) from error
    return target


_BOMB = "looks like a zip bomb (unpacked size out of proportion); nothing of it was read"


def _check(members: list[zipfile.ZipInfo], path: Path) -> None:
    if len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > _MAX_TOTAL:
        raise IngestError(_BOMB, study=path.name)
    for member in members:
        name = member.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or any(":" in part for part in parts) or not parts:
            msg = "holds a member whose path leads outside the archive (path traversal); nothing of it was read"
            raise IngestError(msg, study=path.name)
        if stat.S_ISLNK(member.external_attr >> 16):
            msg = "holds a symbolic link; nothing of it was read"
            raise IngestError(msg, study=path.name)
        if member.file_size > _RATIO_FLOOR and member.file_size > _MAX_RATIO * max(member.compress_size, 1):
            raise IngestError(_BOMB, study=path.name)
