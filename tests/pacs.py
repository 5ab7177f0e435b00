"""Real PACS software for contract tests: Orthanc and dcmtk's storescp, on the loopback interface only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tools import require_tool

_PLUGINS = Path("/usr/share/orthanc/plugins")
#: Orthanc calls this for each object that somebody sends, before it looks whether it has it.
_LUA = """
function ReceivedInstanceFilter(dicom, origin)
    local log = io.open("received.txt", "a")
    log:write(dicom["SOPInstanceUID"] .. "\\n")
    log:close()
    return true
end
"""
_SOURCE = Path(__file__).parent / "native" / "loopback.c"


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc."""

    host: str
    dicom_port: int
    aet: str
    web_url: str
    rest_url: str
    log: Path

    def received(self) -> Counter[str]:
        """SOP Instance UID -> how often it was sent here, also when Orthanc had it already."""
        return Counter(self.log.read_text().split() if self.log.exists() else [])


@dataclass(frozen=True)
class StoreScp:
    """A running dcmtk storescp and the folder it fills."""

    host: str
    port: int
    aet: str
    folder: Path


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def loopback_shim(folder: Path) -> Path:
    """Compile the bind shim into `folder` and return the library."""
    library = folder / "loopback.so"
    if not library.exists():
        command = [require_tool("gcc"), "-shared", "-fPIC", "-O2", "-Wall", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return library


@contextmanager
def _running(command: list[str], folder: Path, port: int, seconds: float = 30.0) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server with the shim until the block ends; wait for its port, and at the end for its exit."""
    environment = {**os.environ, "LD_PRELOAD": str(loopback_shim(folder))}
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stream, stderr=stream)
        try:
            deadline = time.monotonic() + seconds
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{command[0]} did not start: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """Run Orthanc with DICOMweb and an empty database in `folder`."""
    program = require_tool("Orthanc")
    plugins = [str(_PLUGINS / f"libOrthanc{name}.so") for name in ("DicomWeb", "Gdcm")]
    missing = [name for name in plugins if not Path(name).exists()]
    if missing:
        reason = f"Orthanc plugins are missing: {', '.join(missing)}"
        if os.environ.get("MEDXAI_REQUIRE_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    web, dicom = free_port(), free_port()
    settings = {
        "Name": "medxai-test",
        "StorageDirectory": "./database",
        "IndexDirectory": "./database",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "HttpPort": web,
        "DicomAet": "ORTHANC",
        "DicomPort": dicom,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "UnknownSopClassAccepted": True,
        "Plugins": plugins,
        "LuaScripts": ["received.lua"],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        # Orthanc's GDCM would decode everything; its own decoders are enough for what is stored here.
        "Gdcm": {"Enable": True, "RestrictTransferSyntaxes": ["1.2.840.10008.1.2.4.90"]},
    }
    (folder / "received.lua").write_text(_LUA)
    (folder / "orthanc.json").write_text(json.dumps(settings, indent=2))
    with _running([program, "orthanc.json"], folder, web):
        url = f"http://127.0.0.1:{web}"
        _wait_for(f"{url}/system")
        yield Orthanc("127.0.0.1", dicom, "ORTHANC", f"{url}/dicom-web", url, folder / "received.txt")


def _wait_for(url: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - a loopback address built above
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def store_scp(folder: Path, port: int | None = None) -> Iterator[StoreScp]:
    """Run dcmtk's storescp, which writes what it receives into ``received``."""
    program = require_tool("storescp", system=True)
    received = folder / "received"
    received.mkdir()
    port = port or free_port()
    command = [program, "--aetitle", "SINK", "--accept-all", "--output-directory", str(received), str(port)]
    with _running(command, folder, port):
        yield StoreScp("127.0.0.1", port, "SINK", received)
