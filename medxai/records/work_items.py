"""Unified Procedure Steps that we have claimed: what is needed to finish them after a crash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from medxai.records.tables import WorkItem, now

#: States of a step that we have still to end.
OPEN_STEPS = ("intended", "claimed", "fetched")


@dataclass(frozen=True)
class WorkItemRow:
    """A read-only copy of one claimed step."""

    sop_instance_uid: str
    source: str
    transaction_uid: str
    state: str
    study_key: str
    reason: str
    #: Time of the last change, as a DICOM date and time.
    since: str


class WorkItems:
    """Operations on claimed steps; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def intend(self, uid: str, source: str, transaction_uid: str) -> WorkItemRow:
        """Write down that a step is about to be claimed, and under which transaction; a known one keeps its own."""
        with Session(self._engine) as session, session.begin():
            row = session.scalar(select(WorkItem).where(WorkItem.sop_instance_uid == uid, WorkItem.source == source))
            if row is None:
                row = WorkItem(sop_instance_uid=uid, source=source, transaction_uid=transaction_uid)
                session.add(row)
                session.flush()
            return _row(row)

    def set(self, uid: str, source: str, **values: object) -> None:
        """Change columns of a step."""
        with Session(self._engine) as session, session.begin():
            session.execute(
                update(WorkItem)
                .where(WorkItem.sop_instance_uid == uid, WorkItem.source == source)
                .values(updated_at=now(), **values)
            )

    def rows(self, source: str, states: Sequence[str] = ()) -> list[WorkItemRow]:
        """Steps of a source, oldest first."""
        query = select(WorkItem).where(WorkItem.source == source).order_by(WorkItem.id)
        if states:
            query = query.where(WorkItem.state.in_(states))
        with Session(self._engine) as session:
            return [_row(row) for row in session.scalars(query)]


def _row(row: WorkItem) -> WorkItemRow:
    # SQLite gives UTC without saying so, PostgreSQL the time of its session's zone.
    changed = row.updated_at if row.updated_at.tzinfo is None else row.updated_at.astimezone(UTC)
    return WorkItemRow(
        row.sop_instance_uid,
        row.source,
        row.transaction_uid,
        row.state,
        row.study_key,
        row.reason,
        changed.strftime("%Y%m%d%H%M%S+0000"),
    )
