"""The nightly batch: every study below the inputs explained, exported and delivered, each on its own."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console import answered
from flows.environment import configure
from medxai.errors import MedxaiError
from medxai.settings import RunSettings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.schemas.objects import State
    from prefect.futures import PrefectFuture

    from medxai.ingest.discover import Discovery
    from medxai.records.worklist import JobRow
    from medxai.session import Session
    from medxai.study import SourceFiles

    Report = Callable[[str, int, int], None]


def explain_batch(settings: RunSettings, report: Report | None = None) -> list[JobRow]:
    """Run one batch as one Prefect flow run and return the worklist rows of its studies.

    Studies are independent: a failure quarantines that study and the batch goes on. A batch that was
    killed is resumed by running it again: finished studies are skipped, stored analyses are reused, and
    objects that arrived are not sent again.

    Raises:
        MedxaiError: settings, bundle or database are unusable, nothing was found, or more than
            ``fail_above`` of the studies ended in quarantine.
    """
    configure(settings.output / ".medxai" / "prefect")
    from flows.tasks import close_sessions, session_for
    from medxai.pipeline import studies

    try:
        # Before the flow starts: what fails here may name paths, which do not belong on Prefect's page.
        session = session_for(settings)
        with studies(session) as discovery:
            return _run(session, discovery, report)
    finally:
        close_sessions()


def _run(session: Session, discovery: Discovery, report: Report | None) -> list[JobRow]:
    from prefect import flow
    from prefect.states import Failed
    from prefect.task_runners import ThreadPoolTaskRunner

    settings = session.settings
    rows: list[JobRow] = []

    @flow(
        name="explain-batch",
        flow_run_name=f"explain-{session.bundle.name}-{session.config_sha256[:8]}",
        task_runner=ThreadPoolTaskRunner(max_workers=settings.workers),  # type: ignore[arg-type]
        validate_parameters=False,
        persist_result=False,
    )
    def batch() -> State[Any] | None:
        rows.extend(_batch(session, discovery, report))
        _publish(rows)
        bad = sum(row.state != "done" for row in rows)
        if not rows or bad / len(rows) <= settings.fail_above:
            return None
        msg = f"{bad} of {len(rows)} studies are not done, more than fail_above={settings.fail_above:g} allows"
        return Failed(message=msg, data=MedxaiError(msg))

    batch()
    return rows


def _batch(session: Session, discovery: Discovery, report: Report | None) -> list[JobRow]:
    from flows.tasks import Work, analyse_study, export_study, ingest_study, patient_send
    from medxai import analysis, pipeline

    settings = session.settings
    send_study = patient_send(settings)
    ids = [pipeline.reject(session, rejected).id for rejected in discovery.rejected]
    total = len(discovery.sources)
    pending: deque[tuple[int, SourceFiles, dict[str, PrefectFuture[Any]]]] = deque()
    finished = 0

    def advance() -> None:
        nonlocal finished
        finished += 1
        if report:
            report("studies", finished, total)

    def settle() -> None:
        _settle(session, *pending.popleft())
        advance()

    for source in discovery.sources:
        identity, job = pipeline.register(session, source)
        ids.append(job.id)
        unexported = pipeline.read_manifest(session.folder(source.key), identity) is None
        if job.state == "done" and unexported:  # outputs were deleted or changed
            session.worklist.reopen(job.id)
        if not session.worklist.claim(job.id):  # done, or in the hands of another process
            advance()
            continue
        work = Work.of(settings, source, identity, job.id)
        # A cached manifest whose file is gone or changed must not count as a result.
        stale = not analysis.analysis_valid(session.work_path(source.key, identity))
        ingested = ingest_study.submit(work)
        analysed = analyse_study.with_options(refresh_cache=stale).submit(work, ingested)
        exported = export_study.with_options(refresh_cache=stale or unexported).submit(work, analysed)
        sent = send_study.submit(work, exported)
        pending.append((job.id, source, {"ingest": ingested, "analyse": analysed, "export": exported, "send": sent}))
        while len(pending) >= 2 * settings.workers:
            settle()
    while pending:
        settle()
    return [session.worklist.get(job_id) for job_id in ids]


def _settle(session: Session, job_id: int, source: SourceFiles, futures: dict[str, PrefectFuture[Any]]) -> None:
    """Wait for a study's tasks; what no stage has put aside itself, as a failed delivery, is put aside here."""
    from medxai import pipeline

    for future in futures.values():
        future.wait()
    if session.worklist.get(job_id).state in {"done", "quarantined"}:
        return
    stage, error = "send", MedxaiError("the tasks of this study ended without a result", study=source.key)
    for name, future in futures.items():
        if not future.state.is_completed():
            outcome = future.state.result(raise_on_failure=False)
            stage, error = name, MedxaiError(f"task {name} ended as {future.state.name} ({type(outcome).__name__})")
            if isinstance(outcome, MedxaiError):
                error = outcome
            break
    pipeline.put_aside(session, job_id, source.key, source.files, stage, error)


def _publish(rows: list[JobRow]) -> None:
    """Artifacts for the Prefect page: pseudonyms, states and reasons only."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    table = [
        {"study": row.study_key, "state": row.state, "stage": row.stage, "attempts": row.attempts, "reason": row.reason}
        for row in rows
    ]
    create_table_artifact(table=table, key="medxai-studies", description="Studies of this batch")
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    lines = [f"- {state}: {count}" for state, count in sorted(counts.items())]
    reasons = [f"- `{row.study_key}`: {row.reason}" for row in rows if row.state == "quarantined"]
    text = "\n".join(["# Batch", *lines, *(["", "## In quarantine", *reasons] if reasons else [])])
    create_markdown_artifact(markdown=text, key="medxai-batch", description="Summary of this batch")


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.explain_batch CONFIG``; exit code 2 when a study is in quarantine."""
    parser = argparse.ArgumentParser(prog="python -m flows.explain_batch", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file of settings (see configs/ and docs/settings.json)")
    parser.add_argument("--output", type=Path, help="override the output folder")
    options = parser.parse_args(arguments)

    def work() -> int:
        settings = load_settings(options.config, {"output": options.output} if options.output else None)
        from medxai.cli import log_to_stderr
        from medxai.cli_progress import progress
        from medxai.cli_rows import print_rows

        log_to_stderr()
        with progress() as step:
            rows = explain_batch(settings, step)
        print_rows(rows, settings.output)
        return 2 if any(row.state != "done" for row in rows) else 0

    return answered(work)


if __name__ == "__main__":
    sys.exit(main())
