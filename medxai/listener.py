"""The service behind `medxai listen`: what arrives is gathered, explained and returned.

One thread analyses, one thread for each destination delivers, the receiver has its own; all they share is the spool
and the database, so that any of them may be killed at any time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from medxai import pipeline
from medxai.errors import DeliveryError, IngestError, MedxaiError, SettingsError
from medxai.ingest.discover import discover
from medxai.records.received import ReceivedRow, ReceivedStudies
from medxai.records.work_items import OPEN_STEPS, WorkItems
from medxai.records.worklist import JobRow
from medxai.session import Session
from medxai.settings import Destination
from medxai.settings_network import Listen
from medxai.transport.deliver import Outcome, Retry, deliver
from medxai.transport.failures import is_retryable
from medxai.transport.receive import Receiver
from medxai.transport.spool import Spool

logger = logging.getLogger(__name__)

#: Longest wait of a loop that has nothing to do, in seconds.
_IDLE = 1.0


def open_spool(session: Session) -> Spool:
    """Return the spool of the settings.

    Raises:
        SettingsError: there is no section ``listen``.
    """
    listen = listen_settings(session)
    root = listen.spool or session.settings.output / ".medxai" / "spool"
    return Spool(
        root,
        ReceivedStudies(session.worklist.engine),
        study_bytes=listen.study_bytes,
        free_bytes=listen.free_bytes,
        note_seconds=min(0.5, listen.quiet_seconds / 2),
    )


def listen_settings(session: Session) -> Listen:
    """Return the section ``listen``.

    Raises:
        SettingsError: there is none.
    """
    if session.settings.listen is None:
        msg = "the settings have no section listen; it names at least who may call (listen.calling)"
        raise SettingsError(msg)
    return session.settings.listen


def analyse_received(session: Session, spool: Spool, row: ReceivedRow, *, deliver_now: bool = False) -> list[JobRow]:
    """Explain all that is in the folder of one received study; results wait in the outbox.

    Args:
        session: of this process.
        spool: where the objects are.
        row: the study, as `ReceivedStudies.begin` gave it.
        deliver_now: send the results before returning.
    """
    workspace = session.settings.output / ".medxai" / "unpacked" / "spool"
    try:
        discovery = discover([spool.folder(row.study_key)], workspace)
    except IngestError:
        logger.info("%s: nothing to explain among %d objects", row.study_key, row.objects)
        spool.records.end(row.study_key, row.generation, ())
        return []
    jobs = [pipeline.reject(session, rejected) for rejected in discovery.rejected]
    jobs += [pipeline.run_study(session, source, deliver_now=deliver_now) for source in discovery.sources]
    spool.records.end(row.study_key, row.generation, [job.id for job in jobs])
    states = ", ".join(f"{job.study_key} {job.state}" for job in jobs)
    logger.info("%s: %d objects analysed: %s", row.study_key, row.objects, states)
    return jobs


def work_off(session: Session, spool: Spool) -> list[JobRow]:
    """Explain and deliver everything that is queued, then return; for `medxai pull` without a listener."""
    jobs = []
    while (row := spool.records.begin()) is not None:
        jobs += analyse_received(session, spool, row, deliver_now=True)
    return jobs


class Listener:
    """Runs until it is stopped.

    Args:
        session: model, worklist and settings.
        spool: where received objects are.
        receive: open a port; without it the listener only works off and delivers.
    """

    def __init__(self, session: Session, spool: Spool, *, receive: bool = True) -> None:
        self._session = session
        self._spool = spool
        self._listen = listen_settings(session)
        self._stop = threading.Event()
        self._complete = threading.Event()
        self._exported = {node.name: threading.Event() for node in session.settings.destinations}
        settings = session.settings
        self._retry = Retry(settings.delivery_retry_seconds, settings.delivery_retry_cap_seconds)
        self._receiver = Receiver(self._listen, spool, session.outbox.is_ours) if receive else None
        self._threads: list[threading.Thread] = []

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._receiver.port if self._receiver is not None else self._listen.port

    def start(self) -> None:
        """Take up what an earlier process left, open the port, start the threads.

        Raises:
            MedxaiError: the port or a certificate cannot be used.
        """
        found = self._spool.recover()
        if found:
            logger.info("%d studies were in the spool", found)
        if self._receiver is not None:
            self._receiver.start()
        loops: list[tuple[str, Callable[[], None]]] = [("gather", self._gather), ("analyse", self._analyse)]
        for node in self._session.settings.destinations:
            loops.append((f"deliver {node.name}", lambda node=node: self._deliver(node)))  # type: ignore[misc]
        if self._listen.work_items is not None:
            loops.append(("work items", self._work_items))
        for name, loop in loops:
            thread = threading.Thread(target=self._guard, args=(name, loop), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, seconds: float = 60.0) -> None:
        """Stop in order: no more objects, the study in hand to its end, the transfer in hand to its end."""
        self._stop.set()
        for event in (self._complete, *self._exported.values()):
            event.set()
        if self._receiver is not None:
            self._receiver.stop()
        limit = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.1, limit - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self._session.outbox.release()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the listener is stopped; True when it was."""
        return self._stop.wait(seconds)

    def request_stop(self) -> None:
        """Make `wait` return; may be called by a signal handler."""
        self._stop.set()

    def _guard(self, name: str, loop: Callable[[], None]) -> None:
        """Run a loop again when something unforeseen ends it: a database that is locked, a disk that is full."""
        while not self._stop.is_set():
            try:
                loop()
            except Exception as error:
                # Texts of other libraries may quote values.
                reason = str(error) if isinstance(error, MedxaiError) else type(error).__name__
                logger.error("%s was interrupted (%s) and goes on in %g s", name, reason, _IDLE)
                self._stop.wait(_IDLE)

    def _gather(self) -> None:
        """Queue studies whose quiet time is over; remove those that were analysed long ago."""
        swept = float("-inf")
        while not self._stop.wait(min(0.25, self._listen.quiet_seconds / 4)):
            for key in self._spool.complete_quiet(self._listen.quiet_seconds):
                logger.info("%s: complete, nothing arrived for %g s", key, self._listen.quiet_seconds)
                self._complete.set()
            if time.monotonic() - swept > min(60.0, max(1.0, self._listen.keep_hours * 360)):
                swept = time.monotonic()
                self._sweep()

    def _sweep(self) -> None:
        items = self._listen.work_items
        # A step that has not ended asks for the jobs of its studies.
        steps = WorkItems(self._session.worklist.engine).rows(items.source, OPEN_STEPS) if items else []
        needed = {key for step in steps for key in step.study_key.split()}
        for row in self._spool.records.rows(("done",)):
            if row.study_key in needed or time.time() - row.touched < self._listen.keep_hours * 3600:
                continue
            self._spool.remove(row.study_key, row.generation)

    def _analyse(self) -> None:
        while not self._stop.is_set():
            row = self._spool.records.begin()
            if row is None:
                self._complete.wait(_IDLE)
                self._complete.clear()
                continue
            try:
                analyse_received(self._session, self._spool, row)
            except (DBAPIError, OSError) as error:  # a locked database, a full disk: no fault of the study
                logger.error("%s: %s; it is queued again", row.study_key, type(error).__name__)
                self._stop.wait(_IDLE)
                self._spool.records.put_back(row.study_key, row.generation)
            except Exception as error:
                reason = error.reason if isinstance(error, MedxaiError) else f"unexpected {type(error).__name__}"
                logger.error("%s: %s", row.study_key, reason)
                self._spool.records.fail(row.study_key, row.generation, reason)
            for event in self._exported.values():
                event.set()
            if not self._exported:
                self._settle()

    def _deliver(self, node: Destination) -> None:
        """Empty the outbox of one destination whenever something is due."""
        session = self._session
        while not self._stop.is_set():
            outcome = deliver(session.outbox, node, session.settings.output, retry=self._retry, stop=self._stop.is_set)
            self._report(node, outcome)
            self._settle()
            if outcome.sent or outcome.found:
                continue
            self._exported[node.name].wait(min(_IDLE, self._retry.first))
            self._exported[node.name].clear()

    def _report(self, node: Destination, outcome: Outcome) -> None:
        if outcome.sent or outcome.found:
            logger.info("%s: %d objects sent, %d were there already", node.name, outcome.sent, outcome.found)
        waiting = [(row, error) for row, error in outcome.failures if _passes(error)]
        if waiting:
            logger.warning("%d objects wait in the outbox: %s", len(waiting), waiting[0][1].reason)
        put_aside: set[int] = set()
        for row, error in outcome.failures:
            if not _passes(error) and row.job_id not in put_aside:
                put_aside.add(row.job_id)
                pipeline.put_aside(self._session, row.job_id, row.study_key, (), "send", error)

    def _settle(self) -> None:
        """Mark studies as done whose results have all arrived."""
        for job_id in self._session.outbox.settled_jobs():
            pipeline.complete(self._session, job_id)

    def _work_items(self) -> None:
        from medxai.work_items import WorkItemLoop

        settings = self._listen.work_items
        if settings is None:
            return
        loop = WorkItemLoop(self._session, self._spool, settings, self._complete.set)
        while True:
            loop.turn()
            if self._stop.wait(settings.poll_seconds):
                return


def _passes(error: MedxaiError) -> bool:
    """True for a failure that another attempt may not meet: the line, or our own settings."""
    return is_retryable(error) or not isinstance(error, DeliveryError)
