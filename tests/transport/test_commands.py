"""The commands: help, check, pull, outbox and received, as somebody at a terminal sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import dcmread

from medxai.settings import Destination
from medxai.transport.send import send
from medxai.transport.spool import study_key
from tests.pacs import Orthanc, free_port, store_scp
from tests.studies import ROOT, command, dicom_study, jobs
from tests.transport.test_fetch import make_known

FEW = {"formats": ["parametric_map"], "send_withheld": True}


def config(root: Path, **values: Any) -> Path:
    """A settings file."""
    path = root / "c.yaml"
    section = {"port": 0, "calling": ["ORTHANC"], "free_bytes": 0, **values.pop("listen", {})}
    base = {"output": str(root / "out"), "bundle": "phantom_ct", "modality": "CT", "export": FEW, "listen": section}
    path.write_text(yaml.safe_dump({**base, **values}))
    return path


@pytest.mark.parametrize("name", ["listen", "pull", "outbox", "received"])
def test_help(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Each says what it does; that of `listen` shows the section of the settings."""
    done = command(capfd, name, "--help")
    assert done.code == 0
    if name == "listen":
        for word in ("calling", "quiet_seconds", "client_ca", "token_env"):
            assert word in done.out


def test_examples_are_settings() -> None:
    """What the help and configs/listen.yaml show can be read as it stands."""
    from medxai.cli_listen import listen
    from medxai.settings import load_settings, make_settings

    example = load_settings(ROOT / "configs" / "listen.yaml")
    assert example.listen is not None
    assert example.listen.host == "127.0.0.1"
    text = (listen.__doc__ or "").split("section listen:\n")[1].split("\b")[0]
    shown = make_settings(yaml.safe_load(text))
    assert shown.listen is not None
    assert shown.listen.titles == ("CT1", "PACS")
    assert not shown.listen.allows("PACS", "10.0.0.6")
    assert shown.node("pacs").token_env == "PACS_TOKEN"  # noqa: S105


def test_nodes_are_told_apart_by_name() -> None:
    """Two of one name, or work items at a node that does not exist, are errors of the settings."""
    from medxai.errors import SettingsError
    from medxai.settings import make_settings

    node = {"name": "a", "kind": "dicomweb", "url": "http://127.0.0.1/x"}
    base = {"output": "o", "bundle": "b", "listen": {"calling": ["A"]}}
    with pytest.raises(SettingsError, match="two destinations have the same name"):
        make_settings({**base, "destinations": [node, node]})
    items = {"calling": ["A"], "work_items": {"source": "ris"}}
    with pytest.raises(SettingsError, match="no source or destination 'ris'; there are a"):
        make_settings({**base, "listen": items, "sources": [node]})


