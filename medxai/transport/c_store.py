"""C-STORE to a node (PS3.4 annex B), with an answer per object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medxai.errors import DeliveryError
from medxai.export.naming import uid_name
from medxai.settings import Destination
from medxai.transport.associate import MOST_CONTEXTS, association, library
from medxai.transport.failures import BrokenTransferError, BusyError, RefusedObjectError, RetryableError

if TYPE_CHECKING:
    from pydicom import Dataset


def store(paths: Sequence[Path], node: Destination) -> Iterator[str]:
    """Yield accepted SOP Instance UIDs of one association.

    Raises:
        DeliveryError: see `medxai.transport.send.send`.
    """
    import pydicom

    library()
    needed = dict.fromkeys(syntax_of(path) for path in paths)
    if len(needed) > MOST_CONTEXTS:
        raise DeliveryError(f"{node.name}: more than {MOST_CONTEXTS} kinds of objects in one delivery")
    with association(node, [(sop_class, [syntax]) for sop_class, syntax in needed]) as made:
        accepted = {(c.abstract_syntax, str(c.transfer_syntax[0])) for c in made.accepted_contexts}
        for path in paths:
            sop_class, syntax = syntax_of(path)
            if (sop_class, syntax) not in accepted:
                what = f"{class_name(sop_class)} in transfer syntax {class_name(syntax)}"
                raise RefusedObjectError(f"{node.name} does not accept {what}")
            dataset = pydicom.dcmread(path)
            if not made.is_established:
                raise RetryableError(f"{node.name}: the association ended before the object was sent")
            try:
                status = made.send_c_store(dataset)
            except (RuntimeError, OSError) as error:
                msg = f"{node.name}: the association broke ({type(error).__name__})"
                raise BrokenTransferError(msg) from error
            check_status(status, sop_class, node)
            yield str(dataset.SOPInstanceUID)


def syntax_of(path: Path) -> tuple[str, str]:
    """Return SOP class and transfer syntax of a file.

    Raises:
        DeliveryError: it is not DICOM, or damaged.
    """
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    try:
        meta = read_file_meta_info(path)
        return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
    except (InvalidDicomError, AttributeError, OSError) as error:
        raise DeliveryError(f"{path.name} is not a readable DICOM file ({type(error).__name__})") from error


def class_name(uid: str) -> str:
    """Name of a SOP class or transfer syntax with its UID."""
    name = uid_name(uid)
    return uid if name == uid else f"{name} ({uid})"


def check_status(status: Dataset, sop_class: str, node: Destination) -> None:
    """Raise unless a C-STORE status is success or warning (PS3.4 table B.2-1).

    Raises:
        DeliveryError: it is a failure, or none came.
    """
    code = status.get("Status")
    name = class_name(sop_class)
    if code is None:
        raise BrokenTransferError(f"{node.name} gave no answer to {name} within {node.response_seconds:g} s")
    if code == 0x0000 or 0xB000 <= code <= 0xBFFF:
        return
    # A7xx is "out of resources" and passes; all other failures are about the object.
    kind = BusyError if 0xA700 <= code <= 0xA7FF else RefusedObjectError
    comment = str(status.get("ErrorComment", "") or "").strip()
    raise kind(f"{node.name} refused {name} with status 0x{code:04X}" + (f": {comment}" if comment else ""))
