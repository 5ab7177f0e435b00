"""Tables of the worklist, of received studies, work items and the outbox. Keys are pseudonyms, never patient data."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import BigInteger, DateTime, Float, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def now() -> datetime:
    """Current time in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Metadata of all tables."""


class Job(Base):
    """One study to be explained by one model under one configuration.

    State goes ``queued`` -> ``running`` -> ``exported`` -> ``done``; any failure leads to ``quarantined``
    with a reason, from which a later run may try again.
    """

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint("study_key", "input_sha256", "model_sha256", "config_sha256", name="uq_job_identity"),
        Index("ix_job_state", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_key: Mapped[str] = mapped_column(String(32))
    input_sha256: Mapped[str] = mapped_column(String(64))
    model_sha256: Mapped[str] = mapped_column(String(64))
    config_sha256: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default="queued")
    stage: Mapped[str] = mapped_column(String(16), default="")
    attempts: Mapped[int] = mapped_column(default=0)
    analyses: Mapped[int] = mapped_column(default=0)
    reason_code: Mapped[str] = mapped_column(String(32), default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    folder: Mapped[str] = mapped_column(Text, default="")
    owner: Mapped[str] = mapped_column(String(128), default="")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now, onupdate=now)


class Delivery(Base):
    """The outbox: one object for one destination.

    State goes ``waiting`` -> ``sending`` (written before the transfer) -> ``sent``. A transfer whose end is not known
    leads to ``uncertain``: the destination is asked before anything is sent again. ``refused`` waits for a person,
    ``withdrawn`` was replaced by newer results before it was sent.
    """

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("sop_instance_uid", "destination", name="uq_delivery"),
        Index("ix_delivery_due", "destination", "state", "next_try"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64))
    destination: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default="waiting")
    #: Relative to the output folder.
    path: Mapped[str] = mapped_column(Text, default="")
    sha256: Mapped[str] = mapped_column(String(64), default="")
    attempts: Mapped[int] = mapped_column(default=0)
    #: Seconds since 1970.
    next_try: Mapped[float] = mapped_column(Float, default=0.0)
    reason: Mapped[str] = mapped_column(Text, default="")
    owner: Mapped[str] = mapped_column(String(128), default="")
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now, onupdate=now)


class Received(Base):
    """One study that arrived over the network; its objects are the files of its folder in the spool.

    State goes ``gathering`` -> ``queued`` -> ``analysing`` -> ``done``; an object that arrives later leads back to
    ``gathering`` and raises the generation. ``refused``: it is incomplete because of a limit, because it is
    being fetched or that broke off, and not analysed.
    """

    __tablename__ = "received"
    __table_args__ = (UniqueConstraint("study_key", name="uq_received"), Index("ix_received_state", "state"))

    id: Mapped[int] = mapped_column(primary_key=True)
    study_key: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16), default="gathering")
    generation: Mapped[int] = mapped_column(default=1)
    objects: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    #: Last arrival, seconds since 1970.
    touched: Mapped[float] = mapped_column(Float, default=0.0)
    #: Numbers of the jobs that came of it, separated by spaces.
    jobs: Mapped[str] = mapped_column(Text, default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now, onupdate=now)


class WorkItem(Base):
    """A Unified Procedure Step: ``intended`` -> ``claimed`` -> ``fetched`` -> ``completed``, ``canceled`` or ``lost``.

    The transaction UID is the right to change it (PS3.4 CC.1.1): without it a step that was claimed before a crash
    could never be finished.
    """

    __tablename__ = "work_item"
    __table_args__ = (UniqueConstraint("sop_instance_uid", "source", name="uq_work_item"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(String(64))
    transaction_uid: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default="intended")
    #: Pseudonyms of its studies, separated by spaces.
    study_key: Mapped[str] = mapped_column(Text, default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now, onupdate=now)
