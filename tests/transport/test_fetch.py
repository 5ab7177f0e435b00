"""Fetching from Orthanc into the spool: WADO-RS, C-MOVE to our receiver, C-GET; queries; what goes wrong."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread

from medxai.errors import DeliveryError, IngestError
from medxai.settings import Destination
from medxai.transport.fetch import fetch_study, matching_studies
from medxai.transport.send import send
from medxai.transport.spool import study_key
from tests.pacs import Orthanc
from tests.studies import dicom_study, edit
from tests.test_privacy import PLANTED, found_in, plant
from tests.transport.conftest import Gate

pytestmark = pytest.mark.pacs

#: Nobody else at this Orthanc has it.
PATIENT = f"{PLANTED['PatientID']}-430"
Start = Callable[..., Gate]


def node(server: Orthanc, kind: str, retrieve: str = "move") -> Destination:
    """Orthanc as a source."""
    if kind == "dicomweb":
        return Destination(name="orthanc", kind="dicomweb", url=server.web_url)
    return Destination(
        name="orthanc", kind="dimse", host=server.host, port=server.dicom_port, aet=server.aet, retrieve=retrieve
    )  # type: ignore[arg-type]


def make_known(server: Orthanc, port: int) -> None:
    """Tell Orthanc where MEDXAI listens."""
    body = json.dumps({"AET": "MEDXAI", "Host": "127.0.0.1", "Port": port, "AllowGet": True}).encode()
    request = urllib.request.Request(f"{server.rest_url}/modalities/medxai", body, method="PUT")  # noqa: S310
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - loopback
        pass


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, orthanc_server: Orthanc) -> tuple[str, dict[str, Path]]:
    """A study of two series of a named patient at Orthanc: its UID, and SOP Instance UID -> file."""
    root = tmp_path_factory.mktemp("stored")
    first = dicom_study(root / "a", 430)

    def name(dataset) -> None:  # type: ignore[no-untyped-def]
        plant(dataset)
        dataset.PatientID = PATIENT

    edit(first, name)
    uid = str(dcmread(next(first.glob("*.dcm"))).StudyInstanceUID)

    def same_study(dataset) -> None:  # type: ignore[no-untyped-def]
        name(dataset)
        dataset.StudyInstanceUID = uid

    edit(dicom_study(root / "b", 431), same_study)
    paths = {str(dcmread(path).SOPInstanceUID): path for path in root.rglob("*.dcm")}
    send(list(paths.values()), node(orthanc_server, "dicomweb"))
    return uid, paths


@pytest.mark.parametrize("way", ["dicomweb", "move", "get"])
def test_a_study_comes_as_it_is(
    way: str,
    gate: Start,
    stored: tuple[str, dict[str, Path]],
    orthanc_server: Orthanc,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both series, all objects equal to those stored, queued without a quiet time; no name in any log line."""
    for name in ("pydicom", "pynetdicom", "medxai", "dicomweb_client", "urllib3"):
        caplog.set_level(logging.INFO, logger=name)
    uid, paths = stored
    there = gate(calling=["ORTHANC"])
    make_known(orthanc_server, there.port)
    source = node(orthanc_server, "dicomweb" if way == "dicomweb" else "dimse", "get" if way == "get" else "move")
    key, count = fetch_study(source, uid, there.spool, move_to="MEDXAI")
    assert (key, count) == (study_key(uid), 28)
    back = {str(ds.SOPInstanceUID): ds for ds in map(dcmread, there.files())}
    assert {sop: ds == dcmread(paths[sop]) for sop, ds in back.items()} == dict.fromkeys(paths, True)
    (row,) = there.records.rows()
    assert row.state == "queued"
    assert found_in(caplog.text.encode()) == []


@pytest.mark.parametrize("way", ["dicomweb", "move", "get"])
def test_one_series(way: str, gate: Start, stored: tuple[str, dict[str, Path]], orthanc_server: Orthanc) -> None:
    """Fourteen of twenty-eight objects."""
    uid, paths = stored
    series = str(dcmread(next(iter(paths.values()))).SeriesInstanceUID)
    there = gate(calling=["ORTHANC"])
    make_known(orthanc_server, there.port)
    source = node(orthanc_server, "dicomweb" if way == "dicomweb" else "dimse", "get" if way == "get" else "move")
    _, count = fetch_study(source, uid, there.spool, series_uid=series, move_to="MEDXAI")
    assert count == 14
    assert {str(dcmread(path).SeriesInstanceUID) for path in there.files()} == {series}


@pytest.mark.parametrize("kind", ["dicomweb", "dimse"])
def test_queries(kind: str, stored: tuple[str, dict[str, Path]], orthanc_server: Orthanc) -> None:
    """By patient and by date; nothing matches nothing."""
    uid, _ = stored
    source = node(orthanc_server, kind)
    assert matching_studies(source, {"PatientID": PATIENT}) == [uid]
    assert matching_studies(source, {"PatientID": PATIENT, "StudyDate": "20240101-20240131"}) == [uid]
    assert matching_studies(source, {"PatientID": "NOBODY"}) == []


def test_a_move_to_nobody_says_what_to_check(gate: Start, orthanc_server: Orthanc, stored: tuple[str, object]) -> None:
    """Orthanc does not know the title; or knows it, and nobody listens there."""
    there = gate()
    source = node(orthanc_server, "dimse")
    with pytest.raises(DeliveryError, match=r"orthanc .*check that it knows STRANGER and its port"):
        fetch_study(source, stored[0], there.spool, move_to="STRANGER")
    with pytest.raises(DeliveryError, match="needs the listener"):
        fetch_study(source, stored[0], there.spool)
    assert there.records.rows() == []


@pytest.mark.parametrize("way", ["dicomweb", "get"])
def test_nothing_there(way: str, gate: Start, orthanc_server: Orthanc) -> None:
    """A study that does not exist is one line, and no UID of it is repeated."""
    there = gate()
    source = node(orthanc_server, "dicomweb" if way == "dicomweb" else "dimse", way)
    with pytest.raises(DeliveryError) as caught:
        fetch_study(source, "1.2.3.4.5.678", there.spool, move_to="MEDXAI")
    assert "1.2.3.4.5.678" not in str(caught.value)
    with pytest.raises(IngestError, match="not a valid UID"):
        fetch_study(source, "../../etc", there.spool)
