"""What LIME and KernelSHAP share: segments, images with some of them removed, and how well a linear fit holds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medxai.explain.masking.masker import Masker, check_operator, check_score, read_score
from medxai.explain.masking.operator import is_volume, voxel_size
from medxai.explain.supervoxels import blocks, supervoxels

if TYPE_CHECKING:
    from medxai.explain.run import Run

#: A linear fit that explains less of the variance than this says little about the network.
UNRELIABLE = 0.3


@dataclass(frozen=True)
class SegmentOptions:
    """Options of methods that remove segments.

    Attributes:
        segments: about how many; 0 for 100 in a plane and 200 in a volume.
        kind: ``supervoxels`` of like intensity, or ``blocks``.
        compactness: of supervoxels: weight of distance against intensity.
        samples: images with segments removed; 0 for 1000, and at least 5 for each segment.
        score: ``logit`` or ``prob``.
        masking: operator in place of the call's.
    """

    segments: int = 0
    kind: str = "supervoxels"
    compactness: float = 0.5
    samples: int = 0
    score: str = "logit"
    masking: str | None = None

    def __post_init__(self) -> None:
        """Check ranges and names."""
        if self.segments < 0 or self.segments == 1:
            raise ValueError("segments is 0 for the default, or at least 2")
        if self.samples < 0:
            raise ValueError("samples is not negative")
        if self.kind not in ("supervoxels", "blocks"):
            raise ValueError(f"kind is supervoxels or blocks, not {self.kind!r}")
        if self.compactness <= 0:
            raise ValueError("compactness is positive")
        check_score(self.score)
        check_operator(self.masking)

    def sample_count(self, segments: int) -> int:
        """Images for that many segments."""
        return self.samples or max(1000, 5 * segments)


class Coalitions:
    """Segments of every sample and the scores of images that keep some of them.

    Args:
        run: what is asked of which images.
        options: see `SegmentOptions`.
        name: of the method, under which outputs are remembered for other targets.

    Attributes:
        labels: ``[B, *S]`` segment of each voxel, from 0.
        counts: segments of each sample.
    """

    def __init__(self, run: Run, options: SegmentOptions, name: str) -> None:
        self._run, self._options, self._name = run, options, name
        count = options.segments or (200 if is_volume(run.spatial) else 100)
        self.labels = torch.stack(
            [
                blocks(run.spatial, count, spacing)
                if options.kind == "blocks"
                else supervoxels(image, count, spacing, compactness=options.compactness)
                for image, spacing in zip(run.x, voxel_size(run).tolist(), strict=True)
            ]
        )
        self.counts = [int(n) + 1 for n in self.labels.flatten(1).amax(1)]
        self._masker = Masker(run, options.masking)
        run.report["segments"] = torch.tensor(self.counts)

    @property
    def clean(self) -> Tensor:
        """Score ``[B]`` of the whole image."""
        return read_score(self._run.target, self._run.logits, None, self._options.score).float().cpu()

    def scores(self, kept: Sequence[Tensor]) -> list[Tensor]:
        """Scores ``[n_b]`` of each sample's coalitions.

        Args:
            kept: for each sample ``[n_b, segments]`` bool, True where a segment is kept.
        """
        run, width = self._run, max(self.counts)
        sizes = [len(z) for z in kept]
        rows = torch.arange(len(kept)).repeat_interleave(torch.tensor(sizes))
        padded = torch.cat([torch.nn.functional.pad(z.float(), (0, width - z.shape[1])) for z in kept])
        flat = self.labels.flatten(1)
        found = []
        for start in range(0, len(rows), run.samples_at_once):
            which = rows[start : start + run.samples_at_once]
            masks = padded[start : start + len(which)].gather(1, flat[which]).view(-1, *run.spatial)
            key: Hashable = (self._name, self._options, len(rows), start)
            outputs = self._masker.outputs(masks, which, key)
            found.append(read_score(run.target, outputs, which, self._options.score).float().cpu())
        return list(torch.split(torch.cat(found), sizes))

    def paint(self, coefficients: Sequence[Tensor]) -> Tensor:
        """Map ``[B, *S]`` with each segment's coefficient."""
        return torch.stack([values.float()[labels] for values, labels in zip(coefficients, self.labels, strict=True)])

    def judge(self, r_squared: Sequence[float]) -> None:
        """Report the fit of each sample and flag where it is poor."""
        values = torch.tensor(r_squared)
        self._run.report["r_squared"] = values
        self._run.flag(
            "unstable",
            values < UNRELIABLE,
            f"the linear fit explains less than {UNRELIABLE:.0%} of the scores' variance",
        )


def weighted_r_squared(y: Tensor, fitted: Tensor, weights: Tensor) -> float:
    """Share of the weighted variance of ``y [n]`` that a fit explains; 1 where there is none."""
    mean = (weights * y).sum() / weights.sum()
    total = (weights * (y - mean) ** 2).sum()
    left = (weights * (y - fitted) ** 2).sum()
    scale = 1e-12 * (weights * y * y).sum()
    return float(1 - left / total) if total > scale else 1.0
