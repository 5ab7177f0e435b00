"""What a model says of each class, as groups of a report: mean probability, confidence, frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from medxai.explain.cine import cine_evidence
from medxai.export.reporting import private, report_algorithm, words
from medxai.export.tracking import tracking
from medxai.settings import ExportOptions
from medxai.study import Result

if TYPE_CHECKING:
    from highdicom.sr import Measurement, MeasurementsAndQualitativeEvaluations
    from pydicom.sr.coding import Code


def class_results(result: Result, options: ExportOptions) -> Iterator[MeasurementsAndQualitativeEvaluations]:
    """Yield a group (TID 1501) for each class of a cine or of a network that was asked for its confidence.

    Others say all there is in the group of their explanation. All groups carry the tracking identifier of the primary
    explanation, whose decision they are about: OHIF 3.13 merges such groups, and opens no report with a group that has
    neither coordinates of its own nor such a partner.

    Args:
        result: study, decision and maps.
        options: what a tracking identifier means.
    """
    prediction, primary = result.prediction, result.explanations[0]
    evidence = cine_evidence(result.study.volume, prediction, primary)
    if evidence is None and prediction.confidence is None:
        return
    from highdicom.sr import (
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        RelationshipTypeValues,
        SourceImageForMeasurementGroup,
        TextContentItem,
        TrackingIdentifier,
    )
    from pydicom.sr.codedict import codes

    name, uid = tracking(result, primary, options)
    sources = result.study.volume.source
    sure = prediction.confidence
    for index, label in enumerate(prediction.labels):
        low = sure is not None and index == prediction.index and sure.of(index) < sure.low
        group = MeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(uid=uid, identifier=name),
            finding_type=private("class_result"),
            algorithm_id=report_algorithm(result, primary),
            measurements=list(_numbers(result, index, None if evidence is None else int(evidence.votes[index]))),
            qualitative_evaluations=(
                [QualitativeEvaluation(name=private("confidence"), value=private("low_confidence"))] if low else None
            ),
            source_images=[SourceImageForMeasurementGroup(s.SOPClassUID, s.SOPInstanceUID) for s in sources],
        )
        text = words(label, f"class {index}")
        kind = codes.DCM.Comment if index != prediction.index else private("decided")
        group[0].ContentSequence.append(
            TextContentItem(name=kind, value=text, relationship_type=RelationshipTypeValues.CONTAINS)
        )
        yield group


def _numbers(result: Result, index: int, votes: int | None) -> Iterator[Measurement]:
    from highdicom.sr import Measurement
    from pydicom.sr.codedict import codes

    prediction = result.prediction
    numbers: list[tuple[Code, float, Code | None]] = [
        (codes.DCM.Probability, float(prediction.probabilities[index]), codes.SCT.Mean)
    ]
    if prediction.confidence is not None:
        sure = prediction.confidence
        numbers += [
            (private("aleatoric"), sure.aleatoric[index], None),
            (private("epistemic"), sure.epistemic[index], None),
            (private("confidence"), sure.of(index), None),
        ]
    if votes is not None:
        numbers.append((private("votes"), float(votes), None))
    for name, value, derivation in numbers:
        if math.isfinite(value):
            yield Measurement(name=name, value=value, unit=codes.UCUM.NoUnits, derivation=derivation)
