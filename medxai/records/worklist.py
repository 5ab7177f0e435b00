"""What is to be done, what is being done, what was done: claims, results and quarantine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from medxai.errors import MedxaiError, WorklistError
from medxai.records.owner import is_alive, this_process
from medxai.records.tables import Job, now


@dataclass(frozen=True)
class JobIdentity:
    """What makes a job the same job: study, input bytes, model and configuration."""

    study_key: str
    input_sha256: str
    model_sha256: str
    config_sha256: str


@dataclass(frozen=True)
class JobRow:
    """A read-only copy of a job."""

    id: int
    study_key: str
    state: str
    stage: str
    attempts: int
    analyses: int
    reason_code: str
    reason: str
    folder: str


class Worklist:
    """Operations on jobs; every method is one transaction and may be called by any thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.owner = this_process()

    def register(self, identity: JobIdentity) -> JobRow:
        """Return the job of `identity`, created as ``queued`` when it is new."""
        with Session(self.engine) as session, session.begin():
            job = session.scalar(_find(identity))
            if job is None:
                try:
                    with session.begin_nested():
                        job = Job(
                            study_key=identity.study_key,
                            input_sha256=identity.input_sha256,
                            model_sha256=identity.model_sha256,
                            config_sha256=identity.config_sha256,
                        )
                        session.add(job)
                except IntegrityError:  # another process was faster
                    job = session.scalar(_find(identity))
            if job is None:
                msg = "the job vanished while it was registered"
                raise WorklistError(msg, study=identity.study_key)
            session.flush()
            return _row(job)

    def claim(self, job_id: int) -> bool:
        """Take a job; False when it is done or a living process holds it.

        A job whose owner died is taken over. Jobs in quarantine are tried again.
        """
        with Session(self.engine) as session, session.begin():
            owner = session.scalar(select(Job.owner).where(Job.id == job_id))
            takeable = [Job.state.in_(("queued", "quarantined")), Job.owner == self.owner]
            if owner is not None and not is_alive(owner):
                takeable.append(Job.owner == owner)
            taken = session.execute(
                update(Job)
                .where(Job.id == job_id, Job.state != "done", or_(*takeable))
                .values(
                    state="running",
                    owner=self.owner,
                    attempts=Job.attempts + 1,
                    updated_at=now(),
                    reason="",
                    reason_code="",
                )
            )
            return bool(taken.rowcount)  # type: ignore[attr-defined]

    def stage(self, job_id: int, stage: str, *, analysed: bool = False) -> None:
        """Record that a stage finished; the end of the export is recorded by `Outbox.exported`."""
        values: dict[str, object] = {"stage": stage, "updated_at": now()}
        if analysed:
            values["analyses"] = Job.analyses + 1
        self._update(job_id, values)

    def finish(self, job_id: int) -> bool:
        """Mark a job as done: delivered wherever it had to be; False when another process has it by now.

        It is exported, or runs here: what was exported before and only had to be delivered is not exported again.
        """
        mine = (Job.state == "running") & (Job.owner == self.owner)
        values = {"state": "done", "stage": "done", "owner": "", "updated_at": now()}
        with Session(self.engine) as session, session.begin():
            done = session.execute(update(Job).where(Job.id == job_id, (Job.state == "exported") | mine).values(values))
            return bool(done.rowcount)  # type: ignore[attr-defined]

    def reopen(self, job_id: int) -> None:
        """Put a finished job back into the queue, for outputs that were deleted or changed since."""
        self._update(job_id, {"state": "queued", "stage": "", "owner": "", "updated_at": now()})

    def quarantine(self, job_id: int, error: MedxaiError) -> None:
        """Put a job aside with the reason."""
        values = {
            "state": "quarantined",
            "reason_code": error.code,
            "reason": error.reason,
            "owner": "",
            "updated_at": now(),
        }
        self._update(job_id, values)

    def get(self, job_id: int) -> JobRow:
        """Return one job.

        Raises:
            WorklistError: there is none with this number.
        """
        with Session(self.engine) as session:
            return _row(_job(session, job_id))

    def jobs(self, states: Sequence[str] = ()) -> list[JobRow]:
        """All jobs, or those in `states`, oldest first."""
        query = select(Job).order_by(Job.id)
        if states:
            query = query.where(Job.state.in_(states))
        with Session(self.engine) as session:
            return [_row(job) for job in session.scalars(query)]

    def identity(self, job_id: int) -> JobIdentity:
        """Return what makes this job the same job.

        Raises:
            WorklistError: there is none with this number.
        """
        with Session(self.engine) as session:
            job = _job(session, job_id)
            return JobIdentity(job.study_key, job.input_sha256, job.model_sha256, job.config_sha256)

    def _update(self, job_id: int, values: dict[str, object]) -> None:
        with Session(self.engine) as session, session.begin():
            session.execute(update(Job).where(Job.id == job_id).values(**values))


def _job(session: Session, job_id: int) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        msg = f"there is no job {job_id}"
        raise WorklistError(msg)
    return job


def _find(identity: JobIdentity):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a SQLAlchemy select
    return select(Job).where(
        Job.study_key == identity.study_key,
        Job.input_sha256 == identity.input_sha256,
        Job.model_sha256 == identity.model_sha256,
        Job.config_sha256 == identity.config_sha256,
    )


def _row(job: Job) -> JobRow:
    return JobRow(
        job.id,
        job.study_key,
        job.state,
        job.stage,
        job.attempts,
        job.analyses,
        job.reason_code,
        job.reason,
        job.folder,
    )
