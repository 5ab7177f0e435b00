"""HTTPS with certificate checks and tokens: Orthanc behind a TLS terminator made here."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError
from pydicom import dcmread

from medxai.errors import DeliveryError, SettingsError
from medxai.settings import Destination
from medxai.settings_network import ClientTls
from medxai.transport.failures import is_retryable
from medxai.transport.send import held, send
from tests.pacs import Orthanc
from tests.studies import dicom_study
from tests.transport.certificates import Authority

pytestmark = pytest.mark.pacs

TOKEN = "correct-horse-battery"  # noqa: S105 - of this test


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Ours."""
    return Authority(tmp_path_factory.mktemp("ours"), "hospital")


@pytest.fixture(scope="module")
def secured(authority: Authority, orthanc_server: Orthanc) -> Iterator[str]:
    """Root of Orthanc's DICOMweb over HTTPS: callers need our authority's certificate and the token."""
    pair = authority.issue("pacs")
    behind = urlsplit(orthanc_server.web_url)

    class Terminator(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.send_response(401)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            line = http.client.HTTPConnection(behind.hostname or "", behind.port)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization")}
            line.request(self.command, self.path, body, headers)
            answer = line.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            line.close()

        do_GET = do_POST = handle_any

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Terminator)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.load_verify_locations(authority.pem)
    context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_address[1]}{behind.path}"
    server.shutdown()
    server.server_close()


def node(url: str, tls: ClientTls | None, **other: Any) -> Destination:
    """The service as a destination."""
    return Destination(name="web", kind="dicomweb", url=url, tls=tls, connect_seconds=5, response_seconds=20, **other)


def test_with_everything_in_order(
    secured: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STOW and QIDO through TLS with our certificate and the token; the environment does not interfere."""
    monkeypatch.setenv("PACS_TOKEN", TOKEN)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    me = authority.issue("medxai")
    tls = ClientTls(ca=authority.pem, certificate=me.certificate, key=me.key)
    paths = sorted(dicom_study(tmp_path / "in", 420).glob("*.dcm"))[:2]
    uids = send(paths, node(secured, tls, token_env="PACS_TOKEN"))  # noqa: S106
    header = dcmread(paths[0])
    series = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
    assert held(node(secured, tls, token_env="PACS_TOKEN"), *series) == set(uids)  # noqa: S106


def test_what_is_not_in_order(
    secured: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another issuer, no certificate of ours, another name, no token, a wrong one: one line each, without the token."""
    monkeypatch.setenv("PACS_TOKEN", TOKEN)
    me = authority.issue("medxai3")
    mine = {"certificate": me.certificate, "key": me.key}
    others = Authority(tmp_path, "elsewhere")
    for tls in (
        None,
        ClientTls(ca=others.pem, **mine),
        ClientTls(ca=authority.pem),
        ClientTls(ca=authority.pem, host_name="pacs.hospital", **mine),
    ):
        with pytest.raises(DeliveryError, match="web") as caught:
            held(node(secured, tls, token_env="PACS_TOKEN"), "1.2.3", "1.2.4")  # noqa: S106
        assert is_retryable(caught.value)
        assert TOKEN not in str(caught.value)
        assert "\n" not in str(caught.value)
    tls = ClientTls(ca=authority.pem, **mine)
    monkeypatch.setenv("PACS_TOKEN", "a-wrong-token")
    with pytest.raises(DeliveryError, match="HTTP 401") as caught:
        held(node(secured, tls, token_env="PACS_TOKEN"), "1.2.3", "1.2.4")  # noqa: S106
    assert "a-wrong-token" not in str(caught.value)
    monkeypatch.delenv("PACS_TOKEN")
    with pytest.raises(SettingsError, match="the environment variable PACS_TOKEN with the token is not set"):
        held(node(secured, tls, token_env="PACS_TOKEN"), "1.2.3", "1.2.4")  # noqa: S106


def test_a_token_never_goes_over_plain_http() -> None:
    """Refused with the settings."""
    with pytest.raises(ValidationError, match="others would read the token"):
        Destination(name="x", kind="dicomweb", url="http://127.0.0.1/dicom-web", token_env="PACS_TOKEN")  # noqa: S106
