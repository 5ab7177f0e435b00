"""Decision, evidence and trust as figures and words: one Comprehensive 3D SR (TID 1500) per study."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai.explain.cine import cine_evidence
from medxai.explain.slices import NAMED, rank_slices
from medxai.export.class_results import class_results
from medxai.export.naming import NOTICE, ascii_text, chosen, is_hidden, method_title, stem
from medxai.export.outlines import region_at
from medxai.export.placement import detached_reason
from medxai.export.provenance import concept, grid_text, peak, uid_of
from medxai.export.reporting import (
    AGREEMENT,
    LONGEST_TEXT,
    MEANINGS,
    document,
    peak_place,
    private,
    region_place,
    report_algorithm,
    report_of,
    words,
)
from medxai.export.tracking import tracking
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Explanation, Prediction, Result, TrustReport

if TYPE_CHECKING:
    from highdicom.sr import (
        Comprehensive3DSR,
        ImageRegion,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        TextContentItem,
    )
    from pydicom.sr.coding import Code

ROLE = "structured_report"


def applies(result: Result) -> str | None:
    """Return None for DICOM sources, otherwise the reason why not."""
    return detached_reason(result)


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the report of all chosen explanations, named after the primary one, and return its path."""
    return [write_dicom(folder / f"{stem(ROLE, result.explanations[0])}.dcm", build(result, options))]


def build(result: Result, options: ExportOptions) -> Comprehensive3DSR:
    """Return the report (PS3.16 TID 1500): a group per explanation, and one per band outlined on the peak slice.

    Args:
        result: study, decision and maps; trust reports where the maps were judged.
        options: which explanations, and the series number.
    """
    primary = result.explanations[0]
    groups: list[object] = []
    for explanation in chosen(result, options):
        groups.append(_group(result, explanation, options))
        groups += _bands(result, explanation, options)
    groups += class_results(result, options)
    return document(
        result,
        report_of(result, groups),
        # All slices were analysed, so all are evidence, whether or not a group points at them.
        result.study.volume.source,
        series=uid_of(result, ROLE, primary, "series"),
        instance=uid_of(result, ROLE, primary),
        number=options.series_number_base + 300,
        description=f"Report of explanations: {NOTICE}",
    )


def _group(
    result: Result, explanation: Explanation, options: ExportOptions
) -> PlanarROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations:
    """Return a planar group (TID 1410) at the maximum of the map, or one without a place (TID 1501).

    A map that the gate withholds shows no place either: viewers draw it over the image, as they would the map.
    """
    from highdicom.sr import (
        MeasurementsAndQualitativeEvaluations,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )
    from pydicom.sr.codedict import codes

    report = result.trust_of(explanation)
    shown = _shown(result, explanation, options)
    name, uid = tracking(result, explanation, options)
    common: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(uid=uid, identifier=name),
        "finding_category": codes.SCT.SpatialAndRelationalConcept,
        "finding_type": concept(explanation.method),
        "algorithm_id": report_algorithm(result, explanation),
        "measurements": list(_measurements(result, explanation, report, shown=shown)),
        "qualitative_evaluations": list(_evaluations(report)),
    }
    group: PlanarROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations
    if shown:
        group = PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=_region(result, explanation), **common)
    else:
        sources = result.study.volume.source
        images = [SourceImageForMeasurementGroup(s.SOPClassUID, s.SOPInstanceUID) for s in sources]
        group = MeasurementsAndQualitativeEvaluations(source_images=images, **common)
    # highdicom's evaluations are codes alone; the template has texts beside them.
    group[0].ContentSequence.extend(_texts(result, explanation, report, options, shown=shown))
    return group


