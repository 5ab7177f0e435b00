"""Decision, evidence and trust as figures and words: one Comprehensive 3D SR (TID 1500) per study."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai.export.naming import NOTICE, ascii_text, chosen, is_hidden, method_title, stem
from medxai.export.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    algorithm,
    concept,
    dates,
    device,
    equipment,
    peak,
    settle,
    source_header,
    uid_of,
)
from medxai.files import atomic_path
from medxai.identity import derive_uid
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result, TrustReport

if TYPE_CHECKING:
    from highdicom.sr import (
        AlgorithmIdentification,
        Comprehensive3DSR,
        ImageRegion,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        ObservationContext,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        TextContentItem,
    )
    from pydicom import Dataset
    from pydicom.sr.coding import Code

ROLE = "structured_report"

#: Private coding scheme of what the standard has no code for (PS3.16 section 8, local schemes begin with 99).
SCHEME = "99MEDXAI"

#: Code values and meanings of the scheme; a meaning holds at most 64 characters.
MEANINGS = {
    "score": "Score of the explained class before normalisation",
    "index": "Trust index of the explanation",
    "drop": "Drop of the log-odds when the region is removed",
    "drop_second": "Drop of the log-odds, second masking operator",
    "deletion": "Deletion effect above that of a random region",
    "deletion_centre": "Deletion effect above that of the image centre",
    "deletion_second": "Deletion effect above random, second masking operator",
    "insertion": "Insertion effect above that of a random region",
    "specificity": "Difference from the map of the runner-up class",
    "stability": "Likeness of the map under slight noise",
    "outside": "Share of evidence outside the body or on burnt-in graphics",
    "consensus": "Mean agreement with maps of other method families",
    "agree_gradcam": "Agreement with class gradients at the layer",
    "agree_activation": "Agreement with activations of the layer",
    "agree_gradient": "Agreement with class gradients at the image",
    "agree_scorecam": "Agreement with scores of the image behind channels",
    "agree_masking": "Agreement with scores of masked images",
    "agree_relevance": "Agreement with relevance",
    "agree_attention": "Agreement with attention",
    "class": "Explained class",
    "decided": "Class decided by the model",
    "remark": "Remark on the explanation",
    "verdict": "Trust verdict on the explanation",
    "supported": "Supported",
    "limited": "Limited",
    "withheld": "Withheld",
    "reason": "Reason of the trust verdict",
    "not_sent": "Why no map was sent",
}

#: Method family -> code of the agreement with its map; values of more than 16 characters would need another attribute.
AGREEMENT = {
    "gradient_cam": "agree_gradcam",
    "activation_cam": "agree_activation",
    "gradient": "agree_gradient",
    "score_cam": "agree_scorecam",
    "perturbation": "agree_masking",
    "relevance": "agree_relevance",
    "attention": "agree_attention",
}

_LONGEST_TEXT = 1024


def applies(result: Result) -> str | None:
    """Return None for DICOM sources, otherwise the reason why not."""
    if result.study.kind != "dicom" or not result.study.volume.source:
        return f"the source is not DICOM ({result.study.kind}), so there is no study to attach an object to"
    return None


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the report of all chosen explanations, named after the primary one, and return its path."""
    path = folder / f"{stem(ROLE, result.explanations[0])}.dcm"
    dataset = build(result, options)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return [path]


def build(result: Result, options: ExportOptions) -> Comprehensive3DSR:
    """Return the report (PS3.3 A.35.13, PS3.16 TID 1500): one measurement group per explanation.

    It is complete but preliminary and unverified, since nobody has read it.

    Args:
        result: study, decision and maps; trust reports where the maps were judged.
        options: which explanations, and the series number.
    """
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import CodedConcept, Comprehensive3DSR, LanguageOfContentItemAndDescendants, MeasurementReport

    primary = result.explanations[0]
    content = MeasurementReport(
        observation_context=_observer(result),
        procedure_reported=_procedure(result.study.volume.modality),
        imaging_measurements=[_group(result, explanation, options) for explanation in chosen(result, options)],
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            CodedConcept("en-US", "RFC5646", "English (United States)")
        ),
    )
    dataset = Comprehensive3DSR(
        # All slices were analysed, so all are evidence, whether or not a group points at them.
        evidence=[source_header(header) for header in result.study.volume.source],
        content=content[0],
        series_instance_uid=uid_of(result, ROLE, primary, "series"),
        series_number=options.series_number_base + 300,
        sop_instance_uid=uid_of(result, ROLE, primary),
        instance_number=1,
        is_complete=True,
        contributing_equipment=equipment(result),
        coding_schemes=[
            CodingSchemeIdentificationItem(
                designator=SCHEME,
                name="Codes of medxai",
                uid=derive_uid("medxai", "coding scheme"),
                responsible_organization=MANUFACTURER,
            )
        ],
        series_description=ascii_text(f"Report of explanations: {NOTICE}", 64),
        **device(result),
        **dates(result),
    )
    settle(dataset, result)
    return dataset


