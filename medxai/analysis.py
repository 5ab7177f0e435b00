"""From a study to its stored analysis: decision, maps and their trust; what was computed is not computed again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai.errors import MedxaiError
from medxai.files import sweep, write_text
from medxai.identity import sha256_file
from medxai.ingest.read import read_study
from medxai.ingest.slide import shows_slide
from medxai.records.worklist import JobIdentity
from medxai.session import Session
from medxai.settings import RunSettings
from medxai.study import SourceFiles, Study

if TYPE_CHECKING:
    from medxai.explain.study_map import ExplainOptions
    from medxai.study import Explanation, Prediction, TrustReport

    Analysis = tuple[Prediction, tuple[Explanation, ...], tuple[TrustReport, ...]]

Progress = Callable[[str, int, int], None]
Steps = Callable[[int, int], None]
#: Cells along a tile of a slide that the level its map is drawn on has at least a pixel for.
CELLS = 8


def study_of(session: Session, source: SourceFiles) -> Study:
    """Decode a source and check that the bundle is made for it.

    Raises:
        MedxaiError: unreadable, irregular, or not what the bundle was made for.
    """
    from medxai.predict.infer import check_fit

    settings, slide = session.settings, session.bundle.spec.slide
    gap = settings.largest_gap_mm if settings.geometry == "straighten" else None
    cells = None if slide is None else slide.mpp * slide.tile / CELLS
    study = read_study(source, settings.modality, gap, cells)
    try:
        check_fit(session.bundle, study.volume, force=settings.force)
    except MedxaiError as error:
        raise error.about(source.key) from error
    return study


def analyse(session: Session, source: SourceFiles, identity: JobIdentity, progress: Progress | None = None) -> Path:
    """Predict and explain; returns the stored analysis. A valid stored one is not computed again.

    Raises:
        MedxaiError: see `study_of`, and whatever the network or method refuse.
    """
    from medxai.explain.store import save_analysis
    from medxai.explain.study_map import ExplainOptions

    path = session.work_path(source.key, identity)
    if analysis_valid(path):
        return path
    study = session.decoded.get(source.key) or study_of(session, source)
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
        slide=settings.slide,
    )
    step = partial(progress, source.key) if progress else None
    shards = path.with_suffix(".shards")
    # A plain picture is explained as one tile, whatever the bundle.
    by_tiles = session.bundle.spec.slide is not None and shows_slide(study)
    try:
        with session.lock:
            if by_tiles:
                found = _tiles(session, source, study, options, shards, step)
            else:
                found = _windows(session, study, options, step)
    except MedxaiError as error:
        raise error.about(source.key) from error
    sweep(path.parent, f".{path.name}.*")
    save_analysis(path, *found)
    write_text(path.with_suffix(".sha256"), sha256_file(path))
    shutil.rmtree(shards, ignore_errors=True)
    return path


def analysis_valid(path: Path) -> bool:
    """True when a stored analysis is complete and unchanged."""
    seal = path.with_suffix(".sha256")
    return path.exists() and seal.exists() and seal.read_text() == sha256_file(path)


def _windows(session: Session, study: Study, options: ExplainOptions, step: Steps | None) -> Analysis:
    """A study as a whole, in windows where it is larger than the network's input."""
    from medxai.explain.study_map import explain_study
    from medxai.prepare.prepare import prepare

    prepared = prepare(study.volume, session.bundle.spec.preparation)
    prediction, explanations = explain_study(session.bundle, session.network, study, prepared, options, step)
    trust = _assess(session, options)(study, prepared, prediction, explanations) if _judges(session) else ()
    return prediction, explanations, trust


def _tiles(
    session: Session, source: SourceFiles, study: Study, options: ExplainOptions, shards: Path, step: Steps | None
) -> Analysis:
    """A whole slide tile by tile; the shards of a killed run are gone on with."""
    from medxai.explain.slide_map import explain_slide

    assess = _assess(session, options) if _judges(session) else None
    return explain_slide(session.bundle, session.network, study, source.files, options, shards, assess, step)


def _judges(session: Session) -> bool:
    return session.settings.trust == "fast"


def _assess(session: Session, options: ExplainOptions) -> Callable[..., tuple[TrustReport, ...]]:
    """`assess_study` with what does not change from one study, or tile, to the next."""
    from medxai.trust.gate.assess import assess_study
    from medxai.trust.gate.verdict import read_calibration

    calibration = read_calibration(session.bundle.path)
    return partial(assess_study, session.bundle, session.network, options=options, calibration=calibration)


def _autocast(settings: RunSettings) -> Any:
    import torch

    return torch.bfloat16 if settings.precision == "bfloat16" else None