def test_settings_without_the_section(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line that names the way out."""
    path = tmp_path / "c.yaml"
    values = {"output": str(tmp_path / "out"), "bundle": "phantom_ct"}
    path.write_text(yaml.safe_dump({**values, "inputs": []}))
    done = command(capfd, "listen", path)
    assert done.code == 2
    assert "has no section listen; see `medxai listen --help`" in done.err
    path.write_text(yaml.safe_dump(values))
    done = command(capfd, "listen", path)
    assert done.err == f"error: {path}: inputs names the studies of a batch; only the listener needs none\n"


@pytest.mark.pacs
def test_check(tmp_path: Path, capfd: pytest.CaptureFixture[str], orthanc_server: Orthanc) -> None:
    """Every node is called once; one that does not answer is named and gives code 2."""
    web = {"name": "web", "kind": "dicomweb", "url": orthanc_server.web_url}
    good = {"name": "good", "kind": "dimse", "host": "127.0.0.1", "port": orthanc_server.dicom_port, "aet": "ORTHANC"}
    done = command(capfd, "listen", config(tmp_path, destinations=[web], sources=[good]), "--check")
    assert (done.code, done.out) == (0, "good: answers\nweb: answers\n")
    dead = {**good, "name": "dead", "port": free_port(), "connect_seconds": 1}
    done = command(capfd, "listen", config(tmp_path, destinations=[dead, web]), "--check")
    assert done.code == 2
    assert "dead: dead (127.0.0.1:" in done.err
    assert "web: answers" in done.out


@pytest.mark.pacs
@pytest.mark.parametrize(("way", "seed"), [("dicomweb", 600), ("move", 610), ("get", 620)])
def test_pull(way: str, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], orthanc_server: Orthanc) -> None:
    """From the archive, explained, and delivered to another node, in one command; a second time nothing is done."""
    folder = dicom_study(tmp_path / "in", seed, number=f"PULL-{seed}")
    web = Destination(name="pacs", kind="dicomweb", url=orthanc_server.web_url)
    send(sorted(folder.glob("*.dcm")), web)
    uid = str(dcmread(next(folder.glob("*.dcm"))).StudyInstanceUID)
    node: dict[str, Any] = {"name": "pacs", "kind": "dicomweb", "url": orthanc_server.web_url}
    if way != "dicomweb":
        node = {"name": "pacs", "kind": "dimse", "host": "127.0.0.1", "port": orthanc_server.dicom_port}
        node |= {"aet": "ORTHANC", "retrieve": way}
    port = free_port()
    make_known(orthanc_server, port)
    sink_folder = tmp_path / "sink"
    sink_folder.mkdir()
    with store_scp(sink_folder) as sink:
        to = {"name": "sink", "kind": "dimse", "host": "127.0.0.1", "port": sink.port, "aet": "SINK"}
        path = config(tmp_path, sources=[node], destinations=[to], listen={"port": port})
        done = command(capfd, "pull", path, "--from", "pacs", "--query", f"PatientID=PULL-{seed}")
        assert done.code == 0, done.err
        assert f"{study_key(uid)}: 14 objects fetched" in done.out
        assert "1 of 1 studies explained" in done.out
        arrived = [str(dcmread(p).SOPInstanceUID) for p in sink.folder.iterdir()]
        assert len(arrived) == 1
        again = command(capfd, "pull", path, "--from", "pacs", "--study", uid)
        assert again.code == 0, again.err
        assert len(list(sink.folder.iterdir())) == 1
    assert [(row.state, row.attempts, row.analyses) for row in jobs(tmp_path / "out")] == [("done", 1, 1)]


def test_pull_says_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither study nor query, an unknown keyword, an unknown node."""
    path = config(tmp_path)
    assert "give --study or --query" in command(capfd, "pull", path, "--from", "x").err
    assert "'Patient' is not KEYWORD=VALUE" in command(capfd, "pull", path, "--from", "x", "--query", "Patient=1").err
    done = command(capfd, "pull", path, "--from", "x", "--study", "1.2.3")
    assert "there is no source or destination 'x'; there are none" in done.err
    assert done.code == 2


@pytest.mark.pacs
def test_outbox_and_received(tmp_path: Path, capfd: pytest.CaptureFixture[str], orthanc_server: Orthanc) -> None:
    """What waits is listed with its reason, made due, and what was received can be analysed again."""
    folder = dicom_study(tmp_path / "in", 630)
    send(sorted(folder.glob("*.dcm")), Destination(name="pacs", kind="dicomweb", url=orthanc_server.web_url))
    uid = str(dcmread(next(folder.glob("*.dcm"))).StudyInstanceUID)
    source = {"name": "pacs", "kind": "dicomweb", "url": orthanc_server.web_url}
    port = free_port()
    to = {"name": "sink", "kind": "dimse", "host": "127.0.0.1", "port": port, "aet": "SINK", "connect_seconds": 1}
    path = config(tmp_path, sources=[source], destinations=[to])
    out = tmp_path / "out"
    assert command(capfd, "pull", path, "--from", "pacs", "--study", uid).code == 2
    listed = command(capfd, "outbox", "list", out)
    assert "1 objects" in listed.out
    assert "sink" in listed.out
    assert "did not" in listed.out
    assert command(capfd, "outbox", "retry", out, "--destination", "elsewhere").out == "0 objects are due now\n"
    assert command(capfd, "outbox", "retry", out).out == "1 objects are due now\n"
    shown = command(capfd, "received", out)
    assert study_key(uid) in shown.out
    assert "14" in shown.out
    sink_folder = tmp_path / "sink"
    sink_folder.mkdir()
    with store_scp(sink_folder, port) as sink:
        assert command(capfd, "pull", path, "--from", "pacs", "--study", uid).code == 0
        assert len(list(sink.folder.iterdir())) == 1
    assert "0 objects" in command(capfd, "outbox", "list", out).out
    assert "sent" in command(capfd, "outbox", "list", out, "--all").out
    assert "queued" in command(capfd, "received", out, "--again", study_key(uid)).out
    assert "is not among the received studies" in command(capfd, "received", out, "--again", "nobody").err
