"""The DICOM objects of a subject on a series of it: Parametric Map, Segmentation and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medxai.errors import ExportError, MismatchError
from medxai.export import parametric_map, segmentation
from medxai.export.brain import region_segmentation, report
from medxai.export.brain.maps import write_subject_space
from medxai.export.brain.on_series import on_series, refuse_template
from medxai.export.brain.subject_view import SubjectView
from medxai.export.placement import placed_sources
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Affine, Study


def write_objects(
    view: SubjectView, study: Study, transform: Affine | None, folder: Path, *, created: str, top: int,
    series_number: int, parameters: Mapping[str, Any], layer: str, send_withheld: bool = False,
) -> tuple[list[Path], list[str]]:  # fmt: skip
    """Write what can be placed, and the report in any case.

    Args:
        view: the subject.
        study: a series of MR of it.
        transform: 4x4 from the patient's LPS to that of the features; None where they are one space.
        folder: where to.
        created: ISO date and time for the objects.
        top: regions of each map.
        series_number: of the first object.
        parameters: of the map.
        layer: whose activations it is of.
        send_withheld: also maps of modalities that hardly speak for the class.

    Returns:
        Paths, and what was not written with the reason.

    Raises:
        MismatchError: the series does not suit.
        ExportError: a header of the series cannot be used.
    """
    notes: list[str] = []
    try:
        refuse_template(view, transform)
        place = True
    except MismatchError as error:
        place = False
        notes.append(f"No parametric map and no segmentation: {error.reason}.")
    placed = on_series(view, study, transform, created, parameters, layer, place=place)
    result, explanation, options = placed.result, placed.explanation, ExportOptions(formats=("parametric_map",))
    paths: list[Path] = []
    hidden = () if send_withheld else view.evidence.unsupported
    shown = bool(explanation.map.any()) and "alff" not in hidden
    if hidden:
        listed = ", ".join(name.upper() for name in hidden)
        notes.append(f"Withheld, since they are no evidence: the map of {listed}, and its regions.")
    made = None
    try:
        if shown:
            dataset = parametric_map.build(result, explanation, placed_sources(result), options, series_number)
            paths.append(write_dicom(folder / "parametric_map.dcm", dataset))
            grid = (int(explanation.map.shape[0]), int(explanation.map.shape[1]), int(explanation.map.shape[2]))
            nifti = write_subject_space(view, grid, study.volume.affine, transform, folder)
            paths += [nifti] if nifti is not None else []
        elif place and "alff" not in hidden:
            notes.append("No parametric map: the ALFF map is missing or zero on the series.")
        found = region_segmentation.build(view, placed, top, series_number + 1, hidden) if place else None
        if found is not None:
            made = found[0]
        elif shown:
            notes.append("No atlas image was given: the segmentation holds bands of the ALFF map, not regions.")
            made = segmentation.build(result, explanation, placed_sources(result), options, series_number + 1)
        if made is not None:
            paths.append(write_dicom(folder / "segmentation.dcm", made))
        text = report.build(view, placed, top, series_number + 2, made, hidden)
        paths.append(write_dicom(folder / "structured_report.dcm", text))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Their text may quote header values, so only the kind is named.
        words = f"no object can be made from the series ({type(error).__name__}); repair its headers"
        raise ExportError(words, study=view.features.subject) from error
    return paths, notes
