"""Contract: what a real PACS gives back is what was exported, voxel by voxel, at the same places."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pydicom
import pytest

from medxai.export import ExportOptions, export_all
from medxai.identity import derive_uid
from medxai.settings import Destination
from medxai.transport.send import held, send
from tests.export import build
from tests.export.read import float_planes, segment_planes

pytestmark = pytest.mark.pacs

CASES = {
    "ct": lambda: build.ct_case(),
    "enhanced": lambda: build.enhanced_case(),
    "ultrasound": lambda: build.us_case(cine=False),
    "cine": lambda: build.us_case(cine=True),
}


def destination(server, kind):
    if kind == "dimse":
        return Destination(name="orthanc", kind="dimse", host=server.host, port=server.dicom_port, aet=server.aet)
    return Destination(name="orthanc", kind="dicomweb", url=server.web_url)


def fetch(server, ds):
    """Return a whole instance by WADO-RS in the transfer syntax it is stored in."""
    from dicomweb_client import DICOMwebClient

    return DICOMwebClient(server.web_url).retrieve_instance(
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, media_types=(("application/dicom", "*"),)
    )


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize("kind", ["dimse", "dicomweb"])
@pytest.mark.parametrize("name", CASES)
def test_objects_come_back_unchanged(name, kind, labelmap, orthanc_server, tmp_path):
    case = CASES[name]()
    # Different configurations give different UIDs, so that no test finds the objects of another one.
    result = replace(case.result, config_sha256=derive_uid(name, kind, str(labelmap)))
    options = ExportOptions(
        formats=("parametric_map", "segmentation", "secondary_capture", "structured_report"),
        labelmap=labelmap,
        explanations="primary",
    )
    outputs = export_all(result, tmp_path / "run", options)
    paths = [tmp_path / "run" / output.path for output in outputs]
    where = destination(orthanc_server, kind)
    web = destination(orthanc_server, "dicomweb")
    first = pydicom.dcmread(paths[0])
    series = (str(first.StudyInstanceUID), str(first.SeriesInstanceUID))
    assert held(web, *series) == set()
    told = []
    assert send(paths, where, told.append) == told == [str(pydicom.dcmread(p).SOPInstanceUID) for p in paths]
    for asked in (web, where):
        assert str(first.SOPInstanceUID) in held(asked, *series)
    volume, explanation = result.study.volume, result.explanations[0]
    seen = set()
    for path, output in zip(paths, outputs, strict=True):
        sent = pydicom.dcmread(path)
        back = fetch(orthanc_server, sent)
        assert back == sent
        assert back.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        seen.add(output.role)
        if output.role == "parametric_map":
            np.testing.assert_array_equal(float_planes(back, volume), explanation.normalised())
        elif output.role == "segmentation":
            masks = segment_planes(back, volume, 3)
            values = explanation.normalised().reshape(masks.shape[1:])
            np.testing.assert_array_equal(masks[2], values >= 0.75)
            np.testing.assert_array_equal(masks.max(axis=0), values >= 0.25)
        elif output.role == "secondary_capture":
            np.testing.assert_array_equal(back.pixel_array, sent.pixel_array)
    assert seen == {output.role for output in outputs}
    assert len(seen) == (4 if name in ("ct", "enhanced") else 3)


def test_a_second_run_replaces_and_never_duplicates(orthanc_server, tmp_path):
    import json
    import urllib.request

    result = replace(build.ct_case().result, config_sha256="e" * 64)
    options = ExportOptions(formats=("parametric_map",), explanations="primary")
    uids = set()
    for run in ("first", "second"):
        path = tmp_path / run / export_all(result, tmp_path / run, options)[0].path
        uids.update(send([path], destination(orthanc_server, "dimse")))
    assert len(uids) == 1
    query = json.dumps({"Level": "Instance", "Query": {"SOPInstanceUID": uids.pop()}}).encode()
    with urllib.request.urlopen(f"{orthanc_server.rest_url}/tools/find", query, timeout=10) as answer:  # noqa: S310
        assert len(json.load(answer)) == 1


def test_a_web_answer_of_refusal_is_one_line(orthanc_server, tmp_path):
    from medxai.errors import DeliveryError

    options = ExportOptions(formats=("parametric_map",), explanations="primary")
    path = tmp_path / "run" / export_all(build.ct_case().result, tmp_path / "run", options)[0].path
    wrong = Destination(name="wrong", kind="dicomweb", url=f"{orthanc_server.rest_url}/nowhere")
    with pytest.raises(DeliveryError, match="wrong answered HTTP 4") as caught:
        send([path], wrong)
    assert "\n" not in str(caught.value)


def test_storescp_writes_what_was_sent(storescp_server, tmp_path):
    options = ExportOptions(formats=("parametric_map", "segmentation", "secondary_capture"), explanations="primary")
    outputs = export_all(build.ct_case().result, tmp_path / "run", options)
    paths = [tmp_path / "run" / output.path for output in outputs]
    where = Destination(name="sink", kind="dimse", host="127.0.0.1", port=storescp_server.port, aet="SINK")
    assert len(send(paths, where)) == len(paths)
    received = {}
    for path in storescp_server.folder.iterdir():
        ds = pydicom.dcmread(io.BytesIO(path.read_bytes()))
        received[str(ds.SOPInstanceUID)] = ds
    for path in paths:
        sent = pydicom.dcmread(path)
        assert received[str(sent.SOPInstanceUID)] == sent
