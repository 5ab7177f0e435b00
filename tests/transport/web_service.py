"""A DICOMweb service on the loopback interface that answers as a test wants it to: for what no real one does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from medxai.settings import Destination


class Quiet(BaseHTTPRequestHandler):
    """A handler without lines on the console."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def web_service(handler: type[Quiet]) -> Iterator[Destination]:
    """Run a handler for every request and yield how to reach it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
        yield Destination(name="web", kind="dicomweb", url=url, response_seconds=5)
    finally:
        server.shutdown()
        server.server_close()
