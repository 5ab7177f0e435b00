"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from tests.pacs import Orthanc, StoreScp, orthanc, store_scp
from tests.postgres import postgres

# Two processes of two threads each slow each other by more than they gain.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def orthanc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An empty Orthanc on the loopback interface for the whole session."""
    with orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[Callable[[], str]]:
    """Makes empty databases on a PostgreSQL server of the session; returns their SQLAlchemy URLs."""
    with postgres() as database:
        yield database


@pytest.fixture
def storescp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreScp]:
    """A dcmtk storescp on the loopback interface with an empty folder."""
    with store_scp(tmp_path_factory.mktemp("storescp")) as server:
        yield server
