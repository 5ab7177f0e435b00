"""The receiver against dcmtk and pynetdicom: what is kept, what is refused with which status, and who may call."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from medxai.errors import MedxaiError, SettingsError
from medxai.identity import sha256_file
from medxai.settings_network import ClientTls, Listen, ServerTls
from medxai.transport.spool import object_name, study_key
from medxai.transport.tls import client_context, server_context
from tests.studies import dicom_study, edit
from tests.transport.callers import calling, echoscu, encoded, first, status_of, storescu
from tests.transport.certificates import Authority
from tests.transport.conftest import Gate

pytestmark = pytest.mark.pacs

Start = Callable[..., Gate]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of fourteen slices."""
    return dicom_study(tmp_path_factory.mktemp("study") / "ct", 301)


def test_a_series_is_kept_as_it_came(gate: Start, study: Path) -> None:
    """Every object is one file, equal to what was sent, under names that are hashes; the study gathers."""
    there = gate()
    assert storescu(there.port, study).returncode == 0
    sent = {str(ds.SOPInstanceUID): ds for ds in map(dcmread, study.glob("*.dcm"))}
    uid = str(next(iter(sent.values())).StudyInstanceUID)
    files = there.files()
    assert {path.name for path in files} == {object_name(sop) for sop in sent}
    assert {path.parent.name for path in files} == {study_key(uid)}
    for path in files:
        back = dcmread(path)
        assert back == sent[str(back.SOPInstanceUID)]
        assert back.file_meta.TransferSyntaxUID == sent[str(back.SOPInstanceUID)].file_meta.TransferSyntaxUID
    (row,) = there.records.rows()
    assert (row.study_key, row.state) == (study_key(uid), "gathering")
    assert [p for p in there.spool.root.rglob(".*") if p.name != ".lock"] == []


def test_the_same_object_again_changes_nothing(gate: Start, study: Path) -> None:
    """A caller that did not hear the answer sends again: one file, not written a second time."""
    there = gate()
    assert storescu(there.port, study).returncode == 0
    before = {path: (path.stat().st_mtime_ns, sha256_file(path)) for path in there.files()}
    assert storescu(there.port, study).returncode == 0
    assert {path: (path.stat().st_mtime_ns, sha256_file(path)) for path in there.files()} == before


def test_a_corrected_object_replaces(gate: Start, study: Path) -> None:
    """The same SOP Instance UID with other content: the newer one counts."""
    there = gate()
    dataset = first(study)
    assert status_of(there.port, dataset) == (0, "")
    dataset.RescaleIntercept = "-1000"
    assert status_of(there.port, dataset) == (0, "")
    (path,) = there.files()
    assert str(dcmread(path).RescaleIntercept) == "-1000"


