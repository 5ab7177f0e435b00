"""Coarse tasks, a few per study: what passes between them are manifests, never arrays."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.tasks import exponential_backoff

from medxai import pipeline
from medxai.errors import MedxaiError
from medxai.export.send import is_retryable
from medxai.identity import sha256_json
from medxai.records.worklist import JobIdentity
from medxai.settings import RunSettings, make_settings
from medxai.study import SourceFiles

_sessions: dict[str, pipeline.Session] = {}
_opening = threading.Lock()


def session_for(settings: RunSettings) -> pipeline.Session:
    """One session, hence one network in memory, per process and settings."""
    key = sha256_json(settings.model_dump(mode="json"))
    with _opening:
        if key not in _sessions:
            _sessions[key] = pipeline.open_session(settings)
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
            source={"key": source.key, "kind": source.kind, "files": [str(p) for p in source.files]},
            identity=[identity.study_key, identity.input_sha256, identity.model_sha256, identity.config_sha256],
            job_id=job_id,
        )


def _open(work: dict[str, Any]) -> tuple[pipeline.Session, SourceFiles, JobIdentity]:
    source = work["source"]
    return (
        session_for(make_settings(work["settings"])),
        SourceFiles(source["key"], source["kind"], tuple(Path(p) for p in source["files"]), source["key"]),
        JobIdentity(*work["identity"]),
    )


def cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Stage, algorithm, study, input bytes, model and configuration: what a stage's result depends on."""
    return f"{context.task.name}-{sha256_json([pipeline.ALGORITHM_VERSION, *parameters['work']['identity']])}"


def _is_io(_task: Any, _run: Any, state: Any) -> bool:
    """Only failures of the line are tried again; a refused object stays refused."""
    try:
        state.result()
    except Exception as error:
        return is_retryable(error)
    return False


@task(name="ingest", task_run_name="ingest-{work[source][key]}", persist_result=False, cache_policy=NO_CACHE)
def ingest_study(work: dict[str, Any]) -> dict[str, Any]:
    """Decode and check; the pixels wait in this process for the analysis."""
    session, source, _ = _open(work)
    with pipeline.quarantine_on_error(session, source, work["job_id"], "ingest"):
        summary = pipeline.ingest(session, source)
        session.worklist.stage(work["job_id"], "ingest")
    return summary


@task(
    name="analyse",
    task_run_name="analyse-{work[source][key]}",
    cache_key_fn=cache_key,
    persist_result=True,
    result_serializer="json",
)
def analyse_study(work: dict[str, Any], ingested: dict[str, Any] | None) -> dict[str, Any]:
    """Predict and explain; leaves the analysis on disk and returns its path and hash."""
    session, source, identity = _open(work)
    with pipeline.quarantine_on_error(session, source, work["job_id"], "analyse"):
        fresh = not pipeline.analysis_valid(session.work_path(source.key, identity))
        path = pipeline.analyse(session, source, identity)
        session.worklist.stage(work["job_id"], "analyse", analysed=fresh)
    return {"path": str(path), "key": source.key, "notes": (ingested or {}).get("notes", [])}


@task(
    name="export",
    task_run_name="export-{work[source][key]}",
    cache_key_fn=cache_key,
    persist_result=True,
    result_serializer="json",
)
def export_study(work: dict[str, Any], analysed: dict[str, Any]) -> dict[str, Any]:
    """Write all outputs of the study, or none; returns folder and decision."""
    session, source, _ = _open(work)
    with pipeline.quarantine_on_error(session, source, work["job_id"], "export"):
        manifest = pipeline.export(session, source, Path(analysed["path"]))
        session.worklist.stage(work["job_id"], "export", folder=str(session.folder(source.key)))
    return {"folder": str(session.folder(source.key)), "decided": manifest.decided}


@task(
    name="send",
    task_run_name="send-{work[source][key]}",
    persist_result=False,
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_jitter_factor=0.5,
    retry_condition_fn=_is_io,
)
def send_study(work: dict[str, Any], exported: dict[str, Any]) -> dict[str, Any]:
    """Deliver each object once to each destination, then mark the study as done."""
    session, source, identity = _open(work)
    manifest = pipeline.read_manifest(Path(exported["folder"]))
    if manifest is None:
        msg = "the outputs changed between export and delivery; run again"
        raise MedxaiError(msg, study=source.key)
    sent = pipeline.deliver(session, source, work["job_id"], manifest)
    pipeline.complete(session, source, work["job_id"], session.work_path(source.key, identity))
    return {"sent": sent, "decided": manifest.decided}
