"""What a received object is, from its first bytes alone: identifiers, never names."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from typing import Any

from medxai.ingest.identifiers import valid_uid

_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
#: The identifiers of an object stand before its pixels; more than this is not looked at.
_HEAD_BYTES = 4 << 20
_LAST = 0x0020000E


class NotUnderstoodError(Exception):
    """The bytes are no data set, or lack an identifier; the text names the attribute and nothing else."""


@dataclass(frozen=True)
class Incoming:
    """Identifiers of an object."""

    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str


def identify(data: memoryview | bytes, syntax: str) -> Incoming:
    """Read the identifiers of an encoded data set.

    Args:
        data: data set as it came, without file meta information; its end may be missing.
        syntax: transfer syntax UID.

    Raises:
        NotUnderstoodError: it cannot be parsed, or an identifier is absent or invalid (PS3.5 section 9.1).
    """
    from pydicom.filereader import read_dataset

    head = bytes(data[:_HEAD_BYTES])
    try:
        if syntax == _DEFLATED:
            head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, _HEAD_BYTES)
        dataset = read_dataset(
            io.BytesIO(head),
            syntax == _IMPLICIT,
            syntax != _BIG_ENDIAN,
            stop_when=lambda tag, _vr, _length: tag > _LAST,
            specific_tags=list(_NAMES.values()),
        )
        # Raw bytes: the library would log a value that is no UID, and it may be a name.
        found = {name: _text(dataset.get_item(tag)) for name, tag in _NAMES.items()}
    except Exception as error:  # pydicom raises many kinds on damaged streams
        msg = f"the data set cannot be parsed ({type(error).__name__})"
        raise NotUnderstoodError(msg) from None
    for name, value in found.items():
        if not valid_uid(value):
            msg = f"{name} is {'not a valid UID' if value else 'absent'}"
            raise NotUnderstoodError(msg)
    return Incoming(*found.values())


_NAMES = {
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
}


def _text(element: Any) -> str:
    value = getattr(element, "value", None) or b""
    return value.decode("ascii", "replace").rstrip("\0 ") if isinstance(value, bytes) else str(value)


def file_head(sop_class: str, sop_uid: str, syntax: str) -> bytes:
    """Return preamble, prefix and file meta information (PS3.10 section 7.1).

    The name of the caller is not in it: the same object from two callers is the same file.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import UID

    from medxai.export.provenance import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

    meta: Any = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    buffer = io.BytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return buffer.getvalue()
