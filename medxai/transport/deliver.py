"""Emptying the outbox: every object that waits is sent once, whatever happened to the process or the line before."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from medxai.errors import DeliveryError, MedxaiError
from medxai.identity import sha256_file
from medxai.ingest.dicom_file import read_header
from medxai.records.outbox import Outbox, OutboxRow
from medxai.settings import Destination
from medxai.transport.backoff import pause
from medxai.transport.failures import is_about_one_object, is_answer, is_retryable, may_have_arrived
from medxai.transport.send import held, send

logger = logging.getLogger(__name__)

#: Answers in a row that put an object off, after which the node as a whole counts as busy.
_MOST_BUSY = 3


@dataclass(frozen=True)
class Retry:
    """Pauses in seconds: the first, and the longest."""

    first: float = 5.0
    cap: float = 300.0


@dataclass
class Outcome:
    """What one round did.

    Attributes:
        sent: objects that were transferred now.
        found: objects whose former transfer turned out to have arrived.
        failures: ``(row, error)`` of what did not arrive, in order.
        busy: answers in a row by which the node put an object off.
    """

    sent: int = 0
    found: int = 0
    failures: list[tuple[OutboxRow, MedxaiError]] = field(default_factory=list)
    busy: int = 0


def deliver(
    outbox: Outbox,
    destination: Destination,
    root: Path,
    *,
    job_id: int | None = None,
    retry: Retry = Retry(),
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Send what is due to one destination.

    Objects whose former transfer has an unknown end are looked up at the destination first (QIDO-RS, or C-FIND where
    the node answers it); where it cannot be asked they are sent again under the same UID, which replaces and does not
    duplicate. An object that the destination refuses is left for a person, one that it puts off is tried later; the
    others go on, until the third answer in a row that puts off.

    Args:
        outbox: where rows are claimed and their ends recorded.
        destination: where to.
        root: output folder, below which the files lie.
        job_id: only this job, due or not; else everything that is due.
        retry: pauses after failures.
        stop: asked before every object; rows that are left are given back.
    """
    rows = outbox.take(destination.name, job_id=job_id)
    outcome = Outcome()
    silence: MedxaiError | None = None
    try:
        for _, group in groupby(rows, key=lambda row: row.job_id):
            if silence is None:
                silence = _deliver_job(
                    outbox, destination, root, list(group), outcome, retry, stop, whole_outbox=job_id is None
                )
            else:  # one study was enough to see that nobody answers
                _put_back(outbox, destination, list(group), silence, outcome, retry)
    except Exception:  # a full disk, a database that is locked: what was not settled is asked for next time
        outbox.release(rows, time.time() + retry.first)
        raise
    if outcome.sent or outcome.found:
        outbox.hurry(destination.name)
    return outcome


def _deliver_job(
    outbox: Outbox,
    destination: Destination,
    root: Path,
    rows: list[OutboxRow],
    outcome: Outcome,
    retry: Retry,
    stop: Callable[[], bool],
    *,
    whole_outbox: bool,
) -> MedxaiError | None:
    """Send the objects of one job; returns why the destination cannot be reached, or None."""
    left = []
    for row in rows:
        fault = _fault(root, row)
        if fault is None:
            left.append(row)
        elif whole_outbox and row.reason != fault.reason:
            # The study may just be exported anew, which withdraws this row in a moment.
            outbox.postpone(row, fault.reason, time.time() + retry.first, doubtful=row.doubtful, tried=False)
        else:
            outbox.refuse(row, fault.reason)
            outcome.failures.append((row, fault))
    try:
        left = _without_found(outbox, destination, root, left, outcome)
    except MedxaiError as error:
        _put_back(outbox, destination, left, error, outcome, retry)
        return error
    while left and not stop():
        done: list[str] = []
        try:
            _send(outbox, destination, root, left, done, outcome, stop)
        except MedxaiError as error:
            left = left[len(done) :]
            if is_answer(error) and outcome.busy + 1 < _MOST_BUSY:  # one object must not hold up all others for ever
                outcome.busy += 1
                _put_back(outbox, destination, left[:1], error, outcome, retry)
                left = left[1:]
                continue
            if is_retryable(error) or not isinstance(error, DeliveryError):
                _put_back(outbox, destination, left, error, outcome, retry, doubtful_first=may_have_arrived(error))
                return error
            # Who rejects us would reject the rest as well; who refuses an object may take the next one.
            refused = left[:1] if is_about_one_object(error) else left
            for row in refused:
                outbox.refuse(row, error.reason)
                outcome.failures.append((row, error))
            left = left[len(refused) :]
        else:
            left = left[len(done) :]
    for row in left:
        outbox.postpone(row, row.reason, 0.0, doubtful=row.doubtful, tried=False)
    return None


def _send(
    outbox: Outbox,
    destination: Destination,
    root: Path,
    rows: Sequence[OutboxRow],
    done: list[str],
    outcome: Outcome,
    stop: Callable[[], bool],
) -> None:
    """Send rows in order over one association or session; `done` grows with what was accepted."""

    class Stopped(Exception):
        pass

    def delivered(uid: str) -> None:
        row = rows[len(done)]
        outbox.sent(row)
        done.append(uid)
        outcome.sent += 1
        outcome.busy = 0
        if stop() and len(done) < len(rows):
            raise Stopped

    try:
        send([root / row.path for row in rows], destination, delivered)
    except Stopped:
        return


def _fault(root: Path, row: OutboxRow) -> DeliveryError | None:
    """Why a row cannot be sent as it was announced."""
    path = root / row.path
    try:
        same = sha256_file(path) == row.sha256
    except OSError as error:
        msg = f"{path.name} cannot be read ({type(error).__name__}); run the study again"
        return DeliveryError(msg, study=row.study_key)
    if same:
        return None
    return DeliveryError(f"{path.name} was changed after it was exported; run the study again", study=row.study_key)


def _without_found(
    outbox: Outbox, destination: Destination, root: Path, rows: Sequence[OutboxRow], outcome: Outcome
) -> list[OutboxRow]:
    """Record doubtful rows that the destination has, and return the others."""
    known: dict[tuple[str, str], set[str] | None] = {}
    left = []
    for row in rows:
        if row.doubtful:
            header = read_header(root / row.path)
            place = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
            if place not in known:
                known[place] = held(destination, *place)
            if row.sop_instance_uid in (known[place] or ()):
                outbox.sent(row)
                outcome.found += 1
                continue
        left.append(row)
    return left


def _put_back(
    outbox: Outbox,
    destination: Destination,
    rows: Sequence[OutboxRow],
    error: MedxaiError,
    outcome: Outcome,
    retry: Retry,
    *,
    doubtful_first: bool = False,
) -> None:
    moment = time.time()
    for number, row in enumerate(rows):
        wait = pause(row.attempts + 1, retry.first, retry.cap, destination.name, row.study_key)
        doubtful = row.doubtful or (doubtful_first and number == 0)
        outbox.postpone(row, error.reason, moment + wait, doubtful=doubtful)
        outcome.failures.append((row, error))