def _measurements(
    result: Result, explanation: Explanation, report: TrustReport | None, *, shown: bool
) -> Iterator[Measurement]:
    """Yield what is a number; NaN stands for "not measured" and DICOM has no text for it."""
    from highdicom.sr import Measurement
    from pydicom.sr.codedict import codes

    probability = float(result.prediction.probabilities[explanation.class_index])
    numbers: list[tuple[Code, float, Code | None]] = [
        (codes.DCM.Probability, probability, None),
        (private("score"), float(explanation.score), None),
        (private("entropy"), _entropy(result.prediction, explanation.class_index), None),
        (private("spread"), _window_spread(result.prediction, explanation.class_index), None),
    ]
    if shown:
        # Says what the point of the group is: where the map, not yet normalised, has this maximum.
        numbers.append((concept(explanation.method), peak(explanation), codes.SCT.Maximum))
    evidence = cine_evidence(result.study.volume, result.prediction, explanation)
    if evidence is not None and result.prediction.reject:
        numbers.append((private("declined"), evidence.declined, None))
    if report is not None:
        numbers.append((private("index"), float(report.index), None))
        # In the order of the scheme, since a stored report may list its figures in another one.
        order = [name for name in MEANINGS if name in report.figures]
        order += sorted(set(report.figures) - set(order))
        numbers += [(private(name), float(report.figures[name]), None) for name in order]
        numbers.append((private("consensus"), report.consensus, None))
        numbers += [(private(AGREEMENT[name]), float(v), None) for name, v in sorted(report.agreement.items())]
    for name, value, derivation in numbers:
        if math.isfinite(value):
            yield Measurement(name=name, value=value, unit=codes.UCUM.NoUnits, derivation=derivation)
    if shown and evidence is not None and evidence.peaks:
        strongest = max(evidence.peaks, key=lambda item: item.value)
        if strongest.depth_mm is not None:
            yield Measurement(name=private("peak_depth"), value=strongest.depth_mm, unit=codes.UCUM.Millimeter)


def _entropy(prediction: Prediction, index: int) -> float:
    """Uncertainty of the decision, 0 (certain) to 1 (nothing known).

    Shannon entropy of the probabilities over that of equal ones; where classes do not exclude each other (their
    probabilities do not add up to 1), of the explained class against its absence.
    """
    shares = np.asarray(prediction.probabilities, dtype=np.float64)
    if len(shares) < 2 or abs(float(shares.sum()) - 1.0) > 1e-3:
        shares = np.array([float(shares[index]), 1.0 - float(shares[index])])
    shares = shares / shares.sum()
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum() / math.log(len(shares)))


def _window_spread(prediction: Prediction, index: int) -> float:
    """Standard deviation of the explained logit over the windows of the study; NaN for a single window."""
    windows = prediction.window_logits
    return float("nan") if windows is None or len(windows) < 2 else float(np.std(windows[:, index], dtype=np.float64))


def _evaluations(report: TrustReport | None) -> Iterator[QualitativeEvaluation]:
    from highdicom.sr import QualitativeEvaluation

    if report is not None:
        yield QualitativeEvaluation(name=private("verdict"), value=private(report.verdict))


def _texts(
    result: Result, explanation: Explanation, report: TrustReport | None, options: ExportOptions, *, shown: bool
) -> Iterator[TextContentItem]:
    from highdicom.sr import RelationshipTypeValues, TextContentItem
    from pydicom.sr.codedict import codes

    prediction = result.prediction
    texts = [
        (private("class"), words(explanation.class_label, f"class {explanation.class_index}")),
        (private("decided"), words(prediction.label, f"class {prediction.index}")),
        (private("remark"), words(explanation.reason, "")),
        (private("native_grid"), ascii_text(grid_text(result, explanation), LONGEST_TEXT)),
        (private("slices"), ascii_text(_slices(result, explanation) if shown else "", LONGEST_TEXT)),
        (private("decisive"), ascii_text(_decisive(result, explanation), LONGEST_TEXT)),
        *((private("reason"), words(reason, "")) for reason in (report.reasons if report else ())),
    ]
    if is_hidden(report, options):
        method = method_title(explanation.method)
        text = f"The trust gate withholds this {method} map: no parametric map and no segmentation of it were sent"
        texts.append((private("not_sent"), ascii_text(text, LONGEST_TEXT)))
    texts.append((codes.DCM.Comment, NOTICE))
    for name, text in texts:
        if text:
            yield TextContentItem(name=name, value=text, relationship_type=RelationshipTypeValues.CONTAINS)


