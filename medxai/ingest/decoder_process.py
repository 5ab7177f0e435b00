"""Compressed pixel data decoded in a process of its own.

Decoders in C abort the whole process on some damaged files, or never come back. There that costs one file, with a
reason; here it would cost the night's batch. One such process serves a thread and lives as long as it. It reads a
line of JSON for each file and answers with another, followed by the bytes of the array.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

#: A single frame takes milliseconds, a long cine some seconds.
SECONDS = 300.0


class DecodingError(Exception):
    """Pixel data that could not be decoded, and why, in words that hold nothing of the file."""


class _Process:
    """The other end."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "medxai.ingest.decoder_process"]
        self.owner = os.getpid()
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )

    def decode(self, request: dict[str, Any], seconds: float) -> npt.NDArray[Any]:
        """Ask for one file.

        Raises:
            DecodingError: see `decode`.
            BrokenPipeError: the process is no longer there.
        """
        given, taken = self._process.stdin, self._process.stdout
        assert given is not None  # noqa: S101
        assert taken is not None  # noqa: S101
        end = time.monotonic() + seconds
        given.write(json.dumps(request).encode() + b"\n")
        given.flush()
        head, newline, rest = b"", b"", b""
        while not newline:
            head, newline, rest = (head + self._read(taken, 4096, end)).partition(b"\n")
        answer = json.loads(head)
        if "error" in answer:
            raise DecodingError(answer["error"])
        array = np.empty(answer["shape"], np.dtype(answer["dtype"]))
        into = array.reshape(-1).view(np.uint8).data
        into[: len(rest)] = rest
        place = len(rest)
        while place < len(into):
            piece = self._read(taken, min(len(into) - place, 1 << 20), end)
            into[place : place + len(piece)] = piece
            place += len(piece)
        return array

    def _read(self, stream: IO[bytes], size: int, end: float) -> bytes:
        ready, _, _ = select.select([stream], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            msg = "the decoder did not finish"
            raise DecodingError(msg)
        piece = os.read(stream.fileno(), size)
        if not piece:
            raise BrokenPipeError
        return piece

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


_local = threading.local()


def decode(path: Path, frame: int | None, plugin: str, seconds: float = SECONDS) -> npt.NDArray[Any]:
    """Pixels of a DICOM file, as `pydicom.pixels.pixel_array` gives them.

    Args:
        path: the file.
        frame: zero-based frame, or None for all.
        plugin: of pydicom, that decodes.
        seconds: after which the decoder is ended.

    Raises:
        DecodingError: the decoder refused the data, ended on it, or did not finish.
    """
    process: _Process | None = getattr(_local, "process", None)
    if process is None or process.owner != os.getpid():  # a fork must not share the pipes
        process = _local.process = _Process()
    try:
        return process.decode({"path": str(path), "frame": frame, "plugin": plugin}, seconds)
    except BrokenPipeError as error:
        _forget(process)
        msg = "the decoder ended on it"
        raise DecodingError(msg) from error
    except DecodingError as error:
        if "did not finish" in str(error):
            _forget(process)
        raise


def _forget(process: _Process) -> None:
    _local.process = None
    process.kill()


def _environment() -> dict[str, str]:
    """Ours, with a way to this package however it was found."""
    package = str(Path(__file__).parents[2])
    known = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": os.pathsep.join([package, known]) if known else package}


def _describe(error: Exception) -> str:
    # Messages about byte counts are safe to repeat; others may quote paths or header values.
    return str(error).split("\n")[0][:160] if "bytes" in str(error) else type(error).__name__


def _serve() -> None:
    """Answer until the input ends."""
    from pydicom import dcmread
    from pydicom.pixels.utils import pixel_array

    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders print; the answer is not for them
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            dataset = dcmread(request["path"])
            found = pixel_array(dataset, index=request["frame"], decoding_plugin=request["plugin"])
            array = np.ascontiguousarray(found)
        except Exception as error:  # every decoder has its own kinds
            answer.write(json.dumps({"error": _describe(error)}).encode() + b"\n")
        else:
            answer.write(json.dumps({"shape": array.shape, "dtype": array.dtype.str}).encode() + b"\n")
            answer.write(array.tobytes())
        answer.flush()


if __name__ == "__main__":
    _serve()
