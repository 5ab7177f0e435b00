"""The regions with the most evidence as a DICOM Segmentation: where the network looked, never a finding of anatomy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medxai.export.brain.on_series import OnSeries
from medxai.export.brain.sites import side_code, site
from medxai.export.brain.subject_view import SubjectView
from medxai.export.colours import heat
from medxai.export.naming import NOTICE, ascii_text
from medxai.export.placement import placed_sources, restore_frame_numbers
from medxai.export.provenance import algorithm, concept, dates, device, equipment, finish, uid_of
from medxai.identity import derive_uid

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from pydicom import Dataset


@dataclass(frozen=True)
class TopRegion:
    """A region that is among the first of some map.

    Attributes:
        index: of the region in the atlas.
        name: its name.
        network: its network, "" for none.
        relative: largest evidence over that of the first region of the map.
        words: rank in each map where it is among the first.
    """

    index: int
    name: str
    network: str
    relative: float
    words: str


def top_regions(view: SubjectView, count: int, hidden: Sequence[str] = ()) -> tuple[TopRegion, ...]:
    """The first `count` regions of each map over the functional atlas, each region once, the strongest first.

    Args:
        view: the subject.
        count: of each map.
        hidden: modalities whose maps do not count.
    """
    places: dict[str, list[str]] = {}
    best: dict[str, float] = {}
    index = {name: number for number, name in enumerate(view.features.regions)}
    networks = dict(zip(view.features.regions, view.networks("sfc"), strict=True))
    for modality, ranked in view.ranked().items():
        for item in () if modality in hidden else ranked[:count]:
            if item.region not in index:
                continue
            places.setdefault(item.region, []).append(f"{modality.upper()} rank {item.rank} ({item.relative:.2f})")
            best[item.region] = max(best.get(item.region, 0.0), item.relative)
    order = sorted(places, key=lambda name: (-best[name], index[name]))
    return tuple(TopRegion(index[n], n, networks[n], best[n], ", ".join(places[n])) for n in order)


def build(
    view: SubjectView, placed: OnSeries, count: int, series_number: int, hidden: Sequence[str] = ()
) -> tuple[Segmentation, tuple[TopRegion, ...]] | None:
    """Return the object (PS3.3 A.51) and its segments' regions; None where no region has a voxel on the series.

    A segment's label is the region's name. Its type is what the map measures, as of all our segmentations; where the
    name tells the anatomy it stands as a code beside it, else "Brain" does.
    """
    from highdicom.color import CIELabColor
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    if placed.labels is None:
        return None
    regions = tuple(r for r in top_regions(view, count, hidden) if (placed.labels == r.index + 1).any())
    if not regions:
        return None
    result, explanation = placed.result, placed.explanation
    descriptions = []
    for number, region in enumerate(regions, 1):
        code, _ = site(region.name)
        red, green, blue = (int(v) for v in heat(np.float32(0.25 + 0.75 * region.relative)))
        item = SegmentDescription(
            segment_number=number,
            segment_label=ascii_text(f"{region.name} (explanation)", 64),
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=concept(explanation.method),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm(result, explanation),
            tracking_id=ascii_text(f"region {region.name}", 64),
            tracking_uid=tracking_uid(placed, region.name),
            display_color=CIELabColor.from_rgb(red, green, blue),
            anatomic_regions=[code],
        )
        _add_side(item, region.name)
        item.SegmentDescription = ascii_text(f"{region.name}: {region.words}; {NOTICE}", 1024)
        descriptions.append(item)
    masks = np.stack([placed.labels == region.index + 1 for region in regions], -1).astype(np.uint8)
    sources = placed_sources(result)
    parts = ("regions", *(region.name for region in regions))
    dataset = Segmentation(
        source_images=sources,
        pixel_array=masks,
        segmentation_type="BINARY",
        segment_descriptions=descriptions,
        series_instance_uid=uid_of(result, "segmentation", explanation, *parts, "series"),
        series_number=series_number,
        sop_instance_uid=uid_of(result, "segmentation", explanation, *parts),
        instance_number=1,
        content_label="EXPLANATION",
        content_description=ascii_text(f"Regions with the most evidence for {explanation.class_label}", 64),
        contributing_equipment=equipment(result),
        series_description=ascii_text(f"Regions of evidence: {NOTICE}", 64),
        **device(result),
        **dates(result),
    )
    finish(dataset, result, explanation, sources[0])
    restore_frame_numbers(dataset, result.study.volume)
    return dataset, regions


def tracking_uid(placed: OnSeries, region: str) -> str:
    """One UID of a region of this result, in segmentation and report."""
    return derive_uid("tracking", *placed.result.identity, "region", region)


def _add_side(item: Dataset, region: str) -> None:
    """State left or right of a coded structure, in place (PS3.3 10.5, Anatomic Region Modifier)."""
    from highdicom.sr import CodedConcept

    code = side_code(region)
    if code is not None and site(region)[1]:
        modifier = CodedConcept(code.value, code.scheme_designator, code.meaning)
        item.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [modifier]