def test_an_answer_means_that_the_file_is_there(gate: Start, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and folder are synchronised before the caller is told; a disk that fails is A700 and leaves nothing."""
    there = gate()
    synced: list[str] = []
    real = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    assert status_of(there.port, first(study))[0] == 0
    (path,) = there.files()
    assert any(Path(name).parent == path.parent for name in synced)
    assert str(path.parent) in synced
    assert str(there.spool.root) in synced

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    other = dcmread(sorted(study.glob("*.dcm"))[1])
    assert status_of(there.port, other) == (0xA700, "it could not be written")
    monkeypatch.undo()
    assert there.files() == [path]
    assert list(path.parent.iterdir()) == [path]
    assert status_of(there.port, other)[0] == 0


def test_statuses_of_what_is_wrong_with_an_object(gate: Start, study: Path) -> None:
    """A900 for another identity than the request's, C000 for what cannot be read; comments name attributes only."""
    there = gate()
    dataset = first(study)
    assert status_of(there.port, dataset, sop_uid="1.2.3.4") == (0xA900, "SOPInstanceUID is not that of the request")
    other = first(study)
    other.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    assert status_of(there.port, other)[0] == 0xA900
    assert status_of(there.port, dataset, data=b"this is no data set at all, whatever it may be" * 9)[0] == 0xC000
    without = first(study)
    del without.StudyInstanceUID
    assert status_of(there.port, without) == (0xC000, "StudyInstanceUID is absent")
    bad = first(study)
    bad.add_new(0x0020000D, "UI", "1.2.03")
    assert status_of(there.port, bad) == (0xC000, "StudyInstanceUID is not a valid UID")
    assert there.files() == []
    assert there.records.rows() == []


def test_too_large_an_object_is_refused_and_its_study_put_aside(gate: Start, study: Path) -> None:
    """A700, nothing on the disk, bounded memory; the rest of the study is not taken for all of it."""
    there = gate(object_bytes=100_000)
    dataset = first(study)
    assert status_of(there.port, dataset)[0] == 0
    large = dcmread(sorted(study.glob("*.dcm"))[1])
    large.Rows = large.Columns = 512
    large.PixelData = bytes(2 * 512 * 512)
    code, comment = status_of(there.port, large)
    assert (code, comment) == (0xA700, "an object is larger than object_bytes (100000 bytes)")
    assert len(there.files()) == 1
    (row,) = there.records.rows()
    assert (row.state, row.reason) == ("refused", comment)
    assert there.spool.complete_quiet(0.0) == []


def test_too_large_a_study_is_refused(gate: Start, study: Path) -> None:
    """The first objects fit, the next one does not."""
    size = len(encoded(first(study)))
    there = gate(study_bytes=3 * size)
    assert storescu(there.port, study).returncode != 0
    assert 1 <= len(there.files()) <= 3
    (row,) = there.records.rows()
    assert row.state == "refused"
    assert "study_bytes" in row.reason


def test_a_full_disk_refuses_until_there_is_room(gate: Start, study: Path) -> None:
    """A700 without a mark on the study: the caller sends again and it becomes whole."""
    there = gate(free_bytes=1 << 62)
    code, comment = status_of(there.port, first(study))
    assert code == 0xA700
    assert "free_bytes" in comment
    assert there.records.rows() == []
    there.spool._free_bytes = 0
    assert status_of(there.port, first(study))[0] == 0


def test_rate(gate: Start, study: Path) -> None:
    """Four objects a second: fourteen take at least two and a half, and none is refused."""
    there = gate(objects_per_second=4.0)
    begin = time.monotonic()
    assert storescu(there.port, study).returncode == 0
    assert time.monotonic() - begin >= 2.4
    assert len(there.files()) == 14


def test_who_may_call(gate: Start, study: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Unknown callers and calls for others are rejected at the association, with the reason of the standard."""
    caplog.set_level(logging.INFO, logger="medxai")
    there = gate()
    assert echoscu(there.port).returncode == 0
    stranger = echoscu(there.port, caller="STRANGER")
    assert stranger.returncode != 0
    assert "Calling AE Title Not Recognized" in stranger.stdout + stranger.stderr
    elsewhere = echoscu(there.port, called="OTHERS")
    assert "Called AE Title Not Recognized" in elsewhere.stdout + elsewhere.stderr
    refused = storescu(there.port, study, caller="STRANGER")
    assert refused.returncode != 0
    assert there.files() == []
    text = caplog.text
    assert "rejected an association of 'STRANGER': it is not in listen.calling" in text
    assert "it calls 'OTHERS', we are 'MEDXAI'" in text


def test_a_title_from_another_address_is_not_authorised(gate: Start, study: Path) -> None:
    """``AET@host``: 0124 for the title from elsewhere."""
    there = gate(calling=["STORESCU@192.0.2.7"])
    assert status_of(there.port, first(study))[0] == 0x0124
    assert there.files() == []


def test_more_associations_than_allowed(gate: Start) -> None:
    """The third of two is rejected as transient (local limit exceeded); after one has gone it may come again."""
    there = gate(associations=2)
    with calling(there.port) as one, calling(there.port) as two:
        assert one.is_established
        assert two.is_established
        with calling(there.port) as three:
            assert three.is_rejected
            assert three.acceptor.primitive.result == 2
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        with calling(there.port) as again:
            if again.is_established:
                break
        time.sleep(0.1)
    assert again.is_released


def test_our_own_results_are_acknowledged_and_dropped(gate: Start, study: Path) -> None:
    """An archive that routes everything to us does not make us explain our explanations."""
    ours = str(first(study).SOPInstanceUID)
    there = gate(is_ours=lambda uid: uid == ours)
    assert storescu(there.port, study).returncode == 0
    assert len(there.files()) == 13
    assert object_name(ours) not in {path.name for path in there.files()}


def test_garbage_does_not_stop_the_listener(gate: Start, study: Path) -> None:
    """Random bytes, PDUs that claim gigabytes, half of a real association, connections that say nothing."""
    there = gate(idle_seconds=2.0, associations=4)
    random.seed(5)
    silent = []
    for number in range(60):
        connection = socket.create_connection(("127.0.0.1", there.port), timeout=5)
        kind = number % 5
        with_length = struct.pack(">BBL", random.choice([1, 4, 5, 7, 9]), 0, random.choice([4, 1000, 0xFFFFFFFF]))
        data = {
            0: random.randbytes(random.randrange(1, 4000)),
            1: with_length + random.randbytes(500),
            2: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            3: struct.pack(">BBL", 1, 0, 200) + bytes(2) + random.randbytes(100),
            4: b"",
        }[kind]
        with contextlib.suppress(OSError):
            connection.sendall(data)
        if kind == 4 and len(silent) < 3:
            silent.append(connection)
        else:
            connection.close()
    limit = time.monotonic() + 20
    while storescu(there.port, study).returncode != 0:
        assert time.monotonic() < limit
        time.sleep(0.2)
    assert len(there.files()) == 14
    for connection in silent:
        connection.close()


@pytest.mark.parametrize("kind", ["gigabytes", "commands", "unanswered"])
def test_an_allowed_caller_that_misbehaves_is_cut_off(kind: str, gate: Start, study: Path) -> None:
    """A PDU of four gigabytes, a command without end, requests that wait for no answer: aborted, others go on."""
    there = gate()
    with calling(there.port) as made:
        assert made.is_established
        line = made.dul.socket.socket
        (context,) = made.accepted_contexts
        with contextlib.suppress(OSError):
            if kind == "gigabytes":
                line.sendall(struct.pack(">BBL", 4, 0, 0xFFFFFFFF) + bytes(1 << 20))
            elif kind == "commands":
                part = struct.pack(">LBB", 4002, context.context_id, 1) + bytes(4000)
                for _ in range(100):
                    line.sendall(struct.pack(">BBL", 4, 0, len(part)) + part)
            else:
                for number in range(60):
                    send_unasked(made, context.context_id, first(study), number + 1)
        limit = time.monotonic() + 15
        while made.is_established and time.monotonic() < limit:
            time.sleep(0.05)
        assert not made.is_established
    assert storescu(there.port, study).returncode == 0
    assert len(there.files()) == 14


def send_unasked(made: Any, context: int, dataset: Dataset, number: int) -> None:
    """Send a C-STORE request and do not wait."""
    from pynetdicom.dimse_primitives import C_STORE

    request = C_STORE()
    request.MessageID, request.Priority = number, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    request.DataSet = io.BytesIO(encoded(dataset))
    made.dimse.send_msg(request, context)


def test_a_broken_association_leaves_no_half_object(gate: Start, study: Path) -> None:
    """The line is cut in the middle of an object: what was acknowledged stays, the rest leaves no trace."""
    there = gate()
    dataset = first(study)
    dataset.Rows = dataset.Columns = 1024
    dataset.PixelData = bytes(2 * 1024 * 1024)
    with calling(there.port) as made:
        made.dul.socket.socket.settimeout(5)
        real = made.dul.socket.socket.send
        sent = 0

        def cut(data: bytes, *rest: Any) -> int:
            nonlocal sent
            sent += len(data)
            if sent > 500_000:
                made.dul.socket.socket.close()
                raise OSError
            return int(real(data, *rest))

        monkey = pytest.MonkeyPatch()
        monkey.setattr(made.dul.socket, "send", lambda data: cut_all(data, cut))
        made.send_c_store(dataset)
        monkey.undo()
    assert there.files() == []
    assert list(there.spool.root.rglob(".*")) == []
    assert storescu(there.port, study).returncode == 0


def cut_all(data: bytes, send: Callable[[bytes], int]) -> None:
    """Send everything by `send`."""
    while data:
        data = data[send(data) :]


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """Ours, and one that nobody here trusts."""
    folder = tmp_path_factory.mktemp("certificates")
    return Authority(folder, "hospital"), Authority(folder, "elsewhere")


def tls_options(pair: Any, authority: Authority) -> list[str]:
    """What dcmtk needs to call by TLS."""
    return ["+tls", str(pair.key), str(pair.certificate), "+cf", str(authority.pem)]


def test_tls(gate: Start, study: Path, authorities: tuple[Authority, Authority]) -> None:
    """dcmtk by TLS with our issuer's certificate; another issuer's, none at all and plain DICOM are turned away."""
    ours, others = authorities
    me, caller, stranger = ours.issue("medxai"), ours.issue("caller"), others.issue("stranger")
    there = gate(tls=ServerTls(certificate=me.certificate, key=me.key, client_ca=ours.pem))
    assert echoscu(there.port, *tls_options(caller, ours)).returncode == 0
    assert storescu(there.port, study, *tls_options(caller, ours)).returncode == 0
    assert len(there.files()) == 14
    assert echoscu(there.port, *tls_options(stranger, ours)).returncode != 0
    assert echoscu(there.port, *tls_options(caller, others)).returncode != 0
    assert echoscu(there.port, "+tla", "+cf", str(ours.pem)).returncode != 0
    assert echoscu(there.port, "-ta", "5", "-td", "5").returncode != 0
    assert echoscu(there.port, *tls_options(caller, ours)).returncode == 0


def test_a_caller_that_never_shakes_hands_holds_nobody_up(
    gate: Start, authorities: tuple[Authority, Authority]
) -> None:
    """The handshake of one connection is not waited for by the others."""
    ours, _ = authorities
    me = ours.issue("medxai2")
    there = gate(tls=ServerTls(certificate=me.certificate, key=me.key), idle_seconds=30.0)
    with socket.create_connection(("127.0.0.1", there.port)):
        time.sleep(0.2)
        begin = time.monotonic()
        assert echoscu(there.port, "+tla", "+cf", str(ours.pem)).returncode == 0
        assert time.monotonic() - begin < 15


def test_unusable_certificates_are_named(tmp_path: Path, authorities: tuple[Authority, Authority]) -> None:
    """One line, before anything listens or calls."""
    ours, _ = authorities
    pair = ours.issue("pair")
    junk = tmp_path / "junk.pem"
    junk.write_text("no PEM")
    with pytest.raises(SettingsError, match=r"junk\.pem: tls ca cannot be used"):
        client_context(ClientTls(ca=junk))
    with pytest.raises(SettingsError, match=r"absent\.pem: tls client_ca cannot be used"):
        server_context(ServerTls(certificate=pair.certificate, key=pair.key, client_ca=tmp_path / "absent.pem"))
    with pytest.raises(SettingsError, match="tls certificate and key cannot be used"):
        server_context(ServerTls(certificate=pair.certificate, key=ours.issue("third").key))


def test_a_taken_port_is_one_line(gate: Start) -> None:
    """It names the address."""
    there = gate()
    with pytest.raises(MedxaiError, match=rf"127\.0\.0\.1:{there.port} cannot be listened on"):
        gate(port=there.port)


def test_callers_at_the_same_time(gate: Start, tmp_path: Path) -> None:
    """Four studies by four associations at once: all there, none mixed up."""
    there = gate()
    folders = [dicom_study(tmp_path / str(number), 310 + number) for number in range(4)]
    codes: list[int] = []
    threads = [threading.Thread(target=lambda f=f: codes.append(storescu(there.port, f).returncode)) for f in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 4
    assert len(there.files()) == 56
    assert {row.study_key for row in there.records.rows()} == {
        study_key(str(first(f).StudyInstanceUID)) for f in folders
    }


def test_no_name_in_logs_names_or_database(gate: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also with the libraries' own loggers at INFO, for good objects and for refused ones."""
    from tests.test_privacy import PLANTED, found_in, plant

    there = gate(object_bytes=100_000)
    folder = dicom_study(tmp_path / "in", 330)
    edit(folder, plant)
    caplog.set_level(logging.INFO)
    for name in ("pydicom", "pynetdicom", "medxai"):
        caplog.set_level(logging.INFO, logger=name)
    assert storescu(there.port, folder).returncode == 0
    name = PLANTED["PatientName"].encode()
    uid = str(first(folder).StudyInstanceUID).encode()
    bad = encoded(first(folder)).replace(uid, name.ljust(len(uid), b"0"))
    assert status_of(there.port, first(folder), data=bad)[0] == 0xC000
    large = first(folder)
    large.Rows = large.Columns = 512
    large.PixelData = bytes(2 * 512 * 512)
    assert status_of(there.port, large)[0] == 0xA700
    assert found_in(caplog.text.encode()) == []
    assert "StudyInstanceUID is not a valid UID" in caplog.text
    assert found_in(b"".join(path.read_bytes() for path in tmp_path.glob("worklist.sqlite*"))) == []
    assert [name for name in map(str, there.spool.root.rglob("*")) if found_in(name.encode())] == []


def test_settings_that_would_let_everybody_in_are_refused() -> None:
    """At least one caller is named, with a title of at most sixteen characters, and an address where there is an @."""
    from pydantic import ValidationError

    for calling_titles in ([], [""], ["A" * 17], ["@127.0.0.1"], ["CT1@ct1.hospital"], ["CT1@"]):
        with pytest.raises(ValidationError):
            Listen(calling=calling_titles)
    with pytest.raises(ValidationError):
        Listen(calling=["A"], aet="BACK\\SLASH")
