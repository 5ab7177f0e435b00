"""RISE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medxai.explain.mask_regression import MaskOptions, random_mask_map
from medxai.explain.masking.operator import is_volume
from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="rise",
    title="RISE",
    family="perturbation",
    reference="Petsiuk et al. 2018",
    passes="N F",
    graph="none",
    layer="none",
    repeats=True,
    caveat="random by design; see standard_error for how far to trust a voxel",
)


@dataclass(frozen=True)
class Options(MaskOptions):
    """Options of RISE, besides those of `medxai.explain.mask_regression.MaskOptions`.

    Attributes:
        score: ``prob`` (as published), ``logit``, or ``auto``: the probability where the target is a class of a
            classifier, else the target's own score.
    """

    score: str = "auto"

    def __post_init__(self) -> None:
        """Check names."""
        super().__post_init__()
        if self.score not in ("auto", "prob", "logit"):
            raise ValueError(f"score is auto, prob or logit, not {self.score!r}")


def attribute(run: Run, options: Options) -> Tensor:
    """Covariance of score and mask over the mask's variance, at each voxel (arXiv:1806.07421).

    By default 4000 masks in a plane and 1000 in a volume or video. The published map is this one with its mean
    left in, which only adds noise.
    """
    score = options.score
    if score == "auto":
        score = "prob" if run.target.classes is not None and run.target.region is None else "logit"
    run.report["score"] = score
    return random_mask_map(run, options, 1000 if is_volume(run.spatial) else 4000, score=score, name="rise")
