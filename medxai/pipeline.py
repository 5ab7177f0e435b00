"""One study through all stages, as plain functions; the command line and the flows call the same ones."""

from __future__ import annotations

import json
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai import __version__
from medxai.delivery import deliver, record_export
from medxai.errors import MedxaiError
from medxai.files import write_text
from medxai.identity import sha256_file, sha256_files
from medxai.ingest.discover import Discovery, Rejected, discover
from medxai.ingest.read import read_study
from medxai.records.outbox import OPEN
from medxai.records.worklist import JobIdentity, JobRow
from medxai.session import Session
from medxai.settings import RunSettings
from medxai.study import Manifest, OutputFile, Result, SourceFiles, Study, TrustReport

if TYPE_CHECKING:
    from medxai.explain.study_map import ExplainOptions
    from medxai.prepare.prepare import Prepared
    from medxai.study import Explanation, Prediction

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
#: Cells along a tile of a slide that the level its map is drawn on has at least a pixel for.
CELLS = 8


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
    study = _study(session, source)
    session.decoded[source.key] = study
    return {
        "key": study.key,
        "input_sha256": study.input_sha256,
        "shape": list(study.volume.shape),
        "modality": study.volume.modality,
        "notes": list(study.notes),
    }


def analyse(session: Session, source: SourceFiles, identity: JobIdentity, progress: Progress | None = None) -> Path:
    """Predict and explain; returns the stored analysis. A valid stored one is not computed again.

    Raises:
        MedxaiError: see `ingest`, and whatever the network or method refuse.
    """
    from medxai.explain.store import save_analysis
    from medxai.explain.study_map import ExplainOptions, explain_study
    from medxai.prepare.prepare import prepare
    from medxai.trust.gate.assess import assess_study
    from medxai.trust.gate.verdict import read_calibration

    path = session.work_path(source.key, identity)
    if analysis_valid(path):
        return path
    study = session.decoded.get(source.key) or _study(session, source)
    session.decoded[source.key] = study
    settings = session.settings
    options = ExplainOptions(
        methods=settings.methods,
        method_options=settings.method_options,
        layer=settings.layer,
        masking=settings.masking,
        seed=settings.seed,
        class_label=settings.explain_class,
        batch_size=settings.batch_size,
        device=session.device,
        autocast=_autocast(settings),
        stability=settings.stability,
        prepared=session.prepared,
        force=settings.force,
    )
    step = (lambda done, total: progress(source.key, done, total)) if progress else None
    if session.bundle.spec.slide is not None and _is_slide(study):
        return _analyse_slide(session, source, study, path, options, step)
    prepared = prepare(study.volume, session.bundle.spec.preparation)
    try:
        with session.lock:
            prediction, explanations = explain_study(session.bundle, session.network, study, prepared, options, step)
            trust: tuple[TrustReport, ...] = ()
            if settings.trust == "fast":
                calibration = read_calibration(session.bundle.path)
                trust = assess_study(
                    session.bundle, session.network, study, prepared, prediction, explanations, options, calibration
                )
    except MedxaiError as error:
        raise error.about(source.key) from error
    _sweep(path.parent, f".{path.name}.*")
    save_analysis(path, prediction, explanations, trust)
    write_text(path.with_suffix(".sha256"), sha256_file(path))
    return path


def _analyse_slide(
    session: Session, source: SourceFiles, study: Study, path: Path, options: ExplainOptions,
    step: Callable[[int, int], None] | None,
) -> Path:  # fmt: skip
    """`analyse` of a whole slide, tile by tile; shards of a killed run are gone on with."""
    from medxai.explain.slide_map import explain_slide
    from medxai.explain.store import save_analysis
    from medxai.trust.gate.assess import assess_study
    from medxai.trust.gate.verdict import read_calibration

    bundle, network = session.bundle, session.network
    calibration = read_calibration(bundle.path) if session.settings.trust == "fast" else None

    def assess(
        tile: Study, prepared: Prepared, prediction: Prediction, explanations: tuple[Explanation, ...]
    ) -> tuple[TrustReport, ...]:
        return assess_study(bundle, network, tile, prepared, prediction, explanations, options, calibration)

    shards = path.with_suffix(".shards")
    try:
        with session.lock:
            found = explain_slide(
                bundle, network, study, source.files, options, shards,
                assess if session.settings.trust == "fast" else None, step,
            )  # fmt: skip
    except MedxaiError as error:
        raise error.about(source.key) from error
    _sweep(path.parent, f".{path.name}.*")
    save_analysis(path, replace(found.prediction, tiles=found.tiles), found.explanations, found.trust)
    write_text(path.with_suffix(".sha256"), sha256_file(path))
    shutil.rmtree(shards, ignore_errors=True)
    return path


def analysis_valid(path: Path) -> bool:
    """True when a stored analysis is complete and unchanged."""
    seal = path.with_suffix(".sha256")
    return path.exists() and seal.exists() and seal.read_text() == sha256_file(path)


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

    study = session.decoded.pop(source.key, None) or _study(session, source)
    prediction, explanations, trust = load_analysis(analysis, study, session.bundle)
    intensity = session.bundle.spec.preparation.intensity
    window = (intensity.low, intensity.high) if intensity.kind == "window" else None
    result = Result(study, prediction, explanations, session.config_sha256, created(study), window, trust)
    folder = session.folder(source.key)
    _sweep(folder.parent, f".{source.key}.*")
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


def _sweep(folder: Path, pattern: str) -> None:
    """Remove what a killed process left of an atomic replacement; the claim keeps living ones away."""
    for left in folder.glob(pattern):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


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
    for header in study.volume.source[:1]:
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


def _study(session: Session, source: SourceFiles) -> Study:
    from medxai.predict.infer import check_fit

    settings = session.settings
    gap = settings.largest_gap_mm if settings.geometry == "straighten" else None
    slide = session.bundle.spec.slide
    cells = None if slide is None else slide.mpp * slide.tile / CELLS
    study = read_study(source, settings.modality, gap, cells)
    try:
        check_fit(session.bundle, study.volume, force=settings.force)
    except MedxaiError as error:
        raise error.about(source.key) from error
    return study


def _is_slide(study: Study) -> bool:
    """False for a plain picture, which is explained as one tile whatever the bundle."""
    from medxai.ingest.slide import is_slide

    headers = study.volume.source
    return study.kind == "slide" or (len(headers) == 1 and is_slide(headers[0]))


def _autocast(settings: RunSettings) -> Any:
    import torch

    return torch.bfloat16 if settings.precision == "bfloat16" else None
