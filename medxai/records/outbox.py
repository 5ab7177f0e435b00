"""The outbox: what has to arrive where, and what is known of it. Nothing leaves that is not announced here first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine, func, or_, select, true, update
from sqlalchemy.orm import Session

from medxai.records.owner import is_alive, runs_here, this_process
from medxai.records.tables import Delivery, Job, now

#: States in which an object still has to arrive.
OPEN = ("waiting", "sending", "uncertain", "refused")
#: Rows claimed in one round.
_AT_ONCE = 1000


@dataclass(frozen=True)
class Item:
    """An object that has to arrive: its UID, its file relative to the output folder, its hash, and where to."""

    sop_instance_uid: str
    path: str
    sha256: str
    destination: str


@dataclass(frozen=True)
class OutboxRow:
    """A read-only copy of one line of the outbox.

    Attributes:
        doubtful: a former transfer may have arrived: ask before sending.
    """

    id: int
    job_id: int
    study_key: str
    sop_instance_uid: str
    destination: str
    state: str
    path: str
    sha256: str
    attempts: int
    next_try: float
    reason: str
    doubtful: bool = False


@dataclass
class Outbox:
    """Operations on the outbox; every method is one transaction and may be called by any thread."""

    engine: Engine
    owner: str = field(default_factory=this_process)

    def exported(self, job_id: int, folder: str, items: Sequence[Item]) -> None:
        """Mark a job as exported and announce its objects, both or neither.

        Objects of the same files that belong to an earlier job and were not sent are withdrawn: their files have been
        replaced.
        """
        with Session(self.engine) as session, session.begin():
            session.execute(
                update(Job)
                .where(Job.id == job_id)
                .values(stage="export", folder=folder, state="exported", updated_at=now())
            )
            self._announce(session, job_id, items)

    def announce(self, job_id: int, items: Sequence[Item]) -> None:
        """Add what is not announced yet, for example for a destination that is new in the settings."""
        with Session(self.engine) as session, session.begin():
            self._announce(session, job_id, items)

    def _announce(self, session: Session, job_id: int, items: Sequence[Item]) -> None:
        known = {
            (row.sop_instance_uid, row.destination): row
            for row in session.scalars(
                select(Delivery).where(Delivery.sop_instance_uid.in_({item.sop_instance_uid for item in items}))
            )
        }
        for item in items:
            row = known.get((item.sop_instance_uid, item.destination))
            if row is None:
                session.add(
                    Delivery(
                        job_id=job_id,
                        sop_instance_uid=item.sop_instance_uid,
                        destination=item.destination,
                        path=item.path,
                        sha256=item.sha256,
                    )
                )
                continue
            row.job_id, row.path, row.sha256 = job_id, item.path, item.sha256
            if row.state in ("refused", "withdrawn"):  # whoever announces it again wants it sent
                row.state, row.reason, row.next_try = "uncertain", "", 0.0
        # Another content of the same study writes to the same folder: what it replaced cannot be sent any more.
        study = select(Job.study_key).where(Job.id == job_id).scalar_subquery()
        older = select(Job.id).where(Job.study_key == study, Job.id != job_id)
        session.execute(
            update(Delivery)
            .where(Delivery.job_id.in_(older), Delivery.state.in_(("waiting", "uncertain", "refused")))
            .values(state="withdrawn", reason="newer results of this study replaced it", owner="", updated_at=now())
            .execution_options(synchronize_session=False)
        )

    def take(self, destination: str, *, job_id: int | None = None, moment: float | None = None) -> list[OutboxRow]:
        """Claim what has to go to a destination now: no other process gets the same rows.

        Rows of processes that died in the middle of a transfer are taken over as doubtful.

        Args:
            destination: its name.
            job_id: only this job, whenever it is due.
            moment: what is due at this time (seconds since 1970); now by default.
        """
        with Session(self.engine) as session, session.begin():
            holders = session.scalars(
                select(Delivery.owner)
                .where(Delivery.destination == destination, Delivery.state == "sending")
                .distinct()
            )
            dead = [owner for owner in holders if owner != self.owner and not is_alive(owner)]
            free = Delivery.state.in_(("waiting", "uncertain"))
            if job_id is None:
                due = (free & (Delivery.next_try <= (time.time() if moment is None else moment))) | (
                    (Delivery.state == "sending") & Delivery.owner.in_(dead)
                )
                where = [Delivery.destination == destination, due]
            else:
                left = (Delivery.state == "sending") & Delivery.owner.in_(dead)
                where = [Delivery.destination == destination, Delivery.job_id == job_id, or_(free, left)]
            rows = []
            query = select(Delivery, Job.study_key).join(Job, Job.id == Delivery.job_id).where(*where)
            # A job is claimed whole: its caller takes it for delivered when nothing failed.
            most = _AT_ONCE if job_id is None else None
            for row, key in session.execute(query.order_by(Delivery.job_id, Delivery.id).limit(most)).all():
                taken = session.execute(
                    update(Delivery)
                    .where(Delivery.id == row.id, Delivery.state == row.state, Delivery.owner == row.owner)
                    .values(state="sending", owner=self.owner, updated_at=now())
                    .execution_options(synchronize_session=False)
                )
                if taken.rowcount:  # type: ignore[attr-defined]
                    rows.append(_row(row, key, doubtful=row.state != "waiting"))
            return rows

    def sent(self, row: OutboxRow) -> None:
        """The destination has the object."""
        with Session(self.engine) as session, session.begin():
            self._set(session, [row.id], state="sent", reason="", owner="", attempts=row.attempts + 1)

    def hurry(self, destination: str) -> None:
        """A destination answers again: what waits for it is due now."""
        with Session(self.engine) as session, session.begin():
            session.execute(
                update(Delivery)
                .where(
                    Delivery.destination == destination,
                    Delivery.state.in_(("waiting", "uncertain")),
                    Delivery.next_try > 0,
                )
                .values(next_try=0.0)
                .execution_options(synchronize_session=False)
            )

    def postpone(self, row: OutboxRow, reason: str, next_try: float, *, doubtful: bool, tried: bool = True) -> None:
        """Put a row back, to be tried at `next_try`; `doubtful` when it may have arrived."""
        with Session(self.engine) as session, session.begin():
            self._set(
                session,
                [row.id],
                state="uncertain" if doubtful else "waiting",
                reason=reason,
                next_try=next_try,
                owner="",
                attempts=row.attempts + int(tried),
            )

    def refuse(self, row: OutboxRow, reason: str) -> None:
        """The destination will not take the object, whenever it is sent."""
        with Session(self.engine) as session, session.begin():
            self._set(session, [row.id], state="refused", reason=reason, owner="", attempts=row.attempts + 1)

    def release(self, rows: Sequence[OutboxRow] | None = None, next_try: float = 0.0) -> None:
        """Give back what this process has claimed and not settled; the end of its transfers is not known.

        Args:
            rows: only these; all by default, at an orderly end.
            next_try: when they are due, in seconds since 1970.
        """
        mine = [Delivery.state == "sending", Delivery.owner == self.owner]
        if rows is not None:
            mine.append(Delivery.id.in_([row.id for row in rows]))
        with Session(self.engine) as session, session.begin():
            session.execute(
                update(Delivery)
                .where(*mine)
                .values(state="uncertain", owner="", next_try=next_try, updated_at=now())
                .execution_options(synchronize_session=False)
            )

    def retry(self, destination: str | None = None) -> int:
        """Make everything that waits or was refused due now; jobs that were put aside for it are exported again.

        So is what another machine has claimed, since nobody here can tell whether it will ever come back; should it
        be sending all the same, the destination gets the object twice under one UID.
        """
        there = true() if destination is None else Delivery.destination == destination
        where = [Delivery.state.in_(("waiting", "uncertain", "refused")), there]
        with Session(self.engine) as session, session.begin():
            holders = session.scalars(select(Delivery.owner).where(there, Delivery.state == "sending").distinct()).all()
            lost = [owner for owner in holders if not runs_here(owner)]
            session.execute(
                update(Delivery)
                .where(there, Delivery.state == "sending", Delivery.owner.in_(lost))
                .values(state="uncertain", owner="")
                .execution_options(synchronize_session=False)
            )
            jobs = set(session.scalars(select(Delivery.job_id).where(*where)))
            # A refused object may be there all the same, for example under another status: it is asked for.
            session.execute(
                update(Delivery)
                .where(*where, Delivery.state == "refused")
                .values(state="uncertain", reason="")
                .execution_options(synchronize_session=False)
            )
            where[0] = Delivery.state.in_(("waiting", "uncertain"))
            count = session.execute(
                update(Delivery)
                .where(*where)
                .values(next_try=0.0, updated_at=now())
                .execution_options(synchronize_session=False)
            ).rowcount  # type: ignore[attr-defined]
            session.execute(
                update(Job)
                .where(Job.id.in_(jobs), Job.state == "quarantined", Job.reason_code == "delivery")
                .values(state="exported", reason="", reason_code="", updated_at=now())
                .execution_options(synchronize_session=False)
            )
            return int(count)

    def withdraw(self, destination: str) -> int:
        """Give up what has to go to a destination, for example one that is no longer in the settings.

        What is being sent at the moment goes on. Jobs that wait for nothing else are done with the next run.
        """
        with Session(self.engine) as session, session.begin():
            count = session.execute(
                update(Delivery)
                .where(Delivery.destination == destination, Delivery.state.in_(("waiting", "uncertain", "refused")))
                .values(state="withdrawn", reason="withdrawn by hand", owner="", updated_at=now())
                .execution_options(synchronize_session=False)
            ).rowcount  # type: ignore[attr-defined]
            return int(count)

    def rows(self, states: Sequence[str] = (), job_id: int | None = None) -> list[OutboxRow]:
        """Lines of the outbox, oldest first."""
        query = select(Delivery, Job.study_key).join(Job, Job.id == Delivery.job_id).order_by(Delivery.id)
        if states:
            query = query.where(Delivery.state.in_(states))
        if job_id is not None:
            query = query.where(Delivery.job_id == job_id)
        with Session(self.engine) as session:
            return [_row(row, key) for row, key in session.execute(query).all()]

    def is_ours(self, sop_instance_uid: str) -> bool:
        """True for an object that we made: one that an archive routes back to us must not be analysed."""
        with Session(self.engine) as session:
            return (
                session.scalar(select(Delivery.id).where(Delivery.sop_instance_uid == sop_instance_uid).limit(1))
                is not None
            )

    def settled_jobs(self) -> list[int]:
        """Exported jobs of which nothing is left to deliver."""
        left = select(Delivery.job_id).where(Delivery.state.in_(OPEN))
        with Session(self.engine) as session:
            return list(
                session.scalars(select(Job.id).where(Job.state == "exported", Job.id.not_in(left)).order_by(Job.id))
            )

    def next_due(self) -> float | None:
        """When the next row that waits is due, in seconds since 1970; None when nothing waits."""
        with Session(self.engine) as session:
            return session.scalar(
                select(func.min(Delivery.next_try)).where(Delivery.state.in_(("waiting", "uncertain")))
            )

    def _set(self, session: Session, ids: Sequence[int], **values: object) -> None:
        session.execute(update(Delivery).where(Delivery.id.in_(ids)).values(updated_at=now(), **values))


def _row(row: Delivery, key: str, *, doubtful: bool = False) -> OutboxRow:
    return OutboxRow(
        row.id,
        row.job_id,
        key,
        row.sop_instance_uid,
        row.destination,
        row.state,
        row.path,
        row.sha256,
        row.attempts,
        row.next_try,
        row.reason,
        doubtful,
    )
