"""Others that call: dcmtk's programs, and pynetdicom where a test needs to see the status of an answer."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pynetdicom import AE

from tests.tools import require_tool

CT = "1.2.840.10008.5.1.4.1.1.2"
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]


def storescu(port: int, paths: Sequence[Path] | Path, *options: str, caller: str = "STORESCU") -> Any:
    """Send by dcmtk's storescu."""
    given = [paths] if isinstance(paths, Path) else list(paths)
    command = [require_tool("storescu", system=True), "-v", "-aet", caller, "-aec", "MEDXAI", *options]
    command += ["+sd"] if any(path.is_dir() for path in given) else []
    command += ["127.0.0.1", str(port), *map(str, given)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def echoscu(port: int, *options: str, caller: str = "ECHOSCU", called: str = "MEDXAI") -> Any:
    """Call by dcmtk's echoscu."""
    command = [require_tool("echoscu", system=True), "-v", "-aet", caller, "-aec", called, *options]
    return subprocess.run([*command, "127.0.0.1", str(port)], capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def calling(port: int, caller: str = "STORESCU", called: str = "MEDXAI", **options: Any) -> Iterator[Any]:
    """An association for CT images; it may not be established."""
    entity = AE(ae_title=caller)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    entity.add_requested_context(CT, SYNTAXES)
    made = entity.associate("127.0.0.1", port, ae_title=called, **options)
    try:
        yield made
    finally:
        if made.is_established:
            made.release()


def status_of(port: int, dataset: Dataset, **request: Any) -> tuple[int, str]:
    """Send one object and return status and comment; `request` overrides what the command says of it."""
    from pynetdicom.dimse_primitives import C_STORE

    with calling(port) as made:
        assert made.is_established
        (context,) = made.accepted_contexts
        primitive = C_STORE()
        primitive.MessageID = 1
        primitive.Priority = 2
        primitive.AffectedSOPClassUID = request.get("sop_class", CT)
        primitive.AffectedSOPInstanceUID = request.get("sop_uid") or str(dataset.SOPInstanceUID)
        data = request.get("data")
        primitive.DataSet = io.BytesIO(encoded(dataset) if data is None else data)
        made._reactor_checkpoint.clear()
        made.dimse.send_msg(primitive, context.context_id)
        _, answer = made.dimse.get_msg(block=True)
        made._reactor_checkpoint.set()
        assert answer is not None
        return int(answer.Status), str(getattr(answer, "ErrorComment", "") or "")


def encoded(dataset: Dataset) -> bytes:
    """Data set in explicit VR little endian, without file meta information."""
    from pydicom.filewriter import write_dataset

    buffer: Any = io.BytesIO()
    from pydicom.filebase import DicomFileLike

    stream = DicomFileLike(buffer)
    stream.is_implicit_VR, stream.is_little_endian = False, True
    write_dataset(stream, dataset)
    return bytes(buffer.getvalue())


def first(folder: Path) -> Dataset:
    """One slice of a series."""
    return dcmread(sorted(folder.glob("*.dcm"))[0])
