"""A spool with its database, and receivers that listen on free ports of the loopback interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medxai.records.database import open_database, sqlite_url
from medxai.records.received import ReceivedStudies
from medxai.settings_network import Listen
from medxai.transport.receive import Receiver
from medxai.transport.spool import Spool


@dataclass
class Gate:
    """A running receiver with what stands behind it."""

    receiver: Receiver
    spool: Spool
    records: ReceivedStudies

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.receiver.port

    def files(self) -> list[Path]:
        """Received objects."""
        return sorted(path for path in self.spool.root.rglob("*.dcm") if not path.name.startswith("."))


@pytest.fixture
def records(tmp_path: Path) -> ReceivedStudies:
    """An empty database."""
    return ReceivedStudies(open_database(sqlite_url(tmp_path / "worklist.sqlite")))


@pytest.fixture
def gate(tmp_path: Path, records: ReceivedStudies) -> Iterator[Callable[..., Gate]]:
    """Start receivers with other settings; all are stopped at the end."""
    started: list[Receiver] = []

    def start(*, is_ours: Callable[[str], bool] = lambda _uid: False, **settings: Any) -> Gate:
        listen = Listen(**{"port": 0, "calling": ["STORESCU", "ECHOSCU"], "free_bytes": 0, **settings})
        spool = Spool(
            tmp_path / "spool",
            records,
            study_bytes=listen.study_bytes,
            free_bytes=listen.free_bytes,
            note_seconds=min(0.5, listen.quiet_seconds / 2),
        )
        receiver = Receiver(listen, spool, is_ours)
        receiver.start()
        started.append(receiver)
        return Gate(receiver, spool, records)

    yield start
    for receiver in started:
        receiver.stop()
