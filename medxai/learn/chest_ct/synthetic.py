"""Slabs of synthetic chest CT with their truth, prepared once and kept in a file.

Cases are numbered by seed, so that training, which draws from `TRAIN_SEED`, and testing, from `TEST_SEED`, never share
a patient. The field of view is the slab itself: a random height within the lungs, the label what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from medxai.errors import SettingsError
from medxai.files import atomic_path
from medxai.identity import sha256_json
from medxai.learn.chest_ct.spec import SPEC
from medxai.predict.augment import Augmentation, augment
from medxai.prepare.intensity import map_intensity
from medxai.prepare.lungs import lungs
from medxai.prepare.prepare import lungs_alone
from medxai.study import Volume

if TYPE_CHECKING:
    from sample_cases.synthetic_ct import SyntheticCt

LABELS = ("normal", "ground_glass", "consolidation")
TRAIN_SEED, TEST_SEED = 1_000_000, 5_000_000
#: Heights of the middle of a slab, mm around the centre of the lungs.
HEIGHTS_MM = (-65.0, 65.0)
#: A finding of which the slab shows less, in ml, decides nothing; such slabs are drawn anew.
LEAST_ML = 8.0
AUGMENTATION = Augmentation(flip_axes=(2,), rotate_degrees=8, scale=0.1, shift=0.05, gain=0.05, noise=0.02)

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Slabs:
    """Prepared slabs.

    Attributes:
        pixels: ``[N, 1, D, H, W]`` float16, lungs alone, HU of `SPEC` as 0..1.
        labels: ``[N]`` index into `LABELS`.
        truth: ``[N, D, H, W]`` uint8, as of `SyntheticCt`.
        lungs: ``[N, D, H, W]`` bool.
    """

    pixels: npt.NDArray[np.float16]
    labels: npt.NDArray[np.int64]
    truth: npt.NDArray[np.uint8]
    lungs: npt.NDArray[np.bool_]

    def sampler(self, *, changed: bool, shape: Sequence[int] | None = None) -> Callable[..., torch.Tensor]:
        """Inputs for `medxai.learn.loop.fit`: a function of indices and a generator.

        Args:
            changed: with random changes, as in training.
            shape: smaller input ``(D, H, W)``, by the mean of whole blocks of voxels.
        """

        def sample(indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
            x = torch.from_numpy(self.pixels[list(indices)].astype(np.float32))
            if changed:
                x = augment(x, AUGMENTATION, generator, fill=0.0)
            if shape is not None and tuple(x.shape[2:]) != tuple(shape):
                x = torch.nn.functional.adaptive_avg_pool3d(x, list(shape))  # type: ignore[arg-type]
            return x

        return sample


def slab(seed: int, window: Sequence[int], spacing_mm: Sequence[float]) -> SyntheticCt:
    """One slab; the class that is aimed at goes round with the seed.

    Raises:
        SettingsError: ``sample_cases`` cannot be imported.
    """
    try:
        from sample_cases.synthetic_ct import TRUTH, synthetic_ct
    except ImportError as error:
        msg = "synthetic CT comes from sample_cases/; run from the source checkout"
        raise SettingsError(msg) from error
    random = np.random.default_rng([seed, 5])
    aim = LABELS[seed % 3]
    shape, spacing = (window[0], window[1], window[2]), (spacing_mm[0], spacing_mm[1], spacing_mm[2])
    for attempt in range(50):
        height = float(random.uniform(*HEIGHTS_MM))
        case = synthetic_ct(seed * 50 + attempt, shape, spacing, aim, offset_mm=(height, 0.0, 0.0))
        shown = np.bincount(case.truth.ravel(), minlength=4) * np.prod(spacing) / 1000
        enough = aim == "normal" or shown[TRUTH[aim]] >= LEAST_ML
        if case.label == aim and enough and lungs(_volume(case)) is not None:
            return case
    msg = f"no slab of {aim} in 50 draws of seed {seed}"
    raise SettingsError(msg)


def draw(n: int, first_seed: int, window: Sequence[int], spacing_mm: Sequence[float], say: Say = print) -> Slabs:
    """Draw `n` slabs, as many of each class."""
    count = (n, *window)
    pixels, truth, lungs = np.empty(count, np.float16), np.empty(count, np.uint8), np.empty(count, np.bool_)
    labels = np.empty(n, np.int64)
    for number in range(n):
        case = slab(first_seed + number, window, spacing_mm)
        shown = lungs_alone(_volume(case), SPEC.fill).pixels[0]
        pixels[number] = map_intensity(shown, SPEC.intensity)
        truth[number], lungs[number], labels[number] = case.truth, case.lungs, LABELS.index(case.label)
        if (number + 1) % 100 == 0:
            say(f"synthetic CT: {number + 1} of {n} slabs")
    return Slabs(pixels[:, None], labels, truth, lungs)


def slabs(
    n: int, first_seed: int, window: Sequence[int], spacing_mm: Sequence[float], cache: Path, say: Say = print
) -> Slabs:
    """`draw`, or what an earlier call with the same arguments left in the folder `cache`."""
    key = sha256_json([n, first_seed, list(window), list(spacing_mm), _version()])[:12]
    path = cache / f"slabs_{first_seed}_{n}_{key}.npz"
    if not path.exists():
        made = draw(n, first_seed, window, spacing_mm, say)
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, pixels=made.pixels, labels=made.labels, truth=made.truth, lungs=made.lungs)
    with np.load(path) as stored:
        return Slabs(stored["pixels"], stored["labels"], stored["truth"], stored["lungs"])


def _volume(case: SyntheticCt) -> Volume:
    return Volume(case.hu[None], "DHW", case.affine, "CT")


def _version() -> str:
    """Hash of a case: another generator makes other slabs, and the cache must know."""
    case = slab(0, (8, 32, 32), (10.0, 10.0, 10.0))
    shown = lungs_alone(_volume(case), SPEC.fill).pixels.tolist()
    return sha256_json([shown, SPEC.model_dump(mode="json")])[:12]
