"""Work items by DIMSE: the UPS Pull SOP class (PS3.4 section CC.2) as SCU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medxai.errors import DeliveryError
from medxai.settings import Destination
from medxai.transport.associate import association, library
from medxai.transport.failures import RetryableError
from medxai.transport.work_item import HeldByOthersError, State

if TYPE_CHECKING:
    from pydicom import Dataset

#: Every step is an instance of UPS Push; UPS Pull is the class that is negotiated (PS3.4 section CC.3.1).
PUSH = "1.2.840.10008.5.1.4.34.6.1"
PULL = "1.2.840.10008.5.1.4.34.6.3"
_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
#: PS3.4 tables CC.2.1-3 and CC.2.6-3: finished, wrong transaction, already in progress, no such step, not in progress.
_NOT_OURS = (0xC300, 0xC301, 0xC302, 0xC307, 0xC310, 0xC311, 0xB304, 0xB306)
_CHANGE_STATE = 1


class DimseWorkItems:
    """Work items of a DIMSE node; one association for each call."""

    def __init__(self, node: Destination) -> None:
        self._node = node

    def scheduled(self, label: str) -> list[Dataset]:
        """See `WorkItemNode`."""
        from pydicom import Dataset

        library()
        asked = Dataset()
        asked.SOPInstanceUID = ""
        asked.ProcedureStepState = "SCHEDULED"
        asked.WorklistLabel = label
        asked.InputInformationSequence = []
        with self._call() as made:
            found = []
            for status, identifier in made.send_c_find(asked, PULL):
                if self._code(status) in (0xFF00, 0xFF01):
                    if identifier is not None:
                        found.append(identifier)
                else:
                    self._check(status)
            return found

    def get(self, uid: str) -> Dataset:
        """See `WorkItemNode`."""
        with self._call() as made:
            wanted = ["InputInformationSequence", "ProcedureStepState"]
            from pydicom.tag import Tag

            status, found = made.send_n_get([Tag(name) for name in wanted], PUSH, uid, meta_uid=PULL)
            self._check(status)
            if found is None:
                raise DeliveryError(f"{self._node.name} gave no attributes of a work item")
            return found

    def change_state(self, uid: str, transaction_uid: str, state: State) -> None:
        """See `WorkItemNode`."""
        from pydicom import Dataset

        change = Dataset()
        change.TransactionUID = transaction_uid
        change.ProcedureStepState = state
        with self._call() as made:
            status, _ = made.send_n_action(change, _CHANGE_STATE, PUSH, uid, meta_uid=PULL)
            self._check(status)

    def update(self, uid: str, transaction_uid: str, changes: Dataset) -> None:
        """See `WorkItemNode`."""
        changes.TransactionUID = transaction_uid
        with self._call() as made:
            status, _ = made.send_n_set(changes, PUSH, uid, meta_uid=PULL)
            self._check(status)

    def _call(self) -> Any:
        return association(self._node, [(PULL, _SYNTAXES)], query=True)

    def _code(self, status: Dataset) -> int:
        code = status.get("Status")
        if code is None:
            raise RetryableError(f"{self._node.name} gave no answer within {self._node.response_seconds:g} s")
        return int(code)

    def _check(self, status: Dataset) -> None:
        code = self._code(status)
        if code in _NOT_OURS:
            raise HeldByOthersError(f"{self._node.name}: the work item is not ours to change (status 0x{code:04X})")
        if code == 0 or 0xB000 <= code <= 0xBFFF or code in (0x0001, 0x0107, 0x0116):
            return
        kind = RetryableError if code == 0xA700 else DeliveryError
        raise kind(f"{self._node.name} refused a change of a work item with status 0x{code:04X}")
