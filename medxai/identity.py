"""Stable names of things: content hashes, derived DICOM UIDs and pseudonymous keys."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Namespace of every UID that medxai derives (UUIDv5, written as 2.25.<integer>, PS3.5 annex B.2).
UID_NAMESPACE = uuid.UUID("6d1c0f5e-8a53-5c7e-9f0b-3f9f5ad1c0de")

_CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """Return one hash for a set of files: independent of their order and their names."""
    return sha256_text(*sorted(sha256_file(path) for path in paths))


def sha256_text(*parts: str) -> str:
    """Return the hex SHA-256 of strings, length-prefixed so that no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(str(len(data)).encode() + b":" + data)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hash of a JSON-serialisable value, independent of key order."""
    return sha256_text(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str))


def derive_uid(*parts: str) -> str:
    """Return a valid DICOM UID that depends on `parts` alone: a second run replaces, never duplicates.

    Form and limits: PS3.5 annex B.2 (UUID-derived UIDs under 2.25), at most 44 characters.
    """
    return f"2.25.{uuid.uuid5(UID_NAMESPACE, sha256_text(*parts)).int}"


def pseudonym(*parts: str) -> str:
    """Return the 12-hex-digit key by which logs, file names and Prefect rows name a study."""
    return sha256_text("medxai-pseudonym", *parts)[:12]
