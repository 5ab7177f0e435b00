"""Studies that arrive over the network: gathering, queued, analysing, done. Their objects are files in the spool."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from medxai.records.tables import Received, now

#: Reason of a study that is put aside only until all of it is there.
_FETCHING = "it is being fetched, or that was interrupted; fetch it again"


@dataclass(frozen=True)
class ReceivedRow:
    """A read-only copy of one received study."""

    study_key: str
    state: str
    generation: int
    objects: int
    bytes: int
    touched: float
    jobs: tuple[int, ...]
    reason: str


class ReceivedStudies:
    """Operations on received studies; every method is one transaction and may be called by any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def arrived(self, study_key: str, objects: int, size: int) -> None:
        """Something of a study has arrived: it gathers, whatever it did before.

        Args:
            study_key: pseudonym of the study.
            objects: in its folder now.
            size: of its folder now, in bytes.
        """
        for _ in range(2):
            try:
                with Session(self._engine) as session, session.begin():
                    row = session.scalar(select(Received).where(Received.study_key == study_key))
                    if row is None:
                        row = Received(study_key=study_key)
                        session.add(row)
                    elif row.state not in ("gathering", "refused"):
                        row.state, row.generation = "gathering", row.generation + 1
                    row.objects, row.bytes, row.touched = objects, size, time.time()
                return
            except IntegrityError:  # another process was faster
                continue

    def refuse(self, study_key: str, reason: str) -> None:
        """A part of a study was refused for good: what there is of it must not be analysed as if it were all."""
        if self.get(study_key) is None:
            self.arrived(study_key, 0, 0)
        self._update(study_key, ("gathering", "queued", "analysing", "done"), state="refused", reason=reason)
        self._update_held(study_key, reason=reason)

    def complete(self, study_key: str, generation: int, objects: int, size: int) -> bool:
        """Queue a study whose quiet time is over; False when something arrived in between."""
        counts = {"objects": objects, "bytes": size}
        return self._update(study_key, ("gathering",), generation=generation, **counts, state="queued")

    def queue(self, study_key: str, **counts: int) -> bool:
        """Queue a study that was fetched as a whole, or that a person wants analysed again.

        Args:
            study_key: pseudonym of the study.
            counts: ``objects`` and ``bytes``, when they have changed.
        """
        return self._update(study_key, ("gathering", "refused", "done"), state="queued", reason="", **counts)

    def hold(self, study_key: str) -> None:
        """A study is fetched: no quiet time ends its gathering, only `queue`, and after a kill it stays put aside.

        One that arrives by itself at the moment, or is analysed, goes on as it is.
        """
        states: tuple[str, ...] = ("refused", "done")
        if self.get(study_key) is None:
            self.arrived(study_key, 0, 0)
            states = ("refused", "done", "gathering")
        self._update(study_key, states, state="refused", reason=_FETCHING)

    def let_go(self, study_key: str, before: ReceivedRow | None, reason: str) -> None:
        """A fetch failed: what came of it stays put aside with the reason; where nothing came all is as before.

        Args:
            study_key: pseudonym of the study.
            before: its row before `hold`.
            reason: of the failure.
        """
        row = self.get(study_key)
        if row is None or row.reason != _FETCHING:
            return
        if before is None and not row.objects:
            with Session(self._engine) as session, session.begin():
                session.execute(delete(Received).where(Received.study_key == study_key, Received.objects == 0))
        elif before is not None and (row.objects, row.bytes) == (before.objects, before.bytes):
            self._update_held(study_key, state=before.state, reason=before.reason)
        else:
            self._update_held(study_key, reason=f"it was not fetched as a whole: {reason}")

    def begin(self) -> ReceivedRow | None:
        """Take the oldest queued study."""
        query = select(Received).where(Received.state == "queued").order_by(Received.touched, Received.id).limit(1)
        with Session(self._engine) as session:
            row = session.scalar(query)
            if row is None:
                return None
            found = _row(row)
        # What arrived in between has led it back to gathering.
        taken = self._update(found.study_key, ("queued",), generation=found.generation, state="analysing")
        return found if taken else None

    def end(self, study_key: str, generation: int, jobs: Sequence[int]) -> bool:
        """The analysis of this generation ended; False when later objects make it gather again."""
        numbers = " ".join(str(number) for number in jobs)
        return self._update(study_key, ("analysing",), generation=generation, state="done", jobs=numbers)

    def fail(self, study_key: str, generation: int, reason: str) -> None:
        """The analysis of this generation ended unforeseen; a person has to look."""
        self._update(study_key, ("analysing",), generation=generation, state="refused", reason=reason)

    def put_back(self, study_key: str, generation: int) -> None:
        """The analysis of this generation could not be done now; it is queued again."""
        self._update(study_key, ("analysing",), generation=generation, state="queued")

    def recover(self) -> None:
        """After an unclean stop: what was being analysed is queued again, and quiet times start again."""
        with Session(self._engine) as session, session.begin():
            session.execute(update(Received).where(Received.state == "analysing").values(state="queued"))
            session.execute(update(Received).where(Received.state == "gathering").values(touched=time.time()))

    def remove(self, study_key: str, generation: int) -> bool:
        """Forget a study that is done; False when later objects arrived."""
        with Session(self._engine) as session, session.begin():
            gone = session.execute(
                delete(Received).where(
                    Received.study_key == study_key,
                    Received.generation == generation,
                    Received.state == "done",
                )
            )
            return bool(gone.rowcount)  # type: ignore[attr-defined]

    def rows(self, states: Sequence[str] = ()) -> list[ReceivedRow]:
        """All received studies, or those in `states`, oldest first."""
        query = select(Received).order_by(Received.id)
        if states:
            query = query.where(Received.state.in_(states))
        with Session(self._engine) as session:
            return [_row(row) for row in session.scalars(query)]

    def get(self, study_key: str) -> ReceivedRow | None:
        """One received study, or None."""
        with Session(self._engine) as session:
            row = session.scalar(select(Received).where(Received.study_key == study_key))
            return None if row is None else _row(row)

    def _update_held(self, study_key: str, **values: object) -> None:
        held = [Received.study_key == study_key, Received.state == "refused", Received.reason == _FETCHING]
        with Session(self._engine) as session, session.begin():
            session.execute(update(Received).where(*held).values(updated_at=now(), **values))

    def _update(self, study_key: str, states: tuple[str, ...], generation: int | None = None, **values: object) -> bool:
        where = [Received.study_key == study_key, Received.state.in_(states)]
        if generation is not None:
            where.append(Received.generation == generation)
        with Session(self._engine) as session, session.begin():
            done = session.execute(update(Received).where(*where).values(updated_at=now(), **values))
            return bool(done.rowcount)  # type: ignore[attr-defined]


def _row(row: Received) -> ReceivedRow:
    jobs = tuple(int(number) for number in row.jobs.split())
    return ReceivedRow(row.study_key, row.state, row.generation, row.objects, row.bytes, row.touched, jobs, row.reason)
