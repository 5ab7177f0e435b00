"""The bands as volumes: a second Comprehensive 3D SR (TID 1500) whose groups refer to the segments (TID 1411).

It is apart from the first report since some viewers (OHIF 3.13) show nothing of a report that begins with such a group.
The segments are those of a BINARY segmentation: validators refuse a segment number beside the class of label maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medxai.export import segmentation
from medxai.export.naming import NOTICE, chosen, stem
from medxai.export.placement import unplaced_reason
from medxai.export.provenance import concept, uid_of
from medxai.export.reporting import document, private, report_algorithm, report_of
from medxai.export.tracking import tracking
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result, Volume

if TYPE_CHECKING:
    from highdicom.sr import VolumetricROIMeasurementsAndQualitativeEvaluations
    from pydicom import Dataset

ROLE = "volumetric_report"


def applies(result: Result) -> str | None:
    """Return None for what becomes a segmentation of a volume, otherwise the reason why not."""
    return unplaced_reason(result) or segmentation.applies(result)


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the report of all bands that `folder` holds a segmentation of, named after the first; returns its path."""
    import pydicom

    parts: list[tuple[Explanation, Dataset]] = []
    for explanation in chosen(result, options):
        path = folder / f"{stem(segmentation.ROLE, explanation)}.dcm"
        if path.exists():
            parts.append((explanation, pydicom.dcmread(path, stop_before_pixels=True)))
    if not parts:  # only the primary map was wanted, and it has no evidence
        return []
    first = parts[0][0]
    dataset = document(
        result,
        report_of(result, [group for part in parts for group in _groups(result, *part, options)]),
        [*result.study.volume.source, *(header for _, header in parts)],
        series=uid_of(result, ROLE, first, "series"),
        # The segmentation's own identifier depends on its kind and bands.
        instance=uid_of(result, ROLE, first, *(str(header.SOPInstanceUID) for _, header in parts)),
        number=options.series_number_base + 310,
        description=f"Volumes of explanations: {NOTICE}",
    )
    return [write_dicom(folder / f"{stem(ROLE, first)}.dcm", dataset)]


def _groups(
    result: Result, explanation: Explanation, header: Dataset, options: ExportOptions
) -> Iterator[VolumetricROIMeasurementsAndQualitativeEvaluations]:
    """Yield a group per segment: volume in mm3, share of the evidence, mean and maximum of the map before scaling."""
    from highdicom.sr import (
        Measurement,
        ReferencedSegment,
        SourceSeriesForSegmentation,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )
    from pydicom.sr.codedict import codes

    volume = result.study.volume
    masks = segmentation.band_masks(explanation.normalised(), options.bands, labelmap=False)
    voxels = _voxel_mm3(volume)
    total = float(explanation.map.sum(dtype=np.float64))
    for index, low in enumerate(options.bands):
        inside = masks[..., index].astype(bool)
        here = explanation.map[inside]
        size = float(inside.sum(axis=(1, 2)) @ voxels)
        if here.size == 0:
            continue
        name, uid = tracking(result, explanation, options, low)
        measurements = [
            Measurement(name=private("evidence_share"), value=float(here.sum(dtype=np.float64)) / total,
                        unit=codes.UCUM.NoUnits),
            Measurement(name=concept(explanation.method), value=float(here.mean(dtype=np.float64)),
                        unit=codes.UCUM.NoUnits, derivation=codes.SCT.Mean),
            Measurement(name=concept(explanation.method), value=float(here.max()), unit=codes.UCUM.NoUnits,
                        derivation=codes.SCT.Maximum),
        ]  # fmt: skip
        if volume.calibrated:
            measurements.insert(0, Measurement(name=codes.SCT.Volume, value=size, unit=codes.UCUM.CubicMillimeter))
        yield VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=ReferencedSegment(
                sop_class_uid=header.SOPClassUID,
                sop_instance_uid=header.SOPInstanceUID,
                segment_number=index + 1,
                source_series=SourceSeriesForSegmentation(volume.source[0].SeriesInstanceUID),
            ),
            tracking_identifier=TrackingIdentifier(uid=uid, identifier=name),
            finding_category=codes.SCT.SpatialAndRelationalConcept,
            finding_type=concept(explanation.method),
            algorithm_id=report_algorithm(result, explanation),
            measurements=measurements,
        )


def _voxel_mm3(volume: Volume) -> npt.NDArray[np.float64]:
    """Return ``[D]`` mm3 of a voxel of each slice; at uneven distances a slice reaches halfway to its neighbours."""
    if volume.stack is None:
        return np.full(volume.shape[0], abs(float(np.linalg.det(volume.affine[:3, :3]))))
    places = np.asarray(volume.stack.distances, dtype=np.float64)
    gaps = np.diff(places) if len(places) > 1 else np.array([volume.stack.step])
    return np.convolve(np.pad(gaps, 1, mode="edge"), [0.5, 0.5], "valid") * volume.spacing[1] * volume.spacing[2]
