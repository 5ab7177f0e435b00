"""Whether gradient directions fit the image: fibres go on in the direction they point to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.prepare.brain.dwi import Dwi
from medxai.prepare.brain.tensor import Tensor

Array = npt.NDArray[np.float64]
#: Voxels that count have at least this anisotropy, and so many of them are needed for a judgement.
_FIBRE_FA, _LEAST_VOXELS = 0.3, 60
#: Another frame is clearly better when it is by so many standard errors and so much coherence.
_CLEARLY, _LEAST_GAIN = 4.0, 0.01
_AXES = "dhw"


@dataclass(frozen=True)
class Frame:
    """An exchange of the voxel axes and a flip of one of them.

    Attributes:
        order: the axis from which each of ``(d, h, w)`` is taken.
        flipped: axis whose sign is turned; None for none. Two flips are one of the third, since tensors have no sign.
    """

    order: tuple[int, int, int]
    flipped: int | None

    @property
    def matrix(self) -> Array:
        """3x3, to be applied to directions along ``(d, h, w)``."""
        made = np.eye(3)[list(self.order)]
        if self.flipped is not None:
            made[self.flipped] *= -1
        return made

    @property
    def words(self) -> str:
        """What is done, with the names NIfTI and DICOM readers know: x is w, y is h, z is d."""
        names = {"d": "z", "h": "y", "w": "x"}
        parts = []
        if self.order != (0, 1, 2):
            pairs = [f"{names[_AXES[n]]} from {names[_AXES[o]]}" for n, o in enumerate(self.order) if n != o]
            parts.append("axes exchanged (" + ", ".join(pairs) + ")")
        if self.flipped is not None:
            parts.append(f"{names[_AXES[self.flipped]]} flipped")
        return " and ".join(parts) or "as they are"


FRAMES = tuple(
    Frame((order[0], order[1], order[2]), flip) for order in permutations(range(3)) for flip in (None, 0, 1, 2)
)


def coherence(tensor: Tensor, spacing: Array) -> tuple[Array, npt.NDArray[np.float64]]:
    """Fibre coherence for each of `FRAMES`: mean and standard error of its difference to the first.

    From every anisotropic voxel one goes to the neighbour (of 26) to which its principal direction points, forwards
    and backwards, and compares the two directions by the absolute cosine (after Schilling et al. 2019). An exchange
    or flip turns all directions alike, so that only the neighbour changes and one fit serves all frames.

    Returns:
        ``[24]`` coherence and ``[24, 2]`` gain over the directions as they are and its standard error; NaN where too
        few voxels are anisotropic.
    """
    strong = (tensor.fa > _FIBRE_FA) & tensor.mask
    strong_inner = strong.copy()
    for axis in range(3):
        ends = [slice(None)] * 3
        for end in (0, -1):
            ends[axis] = slice(end, None if end else 1)
            strong_inner[tuple(ends)] = False
    index = np.argwhere(strong_inner)
    steps = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1) if (i, j, k) > (0, 0, 0)])
    units = steps * spacing
    units = units / np.linalg.norm(units, axis=1)[:, None]
    if len(index) < _LEAST_VOXELS:
        return np.full(len(FRAMES), np.nan), np.full((len(FRAMES), 2), np.nan)
    own = tensor.principal[tuple(index.T)].astype(np.float64)
    scores = np.zeros((len(FRAMES), len(index)))
    for n, frame in enumerate(FRAMES):
        best = np.abs((own @ frame.matrix.T) @ units.T).argmax(1)
        for sign in (1, -1):
            near = index + sign * steps[best]
            other = tensor.principal[tuple(near.T)]
            # A neighbour that is no fibre shows as much as one across: the way leads out of the bundle.
            scores[n] += 0.5 * np.abs((own * other).sum(1)) * strong[tuple(near.T)]
    gains = scores - scores[0]
    errors = gains.std(1, ddof=1) / np.sqrt(len(index) / 4)  # neighbours share their neighbours
    return scores.mean(1), np.column_stack([gains.mean(1), errors])


def check_gradients(dwi: Dwi, tensor: Tensor, *, fix: bool) -> tuple[Dwi, Tensor, str]:
    """Compare the directions as they are with all exchanges and flips of axes.

    Args:
        dwi: volumes with their gradients.
        tensor: fitted to them.
        fix: use a clearly better frame instead of refusing.

    Returns:
        Both, changed where that was asked for, and a note on what was found.

    Raises:
        IngestError: another frame is clearly better; says which axis.
    """
    scores, gains = coherence(tensor, dwi.spacing)
    if np.isnan(scores).any():
        return dwi, tensor, f"directions not checked: under {_LEAST_VOXELS} voxels are anisotropic"
    best = int(scores.argmax())
    gain, error = gains[best]
    if best == 0 or gain < max(_CLEARLY * error, _LEAST_GAIN):
        return dwi, tensor, f"directions fit the image (coherence {scores[0]:.3f}, best other {scores[1:].max():.3f})"
    frame = FRAMES[best]
    words = f"gradient directions fit the image better with {frame.words}: coherence {scores[best]:.3f}"
    words += f" instead of {scores[0]:.3f}"
    if not fix:
        raise IngestError(f"{words}; correct bvec, or state fix_gradients", study=dwi.key)
    turned = replace(dwi, directions=dwi.directions @ frame.matrix.T, notes=(*dwi.notes, words))
    principal = (tensor.principal @ frame.matrix.T.astype(np.float32)).astype(np.float32)
    return turned, replace(tensor, principal=principal), f"{words}; used so"
