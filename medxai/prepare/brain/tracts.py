"""Structural connectivity: deterministic tracts between the regions of an atlas, through dipy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import MismatchError
from medxai.prepare.brain.atlas import Placed
from medxai.prepare.brain.dwi import UNWEIGHTED_B, Dwi
from medxai.prepare.brain.settings import DiffusionOptions
from medxai.prepare.brain.tensor import Tensor, gradient_table_of

#: Steps of a tract in mm, its sharpest turn in degrees from step to step, and its shortest length in mm.
_STEP_MM, _TURN_DEGREES, _SHORTEST_MM = 0.5, 30.0, 5.0
#: Constant solid angle ODFs need enough directions for their harmonics of order four (15) with some to spare.
_CSA_DIRECTIONS = 28


@dataclass(frozen=True, eq=False)
class Connectome:
    """Structural connectivity of N regions.

    Attributes:
        counts: ``[N, N]`` tracts that end in both regions, symmetric, zero diagonal.
        fa: ``[N, N]`` mean over those tracts of the mean fractional anisotropy along them; zero without tracts.
        tracts: all that were long enough.
        joined: of these, how many join two regions.
    """

    counts: npt.NDArray[np.int64]
    fa: npt.NDArray[np.float32]
    tracts: int
    joined: int


def structural_connectivity(dwi: Dwi, tensor: Tensor, placed: Placed, options: DiffusionOptions) -> Connectome:
    """Follow the main direction from the centre of every anisotropic voxel both ways, and count where tracts end.

    An end belongs to the nearest region within `reach_mm`, since tracts stop where the cortex begins. Tracts are
    followed along voxel axes in mm, so that oblique and anisotropic grids need no care, and without chance: the same
    scan gives the same matrix.

    Args:
        dwi: volumes with their gradients.
        tensor: fitted to them.
        placed: labels on the same grid.
        options: thresholds, and the model whose peaks are followed.

    Raises:
        MismatchError: a probabilistic atlas, nothing to start from, or too few directions for the model.
    """
    from dipy.tracking.local_tracking import LocalTracking
    from dipy.tracking.stopping_criterion import ThresholdStoppingCriterion
    from scipy import ndimage

    if placed.atlas.probabilistic:
        raise MismatchError("tracts end in labels; a probabilistic atlas has none", study=dwi.key)
    spacing = dwi.spacing
    affine = np.diag([*spacing, 1.0])
    seeds = np.argwhere((tensor.fa > options.seed_fa) & tensor.mask) * spacing
    if len(seeds) == 0:
        raise MismatchError(f"no voxel has a fractional anisotropy above {options.seed_fa:g}", study=dwi.key)
    stop = ThresholdStoppingCriterion(tensor.fa.astype(np.float64), options.stop_fa)
    tracking = LocalTracking(_directions(dwi, tensor, options), stop, seeds, affine, step_size=_STEP_MM, max_cross=1)
    far, nearest = ndimage.distance_transform_edt(placed.labels == 0, sampling=spacing, return_indices=True)
    region = np.where(far <= options.reach_mm, placed.labels[tuple(nearest)], 0)
    count = len(placed.atlas.labels)
    counts = np.zeros((count, count), np.int64)
    sums = np.zeros((count, count))
    tracts = joined = 0
    for line in tracking:
        if (len(line) - 1) * _STEP_MM < _SHORTEST_MM:
            continue
        tracts += 1
        first, last = (region[_voxel(line[end], spacing, region.shape)] for end in (0, -1))
        if not first or not last or first == last:
            continue
        joined += 1
        along = ndimage.map_coordinates(tensor.fa, (np.asarray(line) / spacing).T, order=1, mode="nearest").mean()
        a, b = sorted((int(first) - 1, int(last) - 1))
        counts[a, b] += 1
        sums[a, b] += along
    counts += counts.T
    sums += sums.T
    fa = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0).astype(np.float32)
    return Connectome(counts, fa, tracts, joined)


def _voxel(point: npt.NDArray[Any], spacing: npt.NDArray[np.float64], shape: tuple[int, ...]) -> tuple[int, ...]:
    place = np.rint(np.asarray(point) / spacing).astype(int)
    return tuple(int(min(max(p, 0), n - 1)) for p, n in zip(place, shape, strict=True))


def _directions(dwi: Dwi, tensor: Tensor, options: DiffusionOptions) -> Any:
    """EuDX direction getter (Garyfallidis 2012) over the peaks of each voxel."""
    from dipy.data import get_sphere
    from dipy.direction.peaks import PeaksAndMetrics, peaks_from_model

    sphere = get_sphere(name="repulsion724")
    inside = tensor.mask & (tensor.fa > options.stop_fa)
    if options.model == "csa":
        from dipy.reconst.shm import CsaOdfModel

        weighted = int((dwi.b > UNWEIGHTED_B).sum())
        if weighted < _CSA_DIRECTIONS:
            words = (
                f"{weighted} weighted volumes are too few for constant solid angle ODFs, which need {_CSA_DIRECTIONS}"
            )
            raise MismatchError(f"{words}; use the tensor", study=dwi.key)
        model = CsaOdfModel(gradient_table_of(dwi), sh_order_max=4)
        getter = peaks_from_model(
            model, dwi.data, sphere, relative_peak_threshold=0.5, min_separation_angle=25, mask=inside, npeaks=3
        )
    else:
        getter = PeaksAndMetrics()
        getter.sphere = sphere
        shape = tensor.fa.shape
        indices = np.full((*shape, 1), -1, np.int32)
        cosines = np.abs(tensor.principal[inside].astype(np.float64) @ sphere.vertices.T)
        indices[inside, 0] = cosines.argmax(1)
        getter.peak_indices = indices
        getter.peak_values = np.where(inside, tensor.fa, 0)[..., None].astype(np.float64)
        getter.peak_dirs = tensor.principal[..., None, :].astype(np.float64)
    getter.ang_thr = _TURN_DEGREES
    # The peaks' own measure, which may be zero beside a strong one, decides no more than the anisotropy does.
    getter.qa_thr = 1e-4
    getter.total_weight = 0.5
    return getter
