"""What a cine says over time: probability per frame, the frames that decide, and where the evidence peaks in them.

Born et al. 2021 (arXiv:2009.06116), sections 3.3 and 3.5 of their method: a frame counts where the probability of the
explained class is above 0.75, and where no frame's is, the most probable ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

if TYPE_CHECKING:
    from medxai.study import Explanation, FloatArray, Prediction, Volume

#: Probability above which a frame speaks for a class by itself.
DECISIVE = 0.75
#: Frames that count where none is above it.
AT_LEAST = 5
#: Neighbourhood of the maximum in which the peak is looked for again in means of 3 x 3 pixels.
_AROUND = 4
#: Share of declined frames from which a cine is worth a warning.
DECLINED = 0.25


@dataclass(frozen=True)
class FramePeak:
    """Where the evidence of one frame is strongest.

    Attributes:
        frame: index on the time axis.
        row: of the peak in the frame's pixels.
        column: of the peak.
        value: of the normalised map there, 1 is the strongest of the cine.
        depth_mm: below the upper edge of the ultrasound region; None where it is not calibrated.
        across_mm: from the left edge of the region; None likewise.
    """

    frame: int
    row: int
    column: int
    value: float
    depth_mm: float | None
    across_mm: float | None


@dataclass(frozen=True, eq=False)
class CineEvidence:
    """The course of a cine.

    Attributes:
        probabilities: ``[T, K]`` of the frames.
        decisive: frames that speak for the explained class, ascending.
        peaks: of those among them that have evidence.
        votes: ``[K]`` number of frames whose most probable class it is.
        declined: share of frames that the network calls none of its own; 0 for networks that cannot.
    """

    probabilities: FloatArray
    decisive: tuple[int, ...]
    peaks: tuple[FramePeak, ...]
    votes: npt.NDArray[np.int64]
    declined: float

    def warning(self) -> str | None:
        """In words, that many frames are none the model is for; None where they are few."""
        if self.declined < DECLINED:
            return None
        return f"{self.declined:.0%} of the frames are none that the model is for"


def cine_evidence(volume: Volume, prediction: Prediction, explanation: Explanation) -> CineEvidence | None:
    """Follow one explanation over the frames of a cine; None for what is none.

    Args:
        volume: ``THW``.
        prediction: with probabilities per frame.
        explanation: map ``[T, H, W]`` on the frames' own pixels.
    """
    if volume.axes != "THW":
        return None
    p = prediction.window_probabilities
    if p is None or len(p) != volume.shape[0]:
        return None
    decisive = decisive_frames(p[:, explanation.class_index])
    top = float(explanation.map.max(initial=0.0))
    peaks = [_peak(volume, explanation.map[t], t, top) for t in decisive if explanation.map[t].any()]
    chosen = p.argmax(axis=1)
    declined = prediction.reject in prediction.labels and (chosen == prediction.labels.index(prediction.reject or ""))
    votes = np.bincount(chosen, minlength=p.shape[1]).astype(np.int64)
    return CineEvidence(p, decisive, tuple(peaks), votes, float(np.mean(declined)))


def decisive_frames(probability: npt.ArrayLike, above: float = DECISIVE, at_least: int = AT_LEAST) -> tuple[int, ...]:
    """Return the frames that speak for a class, ascending.

    Args:
        probability: ``[T]`` of that class.
        above: of a frame that counts.
        at_least: number of the most probable ones that are returned where no frame counts.
    """
    p = np.asarray(probability, dtype=np.float64)
    found = np.flatnonzero(p > above)
    if not len(found):
        found = np.sort(np.argsort(-p, kind="stable")[:at_least])
    return tuple(int(frame) for frame in found)


def refined_peak(values: npt.NDArray[Any]) -> tuple[int, int]:
    """Return row and column of the largest mean of 3 x 3 pixels within 4 pixels of the maximum of ``[H, W]``."""
    row, column = (int(v) for v in np.unravel_index(int(values.argmax()), values.shape))
    top, left = max(0, row - _AROUND), max(0, column - _AROUND)
    # A pixel more on every side, where there is one, so that means at the edge of the part are those of the map.
    above, before = min(top, 1), min(left, 1)
    part = values[top - above : row + _AROUND + 2, left - before : column + _AROUND + 2].astype(np.float64)
    size = min(row + _AROUND + 1, values.shape[0]) - top, min(column + _AROUND + 1, values.shape[1]) - left
    means = ndimage.uniform_filter(part, 3, mode="nearest")[above : above + size[0], before : before + size[1]]
    down, right = np.unravel_index(int(means.argmax()), means.shape)
    return top + int(down), left + int(right)


def _peak(volume: Volume, values: FloatArray, frame: int, largest: float) -> FramePeak:
    row, column = refined_peak(values)
    depth = across = None
    if volume.calibrated:
        from medxai.ingest.ultrasound import calibrated_region

        region = next((calibrated_region(header) for header in volume.source[:1]), None)
        top, left = (0, 0) if region is None else (int(region.RegionLocationMinY0), int(region.RegionLocationMinX0))
        depth, across = (row - top) * volume.spacing[1], (column - left) * volume.spacing[2]
    return FramePeak(frame, row, column, float(values[row, column]) / largest, depth, across)
