"""Work items over the web: UPS-RS (PS3.18 chapter 11)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from medxai.errors import DeliveryError
from medxai.settings import Destination
from medxai.transport.web import web_session
from medxai.transport.work_item import HeldByOthersError, State

if TYPE_CHECKING:
    from pydicom import Dataset

_JSON = "application/dicom+json"
#: PS3.18 sections 11.6.3 and 11.7.3: no such step, held by others or ended, deleted.
_NOT_OURS = (404, 409, 410)


class WebWorkItems:
    """Work items of a DICOMweb service."""

    def __init__(self, node: Destination) -> None:
        self._node = node

    def scheduled(self, label: str) -> list[Dataset]:
        """See `WorkItemNode`."""
        from pydicom import Dataset

        asked = {"ProcedureStepState": "SCHEDULED", "includefield": "00404021"}
        if label:
            asked["WorklistLabel"] = label
        answer = self._call("GET", "workitems", params=asked)
        if not answer.content:
            return []
        return [Dataset.from_json(item) for item in self._read(answer)]

    def get(self, uid: str) -> Dataset:
        """See `WorkItemNode`."""
        from pydicom import Dataset

        found = self._read(self._call("GET", f"workitems/{uid}"))
        return Dataset.from_json(found[0] if isinstance(found, list) else found)

    def change_state(self, uid: str, transaction_uid: str, state: State) -> None:
        """See `WorkItemNode`."""
        from pydicom import Dataset

        change = Dataset()
        change.TransactionUID = transaction_uid
        change.ProcedureStepState = state
        self._call("PUT", f"workitems/{uid}/state", data=_body(change))

    def update(self, uid: str, transaction_uid: str, changes: Dataset) -> None:
        """See `WorkItemNode`."""
        self._call("POST", f"workitems/{uid}", params={"transaction-uid": transaction_uid}, data=_body(changes))

    def _call(self, verb: str, path: str, **arguments: Any) -> Any:
        with web_session(self._node) as session:
            headers = {"Accept": _JSON, **({"Content-Type": _JSON} if "data" in arguments else {})}
            answer = session.request(verb, f"{self._node.url.rstrip('/')}/{path}", headers=headers, **arguments)
            if verb != "GET" and answer.status_code in _NOT_OURS:
                msg = f"{self._node.name}: the work item is not ours to change (HTTP {answer.status_code})"
                raise HeldByOthersError(msg)
            answer.raise_for_status()
            return answer

    def _read(self, answer: Any) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise DeliveryError(f"{self._node.name} did not answer with JSON") from None


def _body(dataset: Dataset) -> str:
    return json.dumps([dataset.to_json_dict()])
