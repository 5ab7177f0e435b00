"""The exporters, and writing all of their outputs or none."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from medxai.errors import ExportError, MedxaiError
from medxai.export import (
    bulk_annotations,
    encapsulated_pdf,
    fractional_segmentation,
    key_objects,
    movie,
    nifti,
    page,
    parametric_map,
    picture,
    presentation_state,
    secondary_capture,
    segmentation,
    slide_overlay,
    slide_tiles,
    structured_report,
    volumetric_report,
)
from medxai.identity import sha256_file
from medxai.settings import ExportOptions
from medxai.study import OutputFile, Result

logger = logging.getLogger(__name__)


class Exporter(Protocol):
    """What each exporter module offers."""

    ROLE: str

    def applies(self, result: Result) -> str | None:
        """Return None when the exporter can write this result, otherwise the reason why not."""
        ...

    def write(self, result: Result, folder: Path, options: ExportOptions) -> list[Path]:
        """Write into `folder` and return the paths."""
        ...


#: Roles that put a map, or the places it names, into a viewer as if it were data; what the gate withholds does not
#: go there.
_MAPS = frozenset(
    {
        "parametric_map", "segmentation", "fractional_segmentation", "volumetric_report", "presentation_state",
        "key_objects", "annotations",
    }
)  # fmt: skip

#: In the order of writing: a report follows the segmentation it refers to, the selection all that it selects, and the
#: page comes last since it lists what the others wrote.
EXPORTERS: tuple[Exporter, ...] = tuple(
    cast(Exporter, module)
    for module in (
        parametric_map,
        segmentation,
        fractional_segmentation,
        secondary_capture,
        structured_report,
        volumetric_report,
        presentation_state,
        encapsulated_pdf,
        key_objects,
        nifti,
        picture,
        movie,
        bulk_annotations,
        slide_tiles,
        slide_overlay,
        page,
    )
)


def skipped(result: Result, options: ExportOptions) -> dict[str, str]:
    """Return the wanted roles that do not apply to a result, with the reason in words."""
    reasons = {}
    for exporter in EXPORTERS:
        if exporter.ROLE in options.formats:
            passed = passing(result, exporter.ROLE, options)
            reasons[exporter.ROLE] = exporter.applies(result) if passed.explanations else _withheld(result)
    return {role: reason for role, reason in reasons.items() if reason is not None}


def passing(result: Result, role: str, options: ExportOptions) -> Result:
    """The result with what the gate lets pass to a role: withheld maps become no data objects."""
    if role not in _MAPS or options.send_withheld or not result.trust:
        return result
    kept = [i for i, report in enumerate(result.trust) if report.verdict != "withheld"]
    return replace(
        result,
        explanations=tuple(result.explanations[i] for i in kept),
        trust=tuple(result.trust[i] for i in kept),
    )


def _withheld(result: Result) -> str:
    reasons = "; ".join(dict.fromkeys(reason for report in result.trust for reason in report.reasons))
    return f"the trust gate withholds the map: {reasons}"


def export_all(result: Result, folder: Path, options: ExportOptions) -> tuple[OutputFile, ...]:
    """Write every wanted output that applies into `folder`, replacing what was there.

    All files are made in a hidden folder beside it, which takes its place at the end: `folder` holds the outputs of
    one run, complete, or is as it was before.

    Args:
        result: what to export; needs at least one explanation.
        folder: folder of this result's outputs alone.
        options: roles, bands and looks.

    Returns:
        The files, sorted by path; paths are relative to `folder`.

    Raises:
        ExportError: an output cannot be made; it names the study and the role.
    """
    key = result.study.key
    if not result.explanations:
        raise ExportError("there is no explanation to export", study=key)
    reasons = skipped(result, options)
    outputs: list[OutputFile] = []
    with _replacing(folder) as workspace:
        for exporter in EXPORTERS:
            if exporter.ROLE not in options.formats:
                continue
            if exporter.ROLE in reasons:
                logger.info("%s: no %s: %s", key, exporter.ROLE, reasons[exporter.ROLE])
                continue
            for path in _write(exporter, passing(result, exporter.ROLE, options), workspace, options):
                name = path.relative_to(workspace).as_posix()
                outputs.append(OutputFile(exporter.ROLE, name, sha256_file(path), path.stat().st_size))
    return tuple(sorted(outputs, key=lambda output: output.path))


def _write(exporter: Exporter, result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    try:
        return exporter.write(result, folder, options)
    except MedxaiError as error:
        raise error.about(result.study.key) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Libraries refuse headers in these ways; their text may quote header values, so only the kind is named.
        raise ExportError(
            f"{exporter.ROLE} cannot be made from this source ({type(error).__name__} in {_where(error)}); "
            "leave it out of `formats` or repair the source headers",
            study=result.study.key,
        ) from error


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "unknown" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a hidden sibling folder that replaces `folder` on success and vanishes on failure."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(6)
    workspace = folder.parent / f".{folder.name}.{token}.new"
    retired = folder.parent / f".{folder.name}.{token}.old"
    workspace.mkdir()
    try:
        yield workspace
        if folder.exists():
            folder.replace(retired)
        try:
            workspace.replace(folder)
        except OSError:
            if retired.exists():
                retired.replace(folder)
            raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
