"""Coarse tasks, a few per study: what passes between them are manifests, never arrays."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.states import Failed
from prefect.tasks import Task, exponential_backoff
from prefect.transactions import get_transaction

from medxai import analysis, delivery, pipeline
from medxai.errors import MedxaiError
from medxai.identity import sha256_json
from medxai.records.worklist import JobIdentity
from medxai.session import ALGORITHM_VERSION, Session, open_session
from medxai.settings import RunSettings, make_settings
from medxai.study import SourceFiles
from medxai.transport.failures import is_retryable

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

_sessions: dict[str, Session] = {}
_opening = threading.Lock()


def session_for(settings: RunSettings) -> Session:
    """One session, hence one network in memory, per process and settings."""
    key = sha256_json(settings.model_dump(mode="json"))
    with _opening:
        if key not in _sessions:
            _sessions[key] = open_session(settings)
        return _sessions[key]


def close_sessions() -> None:
    """Release networks at the end of a batch."""
    with _opening:
        _sessions.clear()


class Work(dict[str, Any]):
    """JSON-serialisable description of one study's job: settings, files and identity."""

    @classmethod
    def of(cls, settings: RunSettings, source: SourceFiles, identity: JobIdentity, job_id: int) -> Work:
        """Describe a registered job."""
        return cls(
            settings=settings.model_dump(mode="json"),
            source={
                "key": source.key,
                "kind": source.kind,
                "files": [str(p) for p in source.files],
                "part": source.part,
            },
            identity=[identity.study_key, identity.input_sha256, identity.model_sha256, identity.config_sha256],
            job_id=job_id,
        )


def _open(work: dict[str, Any]) -> tuple[Session, SourceFiles, JobIdentity]:
    source = work["source"]
    return (
        session_for(make_settings(work["settings"])),
        SourceFiles(source["key"], source["kind"], tuple(Path(p) for p in source["files"]), source["part"]),
        JobIdentity(*work["identity"]),
    )


def cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Stage, algorithm, output folder, study, input bytes, model and configuration.

    The folder is part of it since results are paths: another batch must not find them.
    """
    work = parameters["work"]
    parts = [ALGORITHM_VERSION, work["settings"]["output"], *work["identity"]]
    return f"{context.task.name}-{sha256_json(parts)}"


def failed(error: MedxaiError) -> State[Any]:
    """The end of a task as a state with one line: a traceback in the server's log could quote headers."""
    transaction = get_transaction()
    if transaction is not None:
        transaction.write_on_commit = False  # otherwise the next run would find the failure as a cached result
    return Failed(message=str(error), data=error)


def _is_io(_task: Any, _run: Any, state: Any) -> bool:
    """Only failures of the line are tried again; a refused object stays refused."""
    return is_retryable(state.data) if isinstance(state.data, BaseException) else False


@task(name="ingest", task_run_name="ingest-{work[source][key]}", persist_result=False, cache_policy=NO_CACHE)
def ingest_study(work: dict[str, Any]) -> dict[str, Any] | State[Any]:
    """Decode and check; the pixels wait in this process for the analysis."""
    session, source, _ = _open(work)
    try:
        with pipeline.quarantine_on_error(session, source, work["job_id"], "ingest"):
            summary = pipeline.ingest(session, source)
            session.worklist.stage(work["job_id"], "ingest")
    except MedxaiError as error:
        return failed(error)
    return summary


@task(
    name="analyse",
    task_run_name="analyse-{work[source][key]}",
    cache_key_fn=cache_key,
    persist_result=True,
    result_serializer="json",
)
def analyse_study(work: dict[str, Any], ingested: Any) -> dict[str, Any] | State[Any]:
    """Predict and explain; leaves the analysis on disk and returns its path."""
    session, source, identity = _open(work)
    try:
        with pipeline.quarantine_on_error(session, source, work["job_id"], "analyse"):
            fresh = not analysis.analysis_valid(session.work_path(source.key, identity))
            path = analysis.analyse(session, source, identity)
            session.worklist.stage(work["job_id"], "analyse", analysed=fresh)
    except MedxaiError as error:
        return failed(error)
    return {"path": str(path), "key": source.key, "notes": (ingested or {}).get("notes", [])}


@task(
    name="export",
    task_run_name="export-{work[source][key]}",
    cache_key_fn=cache_key,
    persist_result=True,
    result_serializer="json",
)
def export_study(work: dict[str, Any], analysed: Any) -> dict[str, Any] | State[Any]:
    """Write all outputs of the study, or none; returns folder and decision."""
    session, source, _ = _open(work)
    try:
        with pipeline.quarantine_on_error(session, source, work["job_id"], "export"):
            manifest = pipeline.export(session, source, Path(analysed["path"]))
            delivery.record_export(session, source, work["job_id"], manifest)
    except MedxaiError as error:
        return failed(error)
    return {"folder": str(session.folder(source.key)), "decided": manifest.decided}


@task(
    name="send",
    task_run_name="send-{work[source][key]}",
    persist_result=False,
    cache_policy=NO_CACHE,
    retry_jitter_factor=0.5,
    retry_condition_fn=_is_io,
)
def send_study(work: dict[str, Any], exported: Any) -> dict[str, Any] | State[Any]:
    """Deliver each object once to each destination, then mark the study as done.

    A destination that does not answer is tried again; only the flow puts the study aside, after the last attempt.
    """
    session, source, identity = _open(work)
    manifest = pipeline.read_manifest(Path(exported["folder"]), identity)
    if manifest is None:
        return failed(MedxaiError("the outputs changed between export and delivery; run again", study=source.key))
    try:
        sent = delivery.deliver(session, source, work["job_id"], manifest)
    except MedxaiError as error:
        return failed(error)
    pipeline.complete(session, work["job_id"])
    return {"sent": sent, "decided": manifest.decided}


def patient_send(settings: RunSettings) -> Task[..., Any]:
    """`send_study` with the retries of the settings."""
    return send_study.with_options(
        retries=settings.delivery_retries,
        retry_delay_seconds=exponential_backoff(backoff_factor=settings.delivery_retry_seconds),
    )
