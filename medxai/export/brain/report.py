"""What the fusion network says of a subject as a Comprehensive 3D SR (TID 1500)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai.explain.brain_evidence import MATRICES, sentences
from medxai.export.brain.on_series import OnSeries
from medxai.export.brain.region_segmentation import TopRegion, top_regions, tracking_uid
from medxai.export.brain.sites import side_code, site
from medxai.export.brain.subject_view import SubjectView
from medxai.export.naming import NOTICE, ascii_text
from medxai.export.provenance import concept, peak, uid_of
from medxai.export.reporting import (
    LONGEST_TEXT,
    SCHEME,
    document,
    peak_place,
    private,
    region_place,
    report_algorithm,
    report_of,
    words,
)
from medxai.identity import derive_uid
from medxai.prepare.brain.subject import MODALITIES

if TYPE_CHECKING:
    from highdicom.sr import Comprehensive3DSR, Measurement, TextContentItem
    from pydicom import Dataset
    from pydicom.sr.coding import Code

#: The sentence of every report and page of this kind.
MARKER = "Research marker, not a diagnosis"
#: Codes of `SCHEME` that only these reports use; a meaning holds at most 64 characters.
MEANINGS = {
    "share": "Share of the evidence", "shapley": "Shapley value of the logit", "order": "Agreement with the map of "
    "another order of the nodes", "synergy": "Gain of all inputs together beyond each alone",
    "relative": "Evidence of the region over that of the first region",
    "missing": "Missing, not seen by the network", "present": "Present",
    "region": "Region", "ranks": "Ranks of the region", "limit": "Limit of the evidence", "place": "Place of the map",
    "alff": "Amplitude of low-frequency fluctuation", "sfc": "Static functional connectivity",
    "dfc": "Dynamic functional connectivity", "fa": "Structural connectivity",
}  # fmt: skip
#: Entries of `MEANINGS` that are figures of one modality each, and whose: their codes are ``share_alff`` and so on.
_BY_MODALITY = {"share": MODALITIES, "shapley": MODALITIES, "order": MATRICES}


def private_codes() -> dict[str, str]:
    """Meaning by code of `SCHEME` of all that these reports may hold beside `reporting.MEANINGS`."""
    plain = [_code(name) for name in MEANINGS if name not in _BY_MODALITY]
    named = [_named(name, modality) for name, those in _BY_MODALITY.items() for modality in those]
    return {code.value: code.meaning for code in (*plain, *named)}


def build(
    view: SubjectView, placed: OnSeries, count: int, series_number: int, segmentation: Dataset | None = None,
    hidden: Sequence[str] = (),
) -> Comprehensive3DSR:  # fmt: skip
    """Return the report: a group for the decision, and one for each of the first regions.

    Args:
        view: the subject.
        placed: its evidence on the series.
        count: regions of each map.
        series_number: of the report.
        segmentation: that is named as evidence where there is one.
        hidden: modalities whose maps do not count.
    """
    result, explanation = placed.result, placed.explanation
    regions = top_regions(view, count, hidden)
    groups: list[object] = [_decision(view, placed), *(_region(placed, item) for item in regions)]
    evidence = [*result.study.volume.source, *([segmentation] if segmentation is not None else [])]
    parts = ("regions", *(item.name for item in regions))
    return document(
        result,
        report_of(result, groups),
        evidence,
        series=uid_of(result, "structured_report", explanation, *parts, "series"),
        instance=uid_of(result, "structured_report", explanation, *parts),
        number=series_number,
        description=f"Fusion of MRI: {NOTICE}",
    )


def _decision(view: SubjectView, placed: OnSeries) -> object:
    from highdicom.sr import QualitativeEvaluation, TrackingIdentifier
    from pydicom.sr.codedict import codes

    result, explanation, found = placed.result, placed.explanation, view.evidence
    numbers: list[tuple[Code, float, Code | None]] = [
        (codes.DCM.Probability, found.probability, None),
        (private("score"), float(explanation.score), None),
        (_code("synergy"), found.map_synergy, None),
    ]
    for name in found.modalities:
        numbers += [(_named("share", name), found.shares[name], None)]
        numbers += [(_named("shapley", name), found.values[name], None)]
    numbers += [(_named("order", name), value, None) for name, value in found.order.items()]
    shown = peak(explanation) > 0
    uid, name = _tracking(placed)
    if shown:
        numbers.append((concept(explanation.method), peak(explanation), codes.SCT.Maximum))
    common: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(uid=uid, identifier=name),
        "finding_category": codes.SCT.SpatialAndRelationalConcept,
        "finding_type": concept(explanation.method),
        "algorithm_id": report_algorithm(result, explanation),
        "measurements": _measured(numbers),
        "qualitative_evaluations": [
            QualitativeEvaluation(name=_code(name), value=_code("missing" if name in found.missing else "present"))
            for name in ("alff", "dfc", "sfc", "fa")
            if name in (*found.modalities, *found.missing)
        ],
    }
    group = _group(placed, peak_place(explanation) if shown else None, common)
    prediction = result.prediction
    texts = [
        (private("class"), words(explanation.class_label, "class")),
        (private("decided"), words(prediction.label, "class")),
        *((_code("limit"), sentence) for sentence in sentences(found)),
        (_code("place"), placed.note),
        (codes.DCM.Comment, f"{MARKER}. {NOTICE}"),
    ]
    group[0].ContentSequence.extend(_texts(texts))
    return group


def _region(placed: OnSeries, region: TopRegion) -> object:
    """Group of a region: at the middle of the region (TID 1410), with the tracking identifier of its segment.

    Without a place on the series it is a group of the decision (TID 1501), whose identifier it then carries: OHIF 3.13
    opens no report with a group that has neither coordinates nor such a partner.
    """
    from highdicom.sr import FindingSite, TrackingIdentifier
    from pydicom.sr.codedict import codes

    code, known = site(region.name)
    middle = _middle(placed, region)
    uid, name = tracking_uid(placed, region.name), ascii_text(f"region {region.name}", 64)
    if middle is None:
        uid, name = _tracking(placed)
    common: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(uid=uid, identifier=name),
        "finding_category": codes.SCT.SpatialAndRelationalConcept,
        "finding_type": concept(placed.explanation.method),
        "algorithm_id": report_algorithm(placed.result, placed.explanation),
        "finding_sites": [FindingSite(code, laterality=side_code(region.name) if known else None)],
        "measurements": _measured([(_code("relative"), region.relative, None)]),
    }
    group = _group(placed, middle, common)
    words_of = region.name + (f" ({region.network} network)" if region.network else "")
    group[0].ContentSequence.extend(_texts([(_code("region"), words_of), (_code("ranks"), region.words)]))
    return group


def _middle(placed: OnSeries, region: TopRegion) -> tuple[int, int, int] | None:
    """Voxel of a region that is nearest its centroid, ``(plane, row, column)``; None where it has none."""
    if placed.labels is None:
        return None
    places = np.argwhere(placed.labels == region.index + 1)
    if not len(places):
        return None
    steps = np.linalg.norm(placed.result.study.volume.affine[:3, :3], axis=0)
    nearest = places[(((places - places.mean(0)) * steps) ** 2).sum(1).argmin()]
    return int(nearest[0]), int(nearest[1]), int(nearest[2])


def _group(placed: OnSeries, place: tuple[int, int, int] | None, common: Mapping[str, Any]) -> Any:
    """A group with a point on its slice, or of the whole series.

    Coordinates count from the outer corner of the first pixel, so its centre is 0.5, 0.5 (PS3.3 C.18.6.1.1).
    """
    from highdicom.sr import (
        GraphicTypeValues,
        ImageRegion,
        MeasurementsAndQualitativeEvaluations,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        SourceImageForRegion,
    )

    if place is None:
        return MeasurementsAndQualitativeEvaluations(source_images=_sources(placed), **common)
    plane, row, column = place
    source, frames = region_place(placed.result, plane)
    region = ImageRegion(
        graphic_type=GraphicTypeValues.POINT,
        graphic_data=np.array([[column + 0.5, row + 0.5]]),
        source_image=SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID, frames),
    )
    return PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **common)


def _tracking(placed: OnSeries) -> tuple[str, str]:
    """UID and name of the decision."""
    return derive_uid("tracking", *placed.result.identity, "fusion"), f"{placed.explanation.method}-fusion"


def _measured(numbers: Sequence[tuple[Code, float, Code | None]]) -> list[Measurement]:
    from highdicom.sr import Measurement
    from pydicom.sr.codedict import codes

    return [
        Measurement(name=name, value=float(value), unit=codes.UCUM.NoUnits, derivation=derivation)
        for name, value, derivation in numbers
        if math.isfinite(value)
    ]


def _texts(pairs: Sequence[tuple[Code, str]]) -> list[TextContentItem]:
    from highdicom.sr import RelationshipTypeValues, TextContentItem

    return [
        TextContentItem(name=n, value=ascii_text(text, LONGEST_TEXT), relationship_type=RelationshipTypeValues.CONTAINS)
        for n, text in pairs
        if text
    ]


def _sources(placed: OnSeries) -> list[Any]:
    from highdicom.sr import SourceImageForMeasurementGroup

    sources = placed.result.study.volume.source
    return [SourceImageForMeasurementGroup(s.SOPClassUID, s.SOPInstanceUID) for s in sources]


def _code(value: str) -> Code:
    from pydicom.sr.coding import Code

    return Code(value, SCHEME, MEANINGS[value])


def _named(value: str, modality: str) -> Code:
    """A figure of one modality, such as ``share_alff``."""
    from pydicom.sr.coding import Code

    return Code(f"{value}_{modality}", SCHEME, ascii_text(f"{MEANINGS[value]}: {modality.upper()}", 64))