def _decisive(result: Result, explanation: Explanation) -> str:
    """Numbers of the decisive frames of a cine in the source object, from 1; empty for what is none."""
    evidence = cine_evidence(result.study.volume, result.prediction, explanation)
    if evidence is None:
        return ""
    numbers = result.study.volume.frame_numbers
    return ", ".join(str(numbers[frame] if numbers else frame + 1) for frame in evidence.decisive)


def _slices(result: Result, explanation: Explanation) -> str:
    """The slices with the most evidence, the instance of the first, and what to know of them; empty for no volume."""
    ranking = rank_slices(result.study.volume, explanation)
    if ranking is None or not ranking.slices:
        return ""
    words = ", ".join(item.text() for item in ranking.slices[:NAMED])
    first = ranking.slices[0].instance
    return "; ".join(part for part in (words, f"the first is instance {first}" if first else "", ranking.note) if part)


def _shown(result: Result, explanation: Explanation, options: ExportOptions) -> bool:
    return peak(explanation) > 0 and not is_hidden(result.trust_of(explanation), options)


def _region(result: Result, explanation: Explanation) -> ImageRegion:
    """Return the point of the strongest evidence on its slice or frame.

    Coordinates count from the outer corner of the first pixel, so its centre is 0.5, 0.5 (PS3.3 C.18.6.1.1).
    """
    from highdicom.sr import GraphicTypeValues, ImageRegion, SourceImageForRegion

    plane, row, column = peak_place(explanation)
    source, frames = region_place(result, plane)
    return ImageRegion(
        graphic_type=GraphicTypeValues.POINT,
        graphic_data=np.array([[column + 0.5, row + 0.5]]),
        source_image=SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID, frames),
    )


def _bands(
    result: Result, explanation: Explanation, options: ExportOptions
) -> Iterator[PlanarROIMeasurementsAndQualitativeEvaluations]:
    """Yield a planar group per band: the outline of the part that holds the maximum, on the maximum's slice.

    Each carries the tracking identifier of the segment of its band, so that both are known to be one thing.
    """
    from highdicom.sr import (
        GraphicTypeValues,
        ImageRegion,
        Measurement,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        SourceImageForRegion,
        TrackingIdentifier,
    )
    from pydicom.sr.codedict import codes

    if not _shown(result, explanation, options):
        return
    volume = result.study.volume
    where, row, column = peak_place(explanation)
    values = explanation.normalised()
    values = values if values.ndim == 2 else values[where]
    source, frames = region_place(result, where)
    for low in options.bands:
        region = region_at(values, low, (row, column))
        if region is None:
            continue
        points, count = region
        name, uid = tracking(result, explanation, options, low)
        measurements = [Measurement(name=concept(explanation.method), value=float(low), unit=codes.UCUM.NoUnits,
                                    derivation=codes.SCT.Minimum)]  # fmt: skip
        if volume.calibrated:
            square = count * volume.spacing[1] * volume.spacing[2]
            measurements.insert(0, Measurement(name=codes.SCT.Area, value=square, unit=codes.UCUM.SquareMillimeter))
        yield PlanarROIMeasurementsAndQualitativeEvaluations(
            referenced_region=ImageRegion(
                graphic_type=GraphicTypeValues.POLYLINE,
                graphic_data=points,
                source_image=SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID, frames),
            ),
            tracking_identifier=TrackingIdentifier(uid=uid, identifier=name),
            finding_category=codes.SCT.SpatialAndRelationalConcept,
            finding_type=concept(explanation.method),
            algorithm_id=report_algorithm(result, explanation),
            measurements=measurements,
        )
