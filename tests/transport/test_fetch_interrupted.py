"""Fetching from a node that breaks off: what came of a study is not analysed as if it were all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from medxai.errors import DeliveryError
from medxai.records.received import ReceivedStudies
from medxai.settings import Destination
from medxai.transport.associate import library
from medxai.transport.fetch import STUDY_ROOT_GET, fetch_study
from medxai.transport.query import STUDY_ROOT_FIND
from medxai.transport.spool import Spool, study_key
from tests.studies import dicom_study

pytestmark = pytest.mark.pacs


class Archive:
    """Gives the first `most` objects of a study by C-GET and then breaks the association; all with None."""

    def __init__(self, paths: list[Path]) -> None:
        self.datasets = [dcmread(path) for path in paths]
        self.most: int | None = None
        self.given = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def get(self, event: Any) -> Iterator[Any]:
        """Answer a C-GET."""
        yield len(self.datasets)
        for number, dataset in enumerate(self.datasets):
            if number == self.most:
                self.given.set()
                self.go_on.wait(20)
                event.assoc.abort()
                return
            yield 0xFF00, dataset


@contextmanager
def served(archive: Archive) -> Iterator[Destination]:
    """The archive at a port."""
    pynetdicom = library()
    entity = pynetdicom.AE("ARCHIVE")
    entity.add_supported_context(STUDY_ROOT_FIND)
    entity.add_supported_context(STUDY_ROOT_GET)
    for dataset in archive.datasets[:1]:
        syntax = [dataset.file_meta.TransferSyntaxUID]
        entity.add_supported_context(dataset.SOPClassUID, syntax, scu_role=True, scp_role=True)
    handlers = [(pynetdicom.evt.EVT_C_GET, archive.get), (pynetdicom.evt.EVT_C_FIND, lambda _event: iter(()))]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        port = server.server_address[1]
        yield Destination(name="archive", kind="dimse", host="127.0.0.1", port=port, aet="ARCHIVE", retrieve="get")
    finally:
        server.shutdown()


@pytest.fixture
def spool(tmp_path: Path, records: ReceivedStudies) -> Spool:
    """An empty spool."""
    return Spool(tmp_path / "spool", records, note_seconds=0.0)


def test_a_part_of_a_study_is_never_queued(tmp_path: Path, spool: Spool) -> None:
    """Not while the node pauses, whatever the quiet time, not after it broke off, not after a restart."""
    archive = Archive(sorted(dicom_study(tmp_path / "in", 480).glob("*.dcm")))
    uid = str(archive.datasets[0].StudyInstanceUID)
    key = study_key(uid)
    archive.most = 5
    archive.go_on.clear()
    with served(archive) as node:
        failures: list[DeliveryError] = []

        def fetch() -> None:
            try:
                fetch_study(node, uid, spool)
            except DeliveryError as error:
                failures.append(error)

        thread = threading.Thread(target=fetch)
        thread.start()
        assert archive.given.wait(20)
        assert spool.complete_quiet(0.0) == []
        archive.go_on.set()
        thread.join(30)
        assert len(failures) == 1
        assert len(list(spool.folder(key).glob("*.dcm"))) == 5
        (row,) = spool.records.rows()
        assert row.state == "refused"
        assert "not fetched as a whole" in row.reason
        assert spool.complete_quiet(0.0) == []
        spool.recover()
        assert spool.complete_quiet(0.0) == []
        assert spool.records.begin() is None

        archive.most = None
        assert fetch_study(node, uid, spool) == (key, len(archive.datasets))
    (row,) = spool.records.rows()
    assert (row.state, row.reason, row.objects) == ("queued", "", len(archive.datasets))


def test_a_study_that_was_done_stays_done_when_nothing_comes(tmp_path: Path, spool: Spool) -> None:
    """A node that is down changes nothing; nor does it leave a study of which nothing is there."""
    down = Destination(name="archive", kind="dimse", host="127.0.0.1", port=1, aet="X", retrieve="get")
    spool.store("1.2.1", "1.2.1.1", (b"one",))
    spool.complete_quiet(0.0)
    row = spool.records.begin()
    assert row is not None
    spool.records.end(row.study_key, row.generation, [3])
    for uid in ("1.2.1", "1.2.2"):
        with pytest.raises(DeliveryError, match="did not answer"):
            fetch_study(down, uid, spool)
    (row,) = spool.records.rows()
    assert (row.study_key, row.state, row.jobs) == (study_key("1.2.1"), "done", (3,))
