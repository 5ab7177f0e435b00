from __future__ import annotations

import builtins

import pytest
from pydantic import ValidationError

from medxai.errors import DeliveryError, MedxaiError
from medxai.export import ExportOptions, export_all
from medxai.settings import Destination
from medxai.transport.failures import is_about_one_object, is_retryable
from medxai.transport.send import held, send
from tests.export import build
from tests.export.read import read
from tests.pacs import free_port


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    options = ExportOptions(formats=("parametric_map", "segmentation"), explanations="primary", labelmap=True)
    return [folder / "run" / o.path for o in export_all(build.ct_case().result, folder / "run", options)]


def dimse(**other):
    return Destination(**{"name": "archive", "kind": "dimse", "host": "127.0.0.1", "port": 104, "aet": "SINK", **other})


def test_a_closed_port_is_one_retryable_line(objects):
    with pytest.raises(DeliveryError, match=r"archive .* did not answer") as caught:
        send(objects, dimse(port=free_port(), connect_seconds=2))
    assert is_retryable(caught.value)
    assert "\n" not in str(caught.value)


def test_a_closed_web_port_is_one_retryable_line(objects):
    web = Destination(name="web", kind="dicomweb", url=f"http://127.0.0.1:{free_port()}/dicom-web", connect_seconds=2)
    for attempt in (lambda: send(objects, web), lambda: held(web, "1.2", "1.2.3")):
        with pytest.raises(DeliveryError, match="did not answer") as caught:
            attempt()
        assert is_retryable(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.pacs
def test_a_node_that_does_not_know_a_class_names_it(objects, storescp_server):
    delivered = []
    labelmap = [path for path in objects if path.name.startswith("segmentation")]
    with pytest.raises(DeliveryError, match=r"Label Map Segmentation.*RLE Lossless") as caught:
        send([objects[0], *labelmap], dimse(port=storescp_server.port), delivered.append)
    assert not is_retryable(caught.value)
    assert is_about_one_object(caught.value)
    assert delivered == [read(objects[0]).SOPInstanceUID]


@pytest.fixture
def choosy_node():
    """A storage node that rejects other callers and refuses every object with the status in its list."""
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    statuses = []
    entity = AE(ae_title="SINK")
    entity.supported_contexts = AllStoragePresentationContexts
    entity.require_calling_aet = ["MEDXAI"]
    handlers = [(evt.EVT_C_STORE, lambda event: statuses.pop(0))]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    yield server.server_address[1], statuses
    server.shutdown()


def test_an_unknown_caller_is_rejected_with_advice(objects, choosy_node):
    with pytest.raises(DeliveryError, match=r"rejected the association: .*STRANGER") as caught:
        send(objects[:1], dimse(port=choosy_node[0], calling_aet="STRANGER"))
    assert not is_retryable(caught.value)
    assert not is_about_one_object(caught.value)


@pytest.mark.parametrize(("status", "again"), [(0xA700, True), (0xA900, False), (0xC001, False), (0x0122, False)])
def test_a_refusal_names_class_and_status(objects, choosy_node, status, again):
    port, statuses = choosy_node
    statuses.append(status)
    with pytest.raises(DeliveryError, match=rf"refused Parametric Map Storage .* status 0x{status:04X}") as caught:
        send(objects[:1], dimse(port=port))
    assert is_retryable(caught.value) is again


def test_a_warning_counts_as_delivered(objects, choosy_node):
    port, statuses = choosy_node
    statuses.append(0xB000)
    assert send(objects[:1], dimse(port=port)) == [read(objects[0]).SOPInstanceUID]


def test_a_node_without_queries_cannot_tell_what_is_there(choosy_node):
    assert held(dimse(port=choosy_node[0]), "1.2", "1.2.3") is None


def test_a_silent_node_is_not_taken_for_an_empty_one():
    with pytest.raises(DeliveryError, match="did not answer") as caught:
        held(dimse(port=free_port(), connect_seconds=2), "1.2", "1.2.3")
    assert is_retryable(caught.value)


def test_nothing_to_send_needs_no_network():
    assert send([], dimse()) == []


def test_a_file_that_is_not_dicom_is_named(tmp_path):
    path = tmp_path / "case.dcm"
    path.write_text("no")
    with pytest.raises(DeliveryError, match=r"case\.dcm is not a readable DICOM file"):
        send([path], dimse())


@pytest.mark.parametrize("settings", [{"kind": "dimse"}, {"kind": "dicomweb", "url": "ftp://x"}, {"kind": "fax"}])
def test_incomplete_destinations_are_refused(settings):
    with pytest.raises(ValidationError):
        Destination(name="x", **settings)


@pytest.mark.parametrize(("kind", "module"), [("dimse", "pynetdicom"), ("dicomweb", "dicomweb_client")])
def test_a_missing_package_names_the_extra(objects, monkeypatch, kind, module):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    destination = Destination(name="x", kind=kind, host="127.0.0.1", aet="SINK", url="http://127.0.0.1:9/dicom-web")
    with pytest.raises(MedxaiError, match=r"pip install medxai\[network\]"):
        send(objects, destination)
