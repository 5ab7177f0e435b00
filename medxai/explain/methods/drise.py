"""D-RISE: RISE for detections and segmented lesions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medxai.errors import ExplainError
from medxai.explain.mask_regression import MaskOptions, random_mask_map
from medxai.explain.masking.operator import is_volume
from medxai.explain.method import MethodInfo
from medxai.explain.similarity import DiceTarget, dice_target

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="drise",
    title="D-RISE",
    family="perturbation",
    reference="Petsiuk et al. 2021",
    passes="N F",
    graph="none",
    layer="none",
    repeats=True,
    needs="a detector or a segmentation network, or any function of the output that compares it with the clean one",
    caveat="random by design; see standard_error for how far to trust a voxel",
)


@dataclass(frozen=True)
class Options(MaskOptions):
    """Options of D-RISE, besides those of `medxai.explain.mask_regression.MaskOptions`.

    Attributes:
        grid: as published, 16 cells.
        dilate: for a class of a segmentation: margin of the lesion's box as a share of its size.
    """

    grid: int | list[int] | tuple[int, ...] = 16
    dilate: float = 0.25

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.dilate < 0:
            raise ValueError("dilate is not negative")


def attribute(run: Run, options: Options) -> Tensor:
    """RISE with the similarity to the clean detection as score (arXiv:2006.03204), 5000 masks by default.

    The target is a `medxai.explain.similarity.DetectedBox`, a `LesionDice`, any callable, or a class of a
    segmentation network, which means the Dice coefficient with the clean segmentation of that class.

    Raises:
        ExplainError: the target is a class of a classifier.
    """
    target = run.target
    if target.region is not None and target.classes is not None and not isinstance(target, DiceTarget):
        run = run.with_target(dice_target(run.logits, target.classes, None, options.dilate))
    elif target.classes is not None and not isinstance(target, DiceTarget):
        msg = "drise compares detections or segmentations; for a class of a classifier use rise"
        raise ExplainError(msg)
    samples = 1000 if is_volume(run.spatial) else 5000
    return random_mask_map(run, options, samples, score="logit", name="drise")
