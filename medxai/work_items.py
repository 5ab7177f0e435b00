"""Unified Procedure Steps worked off by the listener: claimed, fetched, explained, told, ended."""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import Callable

from medxai.errors import MedxaiError
from medxai.ingest.dicom_file import read_header
from medxai.records.work_items import OPEN_STEPS, WorkItemRow, WorkItems
from medxai.session import Session
from medxai.settings import Destination
from medxai.settings_network import WorkItems as Settings
from medxai.transport.failures import is_retryable
from medxai.transport.fetch import fetch_study
from medxai.transport.spool import Spool
from medxai.transport.work_item import (
    HeldByOthersError,
    Input,
    canceled,
    inputs,
    open_node,
    performed,
    progress,
)

logger = logging.getLogger(__name__)

#: Steps held at the same time; others stay for other performers.
_AT_A_TIME = 4


class WorkItemLoop:
    """One look after the other at a node's work items.

    A step is written down with its transaction before it is claimed, so that after a crash it can be told apart whether
    it is ours, and be finished.

    Args:
        session: model, worklist and settings.
        spool: where studies are fetched to.
        settings: which node and steps.
        queued: called when a study was queued.
    """

    def __init__(self, session: Session, spool: Spool, settings: Settings, queued: Callable[[], None]) -> None:
        self._session = session
        self._spool = spool
        self._settings = settings
        self._source = session.settings.node(settings.source)
        self._node = open_node(self._source)
        self._items = WorkItems(session.worklist.engine)
        self._queued = queued

    def turn(self) -> None:
        """Claim what is scheduled, fetch what is claimed, end what is done.

        Nothing is raised: what fails for now is tried in the next turn, what fails for good cancels its step.
        """
        try:
            held = len(self._items.rows(self._source.name, OPEN_STEPS))
            for step in self._node.scheduled(self._settings.label)[: max(0, _AT_A_TIME - held)]:
                self._intend(str(step.SOPInstanceUID))
        except MedxaiError as error:
            logger.warning("work items: %s", error.reason)
        for row in self._items.rows(self._source.name, OPEN_STEPS):
            try:
                self._advance(row)
            except HeldByOthersError:
                self._items.set(row.sop_instance_uid, row.source, state="lost")
            except MedxaiError as error:
                if is_retryable(error):
                    logger.warning("work items: %s", error.reason)
                else:
                    self._cancel(row, error.reason)

    def _intend(self, uid: str) -> None:
        row = self._items.intend(uid, self._source.name, f"2.25.{uuid.UUID(int=secrets.randbits(128), version=4).int}")
        if row.state in ("lost", "completed", "canceled"):  # scheduled again under the same UID
            self._items.set(uid, self._source.name, state="intended")

    def _advance(self, row: WorkItemRow) -> None:
        uid, transaction = row.sop_instance_uid, row.transaction_uid
        if row.state == "intended":
            try:
                self._node.change_state(uid, transaction, "IN PROGRESS")
            except HeldByOthersError:
                # Perhaps by ourselves, before a crash: only the holder of the transaction may change it.
                self._node.update(uid, transaction, progress(0))
            self._items.set(uid, row.source, state="claimed")
            row = self._row(row)
        if row.state == "claimed":
            keys = {self._fetch(item) for item in inputs(self._node.get(uid))}
            self._items.set(uid, row.source, state="fetched", study_key=" ".join(sorted(keys)))
            self._queued()
            self._node.update(uid, transaction, progress(30, "images fetched"))
            return
        if row.state == "fetched":
            self._end(row)

    def _row(self, row: WorkItemRow) -> WorkItemRow:
        rows = self._items.rows(row.source)
        return next(each for each in rows if each.sop_instance_uid == row.sop_instance_uid)

    def _fetch(self, item: Input) -> str:
        key, _ = fetch_study(
            self._holder(item.retrieve_aet),
            item.study_uid,
            self._spool,
            series_uid=item.series_uid,
            move_to=self._session.settings.listen.aet if self._session.settings.listen else None,
        )
        return key

    def _holder(self, aet: str) -> Destination:
        """The configured node of this title, or the one that has the work items."""
        nodes = (*self._session.settings.sources, *self._session.settings.destinations)
        return next((node for node in nodes if aet and aet in (node.aet, node.query_aet)), self._source)

    def _end(self, row: WorkItemRow) -> None:
        """Complete or cancel a step whose studies have been explained and delivered."""
        received = [self._spool.records.get(key) for key in row.study_key.split()]
        if any(each is not None and each.state in ("gathering", "queued", "analysing") for each in received):
            return
        jobs = [self._session.worklist.get(number) for each in received if each is not None for number in each.jobs]
        if any(job.state in ("queued", "running", "exported") for job in jobs):
            return
        done = [job for job in jobs if job.state == "done"]
        if not done:
            reasons = [each.reason for each in received if each is not None and each.reason]
            reasons += [job.reason for job in jobs] or ["there was nothing to explain"]
            self._cancel(row, reasons[0])
            return
        outputs: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for job in done:
            for line in self._session.outbox.rows(("sent",), job.id):
                header = read_header(self._session.settings.output / line.path)
                place = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
                each = (str(header.SOPClassUID), line.sop_instance_uid)
                if each not in outputs.setdefault(place, []):
                    outputs[place].append(each)
        uid, transaction = row.sop_instance_uid, row.transaction_uid
        holder = next(iter(self._session.settings.destinations), self._source)
        self._node.update(uid, transaction, performed(row.since, outputs, holder))
        self._node.change_state(uid, transaction, "COMPLETED")
        self._items.set(uid, row.source, state="completed")
        logger.info("work item completed: %s", ", ".join(job.study_key for job in done))

    def _cancel(self, row: WorkItemRow, reason: str) -> None:
        logger.error("work item cancelled: %s", reason)
        try:
            self._node.update(row.sop_instance_uid, row.transaction_uid, canceled(reason))
            self._node.change_state(row.sop_instance_uid, row.transaction_uid, "CANCELED")
        except HeldByOthersError:
            pass
        except MedxaiError as error:
            if is_retryable(error):
                logger.warning("work items: %s", error.reason)
                return  # the state stays, so that the next turn tries again
            logger.error("work items: %s", error.reason)
        self._items.set(row.sop_instance_uid, row.source, state="canceled", reason=reason)