def private(value: str) -> Code:
    """Return a code of our own scheme; figures without an entry in `MEANINGS` go by their name."""
    from pydicom.sr.coding import Code

    return Code(value, SCHEME, MEANINGS.get(value) or ascii_text(value, 64))


def _words(text: str, otherwise: str) -> str:
    """Return text that every character set holds; a name of another script alone would leave nothing."""
    return ascii_text(text, _LONGEST_TEXT) or otherwise


def _observer(result: Result) -> ObservationContext:
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObservationContext, ObserverContext
    from pydicom.sr.codedict import codes

    prediction = result.prediction
    attributes = DeviceObserverIdentifyingAttributes(
        # The Device UID of ContributingEquipmentSequence, so that both name the same model.
        uid=derive_uid("model", prediction.model_sha256),
        name=_words(prediction.model, "model"),
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=prediction.model_sha256[:16],
    )
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=attributes
        )
    )


def _procedure(modality: str) -> Code:
    """Return the imaging procedure (CID 100): IHE AI Results wants the imaging here, not the algorithm."""
    from pydicom.sr.codedict import codes

    known = {
        "CT": codes.cid100.CTUnspecifiedBodyRegion,
        "MR": codes.cid100.MRIUnspecifiedBodyRegion,
        "CR": codes.cid100.XRUnspecifiedBodyRegion,
        "DX": codes.cid100.XRUnspecifiedBodyRegion,
    }
    return known.get(modality, codes.cid100.ImagingProcedure)


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
    shown = peak(explanation) > 0 and not is_hidden(report, options)
    common: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(
            uid=uid_of(result, ROLE, explanation, "tracking"),
            identifier=ascii_text(f"{explanation.method}-{explanation.class_index}", 64),
        ),
        "finding_category": codes.SCT.SpatialAndRelationalConcept,
        "finding_type": concept(explanation.method),
        "algorithm_id": _algorithm(result, explanation),
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
    group[0].ContentSequence.extend(_texts(result, explanation, report, options))
    return group


def _algorithm(result: Result, explanation: Explanation) -> AlgorithmIdentification:
    """Return what the segments say of the algorithm in the form of a report (TID 4019)."""
    from highdicom.sr import AlgorithmIdentification

    item = algorithm(result, explanation)[0]
    return AlgorithmIdentification(
        name=item.AlgorithmName,
        version=item.AlgorithmVersion,
        parameters=str(item.AlgorithmParameters).split(","),
        family=item.AlgorithmFamilyCodeSequence[0],
        manufacturer=item.AlgorithmSource,
    )


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
    ]
    if shown:
        # Says what the point of the group is: where the map, not yet normalised, has this maximum.
        numbers.append((concept(explanation.method), peak(explanation), codes.SCT.Maximum))
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


def _evaluations(report: TrustReport | None) -> Iterator[QualitativeEvaluation]:
    from highdicom.sr import QualitativeEvaluation

    if report is not None:
        yield QualitativeEvaluation(name=private("verdict"), value=private(report.verdict))


def _texts(
    result: Result, explanation: Explanation, report: TrustReport | None, options: ExportOptions
) -> Iterator[TextContentItem]:
    from highdicom.sr import RelationshipTypeValues, TextContentItem
    from pydicom.sr.codedict import codes

    prediction = result.prediction
    texts = [
        (private("class"), _words(explanation.class_label, f"class {explanation.class_index}")),
        (private("decided"), _words(prediction.label, f"class {prediction.index}")),
        (private("remark"), _words(explanation.reason, "")),
        *((private("reason"), _words(reason, "")) for reason in (report.reasons if report else ())),
    ]
    if is_hidden(report, options):
        method = method_title(explanation.method)
        text = f"The trust gate withholds this {method} map: no parametric map and no segmentation of it were sent"
        texts.append((private("not_sent"), ascii_text(text, _LONGEST_TEXT)))
    texts.append((codes.DCM.Comment, NOTICE))
    for name, text in texts:
        if text:
            yield TextContentItem(name=name, value=text, relationship_type=RelationshipTypeValues.CONTAINS)


def _region(result: Result, explanation: Explanation) -> ImageRegion:
    """Return the point of the strongest evidence on its slice or frame.

    Coordinates count from the outer corner of the first pixel, so its centre is 0.5, 0.5 (PS3.3 C.18.6.1.1).
    """
    from highdicom.sr import GraphicTypeValues, ImageRegion, SourceImageForRegion

    volume = result.study.volume
    index = tuple(int(i) for i in np.unravel_index(int(explanation.map.argmax()), explanation.map.shape))
    plane = index[0] if len(index) == 3 else 0
    source: Dataset = volume.source[plane if len(volume.source) > 1 else 0]
    frames: list[int] | None = None
    if volume.frame_numbers:
        frames = [volume.frame_numbers[plane]]
    elif int(source.get("NumberOfFrames") or 1) > 1:
        frames = [plane + 1]
    return ImageRegion(
        graphic_type=GraphicTypeValues.POINT,
        graphic_data=np.array([[index[-1] + 0.5, index[-2] + 0.5]]),
        source_image=SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID, frames),
    )
