"""An archive for the studies of one file of tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.pacs import Orthanc, orthanc
from tests.viewer import ohif


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An archive for the studies of one file alone; skips or fails where a tool is missing."""
    reason = ohif.missing()
    if reason:
        if os.environ.get("MEDXAI_REQUIRE_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("archive")
    (folder / "database").mkdir()
    with orthanc(folder) as running:
        yield running
