"""One study through all stages, as plain functions; the command line and the flows call the same ones."""

from __future__ import annotations

import json
import logging
import os
import shutil
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai import __version__
from medxai.analysis import Progress, analyse, analysis_valid, study_of
from medxai.delivery import deliver, record_export
from medxai.errors import MedxaiError
from medxai.files import sweep, write_text
from medxai.identity import sha256_file, sha256_files
from medxai.ingest.discover import Discovery, Rejected, discover
from medxai.records.outbox import OPEN
from medxai.records.worklist import JobIdentity, JobRow
from medxai.session import Session
from medxai.settings import RunSettings
from medxai.study import Manifest, OutputFile, Result, SourceFiles, Study

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)


def find_studies(settings: RunSettings) -> Discovery:
    """Discover all inputs; archives are unpacked below the output folder.

    Raises:
        IngestError: nothing there.
    """
    return discover(settings.inputs, _unpacked(settings) / str(os.getpid()))


@contextmanager
def studies(session: Session) -> Iterator[Discovery]:
    """Yield what `find_studies` finds; unpacked archives are removed at the end, those of killed runs as well.

    Raises:
        IngestError: nothing there.
    """
    try:
        discovery = find_studies(session.settings)
        session.archives = discovery.archives
        yield discovery
    finally:
        root = _unpacked(session.settings)
        for folder in root.iterdir() if root.is_dir() else ():
            if folder.name == str(os.getpid()) or not _runs(folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def _unpacked(settings: RunSettings) -> Path:
    return settings.output / ".medxai" / "unpacked"


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def register(session: Session, source: SourceFiles) -> tuple[JobIdentity, JobRow]:
    """Enter a source into the worklist."""
    identity = JobIdentity(source.key, sha256_files(source.files), session.bundle.sha256, session.config_sha256)
    return identity, session.worklist.register(identity)


def ingest(session: Session, source: SourceFiles) -> dict[str, Any]:
    """Decode and check a study; the pixels stay in the session for the next stage of the same process.

    Raises:
        MedxaiError: unreadable, irregular, or not what the bundle was made for.
    """
    study = study_of(session, source)
    session.decoded[source.key] = study
    return {
        "key": study.key,
        "input_sha256": study.input_sha256,
        "shape": list(study.volume.shape),
        "modality": study.volume.modality,
        "notes": list(study.notes),
    }


def export(session: Session, source: SourceFiles, analysis: Path) -> Manifest:
    """Write all outputs of a study, or none, and their manifest.

    Raises:
        MedxaiError: an output cannot be written.
    """
    from medxai.explain.slices import describe_slices
    from medxai.explain.store import load_analysis
    from medxai.export.provenance import grid_text
    from medxai.export.registry import export_all
    from medxai.trust.gate.verdict import describe

    study = session.decoded.pop(source.key, None) or study_of(session, source)
    prediction, explanations, trust = load_analysis(analysis, study, session.bundle)
    intensity = session.bundle.spec.preparation.intensity
    window = (intensity.low, intensity.high) if intensity.kind == "window" else None
    result = Result(study, prediction, explanations, session.config_sha256, created(study), window, trust)
    folder = session.folder(source.key)
    sweep(folder.parent, f".{source.key}.*")
    outputs = export_all(result, folder, session.settings.export)
    manifest = Manifest(
        key=study.key,
        input_sha256=study.input_sha256,
        model=prediction.model,
        model_sha256=prediction.model_sha256,
        config_sha256=session.config_sha256,
        software=f"medxai {__version__}",
        prediction={name: float(p) for name, p in zip(prediction.labels, prediction.probabilities, strict=True)},
        decided=prediction.label,
        explanations=tuple(
            {
                "method": item.method,
                "layer": item.layer,
                "class": item.class_label,
                "score": item.score,
                "cell_mm": list(item.cell_mm),
                "grid": grid_text(result, item),
                "slices": describe_slices(study.volume, item),
                "parameters": dict(item.parameters),
                "flags": sorted(item.flags),
                "reason": item.reason,
                "maximum": float(item.map.max(initial=0.0)),
                "trust": describe(result.trust_of(item)),
            }
            for item in explanations
        ),
        outputs=outputs,
        notes=study.notes,
    )
    write_text(folder / "manifest.json", json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")
    return manifest


def read_manifest(folder: Path, identity: JobIdentity | None = None) -> Manifest | None:
    """The manifest of a study's outputs when all files are there unchanged, else None.

    Args:
        folder: of the study.
        identity: the job whose outputs they must be; another configuration or model writes to the same folder.
    """
    path = folder / "manifest.json"
    try:
        data = json.loads(path.read_text())
        outputs = tuple(OutputFile(**item) for item in data.pop("outputs"))
        manifest = Manifest(
            **(
                data
                | {
                    "explanations": tuple(data["explanations"]),
                    "outputs": outputs,
                    "notes": tuple(data.get("notes", ())),
                }
            )
        )
        good = all(sha256_file(folder / item.path) == item.sha256 for item in outputs)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if identity is not None:
        made = JobIdentity(manifest.key, manifest.input_sha256, manifest.model_sha256, manifest.config_sha256)
        good = good and made == identity
    return manifest if good else None


def created(study: Study) -> str:
    """ISO time of the acquisition: outputs are a function of their inputs alone."""
    return acquired(study.volume.source)


def acquired(headers: Sequence[Dataset]) -> str:
    """ISO time of the acquisition that the first of some headers states; a fixed one when there is none."""
    for header in headers[:1]:
        for date, time in (("ContentDate", "ContentTime"), ("SeriesDate", "SeriesTime"), ("StudyDate", "StudyTime")):
            day, clock = str(header.get(date, "") or ""), str(header.get(time, "") or "")
            if len(day) == 8 and day.isdigit():
                digits = (clock.split(".")[0] + "000000")[:6]
                digits = digits if digits.isdigit() else "000000"
                return f"{day[:4]}-{day[4:6]}-{day[6:]}T{digits[:2]}:{digits[2:4]}:{digits[4:]}"
    return "1970-01-01T00:00:00"


@contextmanager
def quarantine_on_error(session: Session, source: SourceFiles, job_id: int, stage: str) -> Iterator[None]:
    """Turn any failure of a stage into a quarantine entry and re-raise it as a MedxaiError."""
    try:
        yield
    except MedxaiError as error:
        put_aside(session, job_id, source.key, source.files, stage, error)
        raise
    except Exception as error:
        # Unknown failures may quote data in their text: only the kind and the place are kept.
        places = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        logger.debug("%s: %s at %s", source.key, type(error).__name__, " > ".join(places))
        where = places[-1] if places else "unknown"
        wrapped = MedxaiError(f"unexpected {type(error).__name__} in {where} during {stage}", study=source.key)
        put_aside(session, job_id, source.key, source.files, stage, wrapped)
        raise wrapped from None


def put_aside(session: Session, job_id: int, key: str, files: tuple[Path, ...], stage: str, error: MedxaiError) -> None:
    """Record a failure in the worklist, in the log and in ``<output>/quarantine/<key>.json``.

    The record lists the source paths, which may say who the patient is; nothing else does.
    """
    session.decoded.pop(key, None)
    session.worklist.quarantine(job_id, error)
    record = {
        "key": key,
        "stage": stage,
        "code": error.code,
        "reason": error.reason,
        "files": [session.origin(path) for path in files],
        "software": f"medxai {__version__}",
    }
    write_text(session.settings.output / "quarantine" / f"{key}.json", json.dumps(record, indent=1) + "\n")
    logger.error("%s", error.about(key))


def reject(session: Session, rejected: Rejected) -> JobRow:
    """Enter an unreadable input into worklist and quarantine."""
    job = session.worklist.register(
        JobIdentity(rejected.key, rejected.sha256, session.bundle.sha256, session.config_sha256)
    )
    put_aside(session, job.id, rejected.key, (rejected.path,), "discover", rejected.error)
    return session.worklist.get(job.id)


def run_study(
    session: Session, source: SourceFiles, progress: Progress | None = None, *, deliver_now: bool = True
) -> JobRow:
    """All stages of one study; failures end in quarantine, never in an exception.

    Args:
        session: of this process.
        source: the study.
        progress: told what is done.
        deliver_now: send the results before returning; else the job stays ``exported`` and they wait in the outbox.
    """
    identity, job = register(session, source)
    if job.state == "done" and read_manifest(session.folder(source.key), identity) is not None:
        return job
    if job.state == "done":  # outputs were deleted or changed
        session.worklist.reopen(job.id)
    if not session.worklist.claim(job.id):
        return session.worklist.get(job.id)
    try:
        # Killed between export and delivery: nothing has to be made again.
        made = read_manifest(session.folder(source.key), identity) if job.state == "exported" else None
        if made is None:
            made = _make(session, source, identity, job.id, progress)
        else:
            record_export(session, source, job.id, made)
        if not deliver_now:
            return session.worklist.get(job.id)
        with quarantine_on_error(session, source, job.id, "send"):
            deliver(session, source, job.id, made)
        complete(session, job.id)
    except MedxaiError:
        pass  # logged and recorded where it was put aside
    return session.worklist.get(job.id)


def _make(
    session: Session, source: SourceFiles, identity: JobIdentity, job_id: int, progress: Progress | None
) -> Manifest:
    with quarantine_on_error(session, source, job_id, "ingest"):
        ingest(session, source)
        session.worklist.stage(job_id, "ingest")
    with quarantine_on_error(session, source, job_id, "analyse"):
        fresh = not analysis_valid(session.work_path(source.key, identity))
        analysis = analyse(session, source, identity, progress)
        session.worklist.stage(job_id, "analyse", analysed=fresh)
    with quarantine_on_error(session, source, job_id, "export"):
        manifest = export(session, source, analysis)
        record_export(session, source, job_id, manifest)
    return manifest


def complete(session: Session, job_id: int) -> None:
    """Mark a study as done; clear its intermediate file and a former quarantine record.

    It stays ``exported`` while another process, a listener for example, is still sending its objects.
    """
    names = {node.name for node in session.settings.destinations}
    if any(row.destination in names for row in session.outbox.rows(OPEN, job_id)):
        return
    identity = session.worklist.identity(job_id)
    if not session.worklist.finish(job_id):  # another process has taken it up again
        return
    session.decoded.pop(identity.study_key, None)
    analysis = session.work_path(identity.study_key, identity)
    analysis.unlink(missing_ok=True)
    analysis.with_suffix(".sha256").unlink(missing_ok=True)
    (session.settings.output / "quarantine" / f"{identity.study_key}.json").unlink(missing_ok=True)
