"""Searches over the web: services that return fewer rows than asked for, or always the same ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlparse

import pytest

from medxai.errors import DeliveryError
from medxai.settings import Destination
from medxai.transport.fetch import matching_studies
from medxai.transport.send import held
from tests.transport.web_service import Quiet, web_service

STUDIES = [f"1.2.{number}" for number in range(10)]


@contextmanager
def service(most: int, *, offsets: bool = True, beyond: int = 200) -> Iterator[Destination]:
    """A search service of ten studies, or instances, with its own limit; `beyond` is its answer past the last row."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            asked = parse_qs(urlparse(self.path).query)
            first = int(asked.get("offset", ["0"])[0]) if offsets else 0
            rows = [
                {tag: {"vr": "UI", "Value": [uid]} for tag in ("0020000D", "00080018")}
                for uid in STUDIES[first : first + min(most, int(asked["limit"][0]))]
            ]
            body = json.dumps(rows).encode()
            self.send_response(200 if rows else beyond)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with web_service(Handler) as where:
        yield where


@pytest.mark.parametrize("beyond", [200, 400, 404])
@pytest.mark.parametrize("most", [3, 10, 5000])
def test_every_match_is_found_whatever_the_limit_of_the_service(most: int, beyond: int) -> None:
    """Ten of ten."""
    with service(most, beyond=beyond) as node:
        assert matching_studies(node, {"StudyDate": "20240101"}) == STUDIES
        assert held(node, "1.2", "1.3") == set(STUDIES)


def test_a_service_without_offsets_ends() -> None:
    """The same rows again are the end."""
    with service(4, offsets=False) as node:
        assert matching_studies(node, {}) == STUDIES[:4]


@pytest.mark.parametrize("code", [400, 404])
def test_a_refused_query_is_an_error(code: int) -> None:
    """No row at all: the query, or the url, was wrong."""
    with service(0, beyond=code) as node, pytest.raises(DeliveryError, match=f"HTTP {code}"):
        matching_studies(node, {"StudyDate": "x"})


def test_a_series_that_is_not_there_is_no_error() -> None:
    """PS3.18 allows 404."""
    with service(0, beyond=404) as node:
        assert held(node, "1.2", "1.3") == set()
