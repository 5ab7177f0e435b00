"""OHIF as npm ships it, in front of an Orthanc, in a headless Chromium: all on the loopback interface."""

from __future__ import annotations

import http.server
import mimetypes
import shutil
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: Kept between runs: 50 MB packed, 204 MB unpacked.
CACHE = HERE.parents[1] / ".viewer"
OHIF, PUPPETEER = "3.13.2", "25.16.0"
CHROMIUM = "/usr/bin/chromium"

_CONFIG = """window.config = {
  routerBasename: '/', extensions: [], modes: [], showStudyList: true, defaultDataSourceName: 'orthanc',
  maxNumberOfWebWorkers: 2, showCPUFallbackMessage: false, investigationalUseDialog: { option: 'never' },
  dataSources: [{ namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'orthanc',
    configuration: { friendlyName: 'Orthanc', name: 'Orthanc', wadoUriRoot: '/wado', qidoRoot: '/dicom-web',
      wadoRoot: '/dicom-web', imageRendering: 'wadors', thumbnailRendering: 'wadors', enableStudyLazyLoad: true,
      qidoSupportsIncludeField: false, supportsWildcard: true, omitQuotationForMultipartRequest: true,
      bulkDataURI: { enabled: true } } }],
};
"""


@dataclass(frozen=True)
class Step:
    """One object to open.

    Attributes:
        thumbnail: what stands in its thumbnail.
        out: picture to write.
        world: LPS mm of a place to bring on the screen.
        pixel: column and row of a picture without a place in the patient.
        index: image of a stack to show.
        answers: buttons to press on the way.
        drawn: whether outlines are to be waited for.
        coloured: whether colours are.
    """

    thumbnail: str
    out: str
    world: tuple[float, float, float] | None = None
    pixel: tuple[float, float] | None = None
    index: int | None = None
    answers: tuple[str, ...] = ()
    drawn: bool = False
    coloured: bool = False


def missing() -> str | None:
    """What is not there, in words; None when OHIF can be run."""
    for tool in ("node", "npm", CHROMIUM):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return None


def fetch() -> tuple[Path, Path]:
    """Folder of the viewer and folder of puppeteer, from npm or from the last time."""
    viewer, modules = CACHE / f"ohif-{OHIF}", CACHE / f"puppeteer-{PUPPETEER}"
    CACHE.mkdir(exist_ok=True)
    if not (viewer / "ready").exists():
        shutil.rmtree(viewer, ignore_errors=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"@ohif/app@{OHIF}"], cwd=CACHE, check=True, stdout=subprocess.DEVNULL
        )
        packed = CACHE / f"ohif-app-{OHIF}.tgz"
        with tarfile.open(packed) as archive:
            archive.extractall(viewer, filter="data")
        packed.unlink()
        (viewer / "ready").touch()
    (viewer / "package" / "dist" / "app-config.js").write_text(_CONFIG)
    if not (modules / "ready").exists():
        modules.mkdir(exist_ok=True)
        subprocess.run(
            [
                "npm",
                "install",
                "--silent",
                "--no-audit",
                "--no-fund",
                "--prefix",
                str(modules),
                f"puppeteer-core@{PUPPETEER}",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (modules / "ready").touch()
    return viewer / "package" / "dist", modules / "node_modules"


@contextmanager
def served(
    folder: Path, archive: str, answers: Callable[[str], tuple[str, bytes] | None] | None = None
) -> Iterator[str]:
    """Serve the viewer and, on the same origin, the archive; yields the address.

    Args:
        folder: of the viewer.
        archive: REST root of an Orthanc.
        answers: given a path, type and body of what the archive cannot answer itself; None leaves it to the archive.
    """
    mimetypes.add_type("application/wasm", ".wasm")
    mimetypes.add_type("text/javascript", ".mjs")

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, directory=str(folder), **settings)

        def end_headers(self) -> None:  # shared memory for the viewer's workers
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            if answers is not None and (own := answers(self.path)) is not None:
                self.reply(200, *own)
                return
            if self.path.startswith(("/dicom-web", "/wado")):
                self.forward()
                return
            if not (folder / self.path.split("?")[0].lstrip("/")).exists():
                self.path = "/index.html"
            super().do_GET()

        def do_POST(self) -> None:
            self.forward(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def forward(self, body: bytes | None = None) -> None:
            request = urllib.request.Request(archive + self.path, data=body, method=self.command)  # noqa: S310
            for name in ("Accept", "Content-Type"):
                if self.headers.get(name):
                    request.add_header(name, self.headers[name])
            # Orthanc puts this host into RetrieveURL and bulk data addresses.
            request.add_header("Forwarded", f"host=127.0.0.1:{self.server.server_address[1]};proto=http")
            try:
                answer: Any = urllib.request.urlopen(request)  # noqa: S310
            except urllib.error.HTTPError as error:
                answer = error
            self.reply(answer.status, answer.headers.get("Content-Type", "application/octet-stream"), answer.read())

        def reply(self, status: int, kind: str, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
