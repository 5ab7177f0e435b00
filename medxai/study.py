"""What passes between the stages: frozen types, with axes and frames stated once, here.

Axes: arrays are channel-first, ``[C, *S]`` with ``S`` one of ``(H, W)``, ``(D, H, W)`` or ``(T, H, W)``.
Frame: every affine maps a voxel index ``(d, h, w, 1)``, in the order of the array axes, to LPS
millimetres at the **centre** of that voxel (PS3.3 C.7.6.2.1.1). Two-dimensional images use ``d = 0``; for
``(T, H, W)`` the first column is zero, since time is not a place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medxai.stack import Stack

if TYPE_CHECKING:
    from pydicom import Dataset

FloatArray = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Axes = Literal["HW", "DHW", "THW"]
SourceKind = Literal["dicom", "nifti", "picture", "video", "slide"]
Flag = Literal["empty", "unstable", "class_agnostic"]
Verdict = Literal["supported", "limited", "withheld"]


def image_affine(row_mm: float = 1.0, column_mm: float = 1.0) -> Affine:
    """Affine of an image without a place in a patient: columns along +x, rows along +y, no depth."""
    affine = np.zeros((4, 4))
    affine[1, 1], affine[0, 2], affine[3, 3] = row_mm, column_mm, 1.0
    return affine


@dataclass(frozen=True, eq=False)
class Volume:
    """Pixels in physical units with their place in the patient.

    Attributes:
        pixels: ``[C, *S]`` float32; CT in Hounsfield units, ultrasound colour in 0..255, others as stored
            after the modality rescale.
        axes: names of the axes of ``S``.
        affine: 4x4, index ``(d, h, w)`` -> LPS mm (see the module).
        positions: ``[D, 3]`` LPS mm, centre of the first voxel of each source slice in the order of the
            ``D`` axis; None when the image has no place in a patient.
        frame_of_reference: FrameOfReferenceUID, or None when the source has none.
        modality: DICOM modality (``CT``, ``MR``, ``US``) or ``OT`` when unknown.
        body_part: BodyPartExamined in upper case, or empty.
        calibrated: True when the spacing of the affine is in real millimetres.
        source: DICOM headers without pixel data: one per slice in the order of the ``D`` axis, or a single
            one for a multi-frame object; empty for other formats.
        frame_numbers: 1-based frame of the single multi-frame source for each slice or time point; empty
            when every slice is its own instance.
        frame_seconds: seconds between frames of ``THW``; None when unknown.
        stack: the straight grid through slices that are none; None for a regular grid. The affine's first column is
            then the mean way from slice to slice, and `positions` tell where each of them lies.
    """

    pixels: FloatArray
    axes: Axes
    affine: Affine
    modality: str
    positions: Affine | None = None
    frame_of_reference: str | None = None
    body_part: str = ""
    calibrated: bool = True
    source: tuple[Dataset, ...] = ()
    frame_numbers: tuple[int, ...] = ()
    frame_seconds: float | None = None
    stack: Stack | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape ``S``."""
        return tuple(self.pixels.shape[1:])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxel centres along the index axes ``(d, h, w)``.

        The first entry is 0 for ``HW`` and ``THW``.
        """
        d, h, w = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return (d, h, w)


@dataclass(frozen=True)
class SourceFiles:
    """What discovery finds: the files of one series or image, not yet decoded.

    Attributes:
        key: pseudonymous key of the study, stable for the same content.
        kind: how the files are read.
        files: paths in any order.
        part: what sets these files apart from the rest of their series, where that is more than one volume.
    """

    key: str
    kind: SourceKind
    files: tuple[Path, ...]
    part: str = ""


@dataclass(frozen=True, eq=False)
class Study:
    """One ingested series with its provenance.

    Attributes:
        key: pseudonymous key (12 hex digits), used in logs, file names and scheduler rows.
        kind: format of the source.
        input_sha256: hash of the source files' bytes, independent of order and names.
        volume: the decoded image.
        notes: what ingestion had to decide (``InstanceNumber descending``, ``MONOCHROME1 inverted``).
    """

    key: str
    kind: SourceKind
    input_sha256: str
    volume: Volume
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Confidence:
    """How sure a network is: 1 when answers that should not differ do not, 0 when half of them say the opposite.

    ``1 - min(sd, 0.5) / 0.5`` with the standard deviation of a class's probability over repeated answers
    (Born et al. 2021, arXiv:2009.06116).

    Attributes:
        aleatoric: per class, over changed versions of the pictures.
        epistemic: per class, over passes with dropout; NaN for a network without.
        passes: answers of each kind.
        pictures: images or frames that were asked.
        low: below this the decision is not to be relied on.
    """

    aleatoric: tuple[float, ...]
    epistemic: tuple[float, ...]
    passes: int
    pictures: int
    low: float

    def of(self, index: int) -> float:
        """Mean of both kinds for class `index`; of the one that there is."""
        kinds = [value for value in (self.aleatoric[index], self.epistemic[index]) if value == value]
        return sum(kinds) / len(kinds) if kinds else float("nan")


@dataclass(frozen=True, eq=False)
class SlideTiles:
    """The tiles that a slide was decided by, in the order of `Prediction.window_logits`.

    Attributes:
        shape: rows and columns of the whole grid of tiles.
        numbers: ``[n]`` place in the grid, counted row by row.
        boxes: ``[n, 4]`` top, left, bottom, right in pixels of the finest level.
        tissue: ``[n]`` share of the tile that is tissue.
        flags: of each tile, ``blurred``, ``pen``, ``fold`` and ``unlike`` (those of training) with spaces between;
            mostly empty.
        failed: tiles without a part in the decision, and why: they could not be read, or were to be left out.
        shown: positions of the tiles in `pictures`, group by group.
        shown_as: group of each in words: ``most tumour``, the most so first, ``least tumour``, ``least sure``.
        pictures: ``[m, s, s, 3]`` RGB 0..255.
        attention: ``[n]`` share of each tile in the decision, which sums to 1; None unless attention decided.
        trust: position and report of the primary map of each tile that was judged, the most evident first.
    """

    shape: tuple[int, int]
    numbers: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    tissue: npt.NDArray[np.float32]
    flags: tuple[str, ...]
    failed: tuple[str, ...]
    shown: npt.NDArray[np.int64]
    shown_as: tuple[str, ...]
    pictures: npt.NDArray[np.uint8]
    attention: FloatArray | None = None
    trust: tuple[tuple[int, TrustReport], ...] = ()


@dataclass(frozen=True, eq=False)
class Prediction:
    """A classifier's decision on one study.

    Attributes:
        labels: class names in output order.
        logits: ``[n_classes]`` float32, after fusion over windows or frames.
        probabilities: ``[n_classes]`` float32.
        index: the decided class.
        model: bundle name and version (``breast_us 1.0.0``).
        model_sha256: hash of the bundle.
        window_logits: ``[n_windows, n_classes]`` logits before fusion.
        window_probabilities: ``[n_windows, n_classes]`` their probabilities.
        confidence: how sure the network is, where the bundle asks for it.
        reject: label that says that the picture is none the model is for.
        tiles: of a slide that was decided tile by tile.
    """

    labels: tuple[str, ...]
    logits: FloatArray
    probabilities: FloatArray
    index: int
    model: str
    model_sha256: str
    window_logits: FloatArray | None = None
    window_probabilities: FloatArray | None = None
    confidence: Confidence | None = None
    reject: str | None = None
    tiles: SlideTiles | None = None

    @property
    def label(self) -> str:
        """Name of the decided class."""
        return self.labels[self.index]

    @property
    def probability(self) -> float:
        """Probability of the decided class."""
        return float(self.probabilities[self.index])


@dataclass(frozen=True, eq=False)
class Explanation:
    """One class activation map on three grids; larger always means more evidence for the class.

    Attributes:
        method: registry name (``gradcam``, ``hirescam``).
        layer: dotted name of the target layer.
        class_index: class explained.
        class_label: its name.
        score: the explained logit.
        raw: ``[n_windows, *s]`` signed maps on the layer's own grid, one per window, never normalised.
        input_map: ``[*S']`` non-negative fused map on the prepared (input) grid.
        map: ``[*S]`` non-negative map on the original grid of the study, not normalised.
        affine: affine of `map`, equal to the study's.
        input_affine: affine of `input_map`, index -> LPS mm.
        cell_mm: size in mm of one cell of the layer grid along ``(d, h, w)``; 0 where there is no axis.
        model_sha256: hash of the bundle.
        parameters: method parameters, JSON-serialisable.
        flags: ``empty`` (no positive evidence), ``unstable``, ``class_agnostic``.
        reason: why a flag was set, in words.
    """

    method: str
    layer: str
    class_index: int
    class_label: str
    score: float
    raw: FloatArray
    input_map: FloatArray
    map: FloatArray
    affine: Affine
    input_affine: Affine
    cell_mm: tuple[float, float, float]
    model_sha256: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    flags: frozenset[Flag] = frozenset()
    reason: str = ""

    def normalised(self) -> FloatArray:
        """Return `map` divided by its maximum over the whole study: 0..1, 1 most important.

        Scope ``sample`` of Draelos and Carin and others: never per slice. An all-zero map stays zero.
        """
        top = float(self.map.max(initial=0.0))
        return self.map if top <= 0 else (self.map / np.float32(top)).astype(np.float32, copy=False)


@dataclass(frozen=True)
class TrustReport:
    """What was measured of one explanation, and what follows for showing it.

    Attributes:
        verdict: ``supported`` (passes), ``limited`` (shown with its limits), ``withheld`` (not sent as a map).
        reasons: in words, the weightiest first; never empty unless supported.
        figures: measured values by name (`medxai.trust.gate.figures.FIGURES`); NaN where one is not defined.
        index: 0..1, larger for explanations like the genuine ones of the calibration; NaN without one.
        limited_below: index below which the verdict is at most limited.
        withheld_below: index below which the map is withheld.
        calibration: hash of the calibration, empty when the bundle has none.
        masking: operators the figures were measured with.
        forwards: images sent through the network for it.
        agreement: likeness with the map of each other method family on the same case (Spearman); NaN where one has
            no evidence. Reported, no part of the verdict.
    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    index: float = float("nan")
    limited_below: float = float("nan")
    withheld_below: float = float("nan")
    calibration: str = ""
    masking: tuple[str, ...] = ()
    forwards: int = 0
    agreement: Mapping[str, float] = field(default_factory=dict)

    @property
    def consensus(self) -> float:
        """Mean agreement with the other families; NaN without one."""
        known = [value for value in self.agreement.values() if value == value]
        return sum(known) / len(known) if known else float("nan")


@dataclass(frozen=True, eq=False)
class Result:
    """All that exporters need: the study, the decision, its explanations and how they were made.

    Attributes:
        study: the ingested study.
        prediction: the decision.
        explanations: maps; the first one is the primary.
        config_sha256: hash of the settings that influence outputs.
        model_window: grey values between which the model tells values apart, where it uses a fixed window; pictures
            choose theirs after it.
        created: ISO 8601 date and time of the source acquisition or, when unknown, a fixed date, so that
            outputs are a function of inputs alone.
        trust: one report for each explanation, or none when they were not judged.
    """

    study: Study
    prediction: Prediction
    explanations: tuple[Explanation, ...]
    config_sha256: str
    created: str
    model_window: tuple[float, float] | None = None
    trust: tuple[TrustReport, ...] = ()

    def trust_of(self, explanation: Explanation) -> TrustReport | None:
        """The report of one of the explanations; None when they were not judged."""
        for item, report in zip(self.explanations, self.trust, strict=False):
            if item is explanation:
                return report
        return None

    @property
    def identity(self) -> tuple[str, str, str]:
        """Input hash, model hash and configuration hash: what derived UIDs depend on."""
        return (self.study.input_sha256, self.prediction.model_sha256, self.config_sha256)


@dataclass(frozen=True)
class OutputFile:
    """One written file: role (``parametric_map``), path relative to the run folder and hash."""

    role: str
    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What a stage hands on instead of arrays, and what lies beside the outputs as ``manifest.json``."""

    key: str
    input_sha256: str
    model: str
    model_sha256: str
    config_sha256: str
    software: str
    prediction: Mapping[str, float]
    decided: str
    explanations: tuple[Mapping[str, Any], ...]
    outputs: tuple[OutputFile, ...]
    notes: tuple[str, ...] = ()
