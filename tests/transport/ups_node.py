"""A node with work items as PS3.4 annex CC describes it: one table of steps, spoken to by DIMSE or by UPS-RS."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydicom import Dataset
from pynetdicom import AE, evt

from medxai.settings import Destination

PUSH = "1.2.840.10008.5.1.4.34.6.1"
PULL = "1.2.840.10008.5.1.4.34.6.3"
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]


@dataclass
class Steps:
    """Steps and the rules by which they may change; `history` keeps what was done."""

    steps: dict[str, Dataset] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    history: list[tuple[str, str]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.RLock)

    def add(self, uid: str, study_uid: str, label: str = "", aet: str = "") -> None:
        """Schedule a step for a study."""
        step, item = Dataset(), Dataset()
        step.SOPClassUID, step.SOPInstanceUID = PUSH, uid
        step.ProcedureStepState, step.WorklistLabel = "SCHEDULED", label
        step.PatientName, step.PatientID = "Zwoelfender^Quirinus", "PID-ZZ-900817"
        if study_uid:
            item.TypeOfInstances, item.StudyInstanceUID = "DICOM", study_uid
            place = Dataset()
            place.RetrieveAETitle = aet
            item.DICOMRetrievalSequence = [place]
        step.InputInformationSequence = [item] if study_uid else []
        self.steps[uid] = step

    def state(self, uid: str) -> str:
        """State of a step."""
        return str(self.steps[uid].ProcedureStepState)

    def find(self, label: str) -> list[Dataset]:
        """Scheduled steps."""
        with self.lock:
            found = [step for step in self.steps.values() if step.ProcedureStepState == "SCHEDULED"]
            return [step for step in found if not label or step.WorklistLabel == label]

    def change(self, uid: str, transaction: str, state: str) -> int:
        """N-ACTION, Change UPS State (PS3.4 table CC.2.1-2)."""
        with self.lock:
            if uid not in self.steps:
                return 0xC307
            now = self.state(uid)
            if now in ("COMPLETED", "CANCELED"):
                return 0xC300
            if state == "IN PROGRESS":
                if now != "SCHEDULED":
                    return 0xC302
                self.holders[uid] = transaction
            else:
                if now != "IN PROGRESS":
                    return 0xC310
                if self.holders[uid] != transaction:
                    return 0xC301
                if state == "COMPLETED" and not self._complete(uid):
                    return 0xC304
            self.steps[uid].ProcedureStepState = state
            self.history.append((uid, state))
            return 0

    def set(self, uid: str, transaction: str, changes: Dataset) -> int:
        """N-SET."""
        with self.lock:
            if uid not in self.steps:
                return 0xC307
            if self.state(uid) != "IN PROGRESS":
                return 0xC310
            if self.holders[uid] != transaction:
                return 0xC301
            for element in changes:
                if element.keyword != "TransactionUID":
                    self.steps[uid][element.tag] = element
            self.history.append((uid, "set"))
            return 0

    def _complete(self, uid: str) -> bool:
        """What table CC.2.5-3 asks of a step before it is COMPLETED."""
        done = self.steps[uid].get("UnifiedProcedureStepPerformedProcedureSequence", None) or []
        needed = (
            "PerformedStationNameCodeSequence", "PerformedWorkitemCodeSequence",
            "PerformedProcedureStepStartDateTime", "PerformedProcedureStepEndDateTime", "OutputInformationSequence",
        )  # fmt: skip
        return len(done) == 1 and all(name in done[0] for name in needed)


@contextmanager
def dimse_node(steps: Steps, name: str = "ris", port: int = 0) -> Iterator[Destination]:
    """Answer by DIMSE."""

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier
        assert asked.ProcedureStepState == "SCHEDULED"
        for step in steps.find(str(asked.get("WorklistLabel", "") or "")):
            yield 0xFF00, step

    def get(event: Any) -> tuple[int, Dataset | None]:
        step = steps.steps.get(str(event.request.RequestedSOPInstanceUID))
        if step is None:
            return 0xC307, None
        answer = Dataset()
        for tag in event.attribute_identifiers:
            if tag in step:
                answer[tag] = step[tag]
        return 0, answer

    def action(event: Any) -> tuple[int, Dataset | None]:
        assert event.action_type == 1
        asked = event.action_information
        uid = str(event.request.RequestedSOPInstanceUID)
        return steps.change(uid, str(asked.TransactionUID), str(asked.ProcedureStepState)), None

    def change(event: Any) -> tuple[int, Dataset | None]:
        changes = event.modification_list
        return steps.set(str(event.request.RequestedSOPInstanceUID), str(changes.TransactionUID), changes), None

    entity = AE(ae_title="RIS")
    entity.add_supported_context(PULL, SYNTAXES)
    handlers = [(evt.EVT_C_FIND, find), (evt.EVT_N_GET, get), (evt.EVT_N_ACTION, action), (evt.EVT_N_SET, change)]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield Destination(name=name, kind="dimse", host="127.0.0.1", port=server.server_address[1], aet="RIS")
    finally:
        server.shutdown()


@contextmanager
def web_node(steps: Steps, name: str = "ris") -> Iterator[Destination]:
    """Answer by UPS-RS (PS3.18 chapter 11)."""
    http_of = {0: 200, 0xC307: 404, 0xC300: 409, 0xC301: 400, 0xC302: 409, 0xC304: 409, 0xC310: 409}

    class Service(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, code: int, content: Any = None) -> None:
            data = b"" if content is None else json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            uid = parts.path.rpartition("/")[2]
            if uid == "workitems":
                asked = parse_qs(parts.query)
                assert asked["ProcedureStepState"] == ["SCHEDULED"]
                found = steps.find(asked.get("WorklistLabel", [""])[0])
                self.answer(200 if found else 204, [step.to_json_dict() for step in found] if found else None)
            elif uid in steps.steps:
                self.answer(200, [steps.steps[uid].to_json_dict()])
            else:
                self.answer(404)

        def body(self) -> Dataset:
            (item,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            return Dataset.from_json(item)

        def do_PUT(self) -> None:
            *_, uid, last = urlsplit(self.path).path.split("/")
            assert last == "state"
            asked = self.body()
            code = steps.change(uid, str(asked.TransactionUID), str(asked.ProcedureStepState))
            self.answer(409 if code == 0xC301 else http_of[code])

        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            uid = parts.path.rpartition("/")[2]
            transaction = parse_qs(parts.query)["transaction-uid"][0]
            code = steps.set(uid, transaction, self.body())
            self.answer(409 if code == 0xC301 else http_of[code])

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Destination(name=name, kind="dicomweb", url=f"http://127.0.0.1:{server.server_address[1]}/dicom-web")
    finally:
        server.shutdown()
        server.server_close()
