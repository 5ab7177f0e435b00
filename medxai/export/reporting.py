"""What both reports have in common: private codes, observer, procedure, algorithm, and the frame of the document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medxai.export.naming import ascii_text
from medxai.export.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    algorithm,
    dates,
    device,
    equipment,
    settle,
    source_header,
)
from medxai.export.slide import is_slide
from medxai.identity import derive_uid
from medxai.study import Explanation, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from highdicom.sr import AlgorithmIdentification, Comprehensive3DSR, MeasurementReport, ObserverContext
    from pydicom import Dataset
    from pydicom.sr.coding import Code

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
    "outside_lungs": "Share of evidence outside the lungs",
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
    "entropy": "Entropy of the class probabilities, 1 when all are equal",
    "spread": "Spread of the score of the explained class over windows",
    "evidence_share": "Share of the map's sum inside the region",
    "not_sent": "Why no map was sent",
    "class_result": "What the model says of one class",
    "aleatoric": "Confidence over changed versions of the pictures",
    "epistemic": "Confidence over passes with dropout",
    "confidence": "Confidence of the decision, mean of both kinds",
    "low_confidence": "Low confidence: not to be relied on",
    "votes": "Frames whose most probable class it is",
    "decisive": "Frames that decide for the explained class",
    "declined": "Share of frames that the model declines",
    "slices": "Slices with the most evidence",
    "native_grid": "Native grid of the map",
    "peak_depth": "Depth of the strongest evidence below the region's edge",
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

LONGEST_TEXT = 1024


def private(value: str) -> Code:
    """Return a code of our own scheme; figures without an entry in `MEANINGS` go by their name."""
    from pydicom.sr.coding import Code

    return Code(value, SCHEME, MEANINGS.get(value) or ascii_text(value, 64))


def words(text: str, otherwise: str) -> str:
    """Return text that every character set holds; a name of another script alone would leave nothing."""
    return ascii_text(text, LONGEST_TEXT) or otherwise


def observer_context(result: Result) -> ObserverContext:
    """Return the model as the device that observed (TID 1002, 1004)."""
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext
    from pydicom.sr.codedict import codes

    prediction = result.prediction
    attributes = DeviceObserverIdentifyingAttributes(
        # The Device UID of ContributingEquipmentSequence, so that both name the same model.
        uid=derive_uid("model", prediction.model_sha256),
        name=words(prediction.model, "model"),
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=prediction.model_sha256[:16],
    )
    return ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=attributes)


def procedure(modality: str) -> Code:
    """Return the imaging procedure (CID 100): IHE AI Results wants the imaging here, not the algorithm."""
    from pydicom.sr.codedict import codes

    known = {
        "CT": codes.cid100.CTUnspecifiedBodyRegion,
        "MR": codes.cid100.MRIUnspecifiedBodyRegion,
        "CR": codes.cid100.XRUnspecifiedBodyRegion,
        "DX": codes.cid100.XRUnspecifiedBodyRegion,
    }
    return known.get(modality, codes.cid100.ImagingProcedure)


def report_algorithm(result: Result, explanation: Explanation) -> AlgorithmIdentification:
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


def region_place(result: Result, plane: int) -> tuple[Dataset, list[int] | None]:
    """Return the source header and the 1-based frame numbers that a plane of the map stands for.

    Args:
        result: of the study.
        plane: index on the ``D`` or ``T`` axis; 0 for a still.
    """
    volume = result.study.volume
    source: Dataset = volume.source[plane if len(volume.source) > 1 else 0]
    if is_slide(volume):  # coordinates count in the total pixel matrix, not in a tile
        return source, None
    if volume.frame_numbers:
        return source, [volume.frame_numbers[plane]]
    return source, [plane + 1] if int(source.get("NumberOfFrames") or 1) > 1 else None


def peak_place(explanation: Explanation) -> tuple[int, int, int]:
    """Return (plane, row, column) of the maximum of a map; the plane of a still is 0."""
    index = tuple(int(i) for i in np.unravel_index(int(explanation.map.argmax()), explanation.map.shape))
    return (index[0] if len(index) == 3 else 0, index[-2], index[-1])


def document(
    result: Result, content: MeasurementReport, evidence: Sequence[Dataset], *, series: str, instance: str,
    number: int, description: str,
) -> Comprehensive3DSR:  # fmt: skip
    """Return a report (PS3.3 A.35.13): complete, but preliminary and unverified, since nobody has read it.

    Args:
        result: study and decision.
        content: the tree.
        evidence: headers of everything that the tree refers to or that was analysed.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        number: SeriesNumber.
        description: SeriesDescription.
    """
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import Comprehensive3DSR

    dataset = Comprehensive3DSR(
        evidence=[source_header(header) for header in evidence],
        content=content[0],
        series_instance_uid=series,
        series_number=number,
        sop_instance_uid=instance,
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
        series_description=ascii_text(description, 64),
        **device(result),
        **dates(result),
    )
    settle(dataset, result)
    return dataset


def report_of(result: Result, groups: Sequence[object]) -> MeasurementReport:
    """Return the content of a report (TID 1500) of measurement groups, in English."""
    from highdicom.sr import (
        CodedConcept,
        LanguageOfContentItemAndDescendants,
        MeasurementReport,
        ObservationContext,
    )

    return MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer_context(result)),
        procedure_reported=procedure(result.study.volume.modality),
        imaging_measurements=list(groups),
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            CodedConcept("en-US", "RFC5646", "English (United States)")
        ),
    )
