"""A subject's evidence on a DICOM series of the same subject: the result that the exporters of objects take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import MismatchError
from medxai.export.brain.subject_view import SubjectView
from medxai.prepare.brain.image import Image, nearest
from medxai.prepare.brain.onto import check_reach, computed, resampled_within
from medxai.study import Affine, Explanation, Flag, Prediction, Result, Study

#: Name of the method in objects and file names.
METHOD = "synergistic"


@dataclass(frozen=True, eq=False)
class OnSeries:
    """Evidence on the grid of a series.

    Attributes:
        result: study, decision and the ALFF map; a map of zeros where ALFF is missing.
        labels: ``[D, H, W]`` regions of the atlas there, 0 or n for the nth; None without an atlas.
        note: how the space of the features and the patient's were brought together.
    """

    result: Result
    labels: npt.NDArray[np.int32] | None
    note: str

    @property
    def explanation(self) -> Explanation:
        """The ALFF map."""
        return self.result.explanations[0]


def on_series(
    view: SubjectView, study: Study, transform: Affine | None, created: str, parameters: Mapping[str, Any],
    layer: str, *, place: bool = True,
) -> OnSeries:  # fmt: skip
    """Bring map and atlas into the patient's space.

    Args:
        view: the subject.
        study: an MR series of it.
        transform: 4x4 from the patient's LPS to that of the features; None where they are one space.
        created: ISO date and time for the objects.
        parameters: of the map.
        layer: whose activations it is of.
        place: bring the map there; else it is a map of zeros, for a report that shows no place.

    Raises:
        MismatchError: the features lie in a template's space and there is no transform, the series is no regular
            volume of MR, or the map hardly lies in it.
    """
    volume, found, affine = study.volume, view.evidence, view.features.affine
    if place:
        refuse_template(view, transform)
    if volume.modality != "MR" or volume.axes != "DHW" or not volume.frame_of_reference:
        raise MismatchError("the series is no MR volume with a frame of reference", study=view.features.subject)
    if volume.stack is not None:
        raise MismatchError("the slices of the series are no regular grid", study=view.features.subject)
    shape = (int(volume.shape[0]), int(volume.shape[1]), int(volume.shape[2]))
    values, labels = np.zeros(shape, np.float32), None
    own = found.maps.get("alff")
    if place and own is not None and affine is not None and view.features.alff is not None:
        image = Image(own, affine)
        check_reach(image, shape, volume.affine, transform, "the series")
        values = resampled_within(image, computed(view.features.alff), shape, volume.affine, transform)
    if place and view.labels is not None and affine is not None:
        there = volume.affine if transform is None else transform @ volume.affine
        labels = nearest(Image(view.labels, affine), shape, there).astype(np.int32)
    flags: frozenset[Flag] = frozenset() if values.any() else frozenset(("empty",))
    cells = found.cells.get("alff")
    cell = (0.0, 0.0, 0.0)
    if cells and own is not None and affine is not None:
        sizes = np.linalg.norm(affine[:3, :3], axis=0) * np.array(own.shape) / np.array(cells)
        cell = (float(sizes[0]), float(sizes[1]), float(sizes[2]))
    explanation = Explanation(
        method=METHOD, layer=layer, class_index=found.positive, class_label=found.labels[found.positive],
        score=found.logits[found.positive], raw=values[None], input_map=values if own is None else own, map=values,
        affine=volume.affine, input_affine=volume.affine if affine is None else affine, cell_mm=cell,
        model_sha256=view.model_sha256, parameters=dict(parameters), flags=flags,
        reason="ALFF is missing" if own is None else "",
    )  # fmt: skip
    prediction = Prediction(
        labels=found.labels, logits=np.array(found.logits, np.float32),
        probabilities=np.array(found.probabilities, np.float32), index=found.decided, model=view.model,
        model_sha256=view.model_sha256,
    )  # fmt: skip
    result = Result(study, prediction, (explanation,), view.config_sha256, created)
    note = "features and series are in the scanner's space of the subject"
    if not place:
        note = "the map is in a template's space and was not brought to the patient"
    elif transform is not None:
        note = "brought from the features' space to the patient by the rigid or affine transform that was given"
    return OnSeries(result, labels, note)


def refuse_template(view: SubjectView, transform: Affine | None) -> None:
    """Refuse to place what lies in a template's space on a patient.

    Raises:
        MismatchError: no transform was given.
    """
    if view.template and transform is None:
        words = "the features lie in a template's space and the series in the patient's: no object is placed on it"
        raise MismatchError(
            f"{words}; give the rigid or affine transform of ITK with --transform", study=view.features.subject
        )
