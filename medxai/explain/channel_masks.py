"""What Score-CAM and its relatives share: maps of a layer's channels as masks of the image, and weights from scores."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medxai.explain.enlarge import enlarge, scaled_maps
from medxai.explain.masking.masker import Masker, check_operator, check_score, read_score

if TYPE_CHECKING:
    from medxai.explain.run import Run


@dataclass(frozen=True)
class ChannelOptions:
    """Options of methods that weight channels by masking the image with them.

    Attributes:
        channels: how many maps to use; 0 for all channels of the layer.
        reduce: how to come to that many: ``std`` takes the channels with the largest standard deviation, ``cluster``
            the means of k-means clusters of channels by cosine, ``none`` takes all in spite of `channels`. Clusters
            beat the mean of all channels for breast_us, not for phantom_ct (docs/evidence/channel_clusters.md).
        score: ``logit`` (the target's own score) or ``prob`` (probability of the class).
        weighting: ``softmax`` over channels, or ``linear`` (the gain over the fully masked image).
        masking: operator in place of the call's.
    """

    channels: int = 0
    reduce: str = "std"
    score: str = "logit"
    weighting: str = "softmax"
    masking: str | None = None

    def __post_init__(self) -> None:
        """Check ranges and names."""
        if isinstance(self.channels, bool) or not isinstance(self.channels, int) or self.channels < 0:
            raise ValueError(f"channels is a whole number, 0 for all, not {self.channels!r}")
        if self.reduce not in ("none", "std", "cluster"):
            raise ValueError(f"reduce is none, std or cluster, not {self.reduce!r}")
        if self.weighting not in ("softmax", "linear"):
            raise ValueError(f"weighting is softmax or linear, not {self.weighting!r}")
        check_score(self.score)
        check_operator(self.masking)


class ChannelMasks:
    """Maps of a layer, enlarged to the image and scaled to 0..1, that differ between positions.

    Args:
        run: with the layer's activation.
        options: which maps.

    Attributes:
        maps: ``[B, M, *s]`` channels, or means of clusters of them.
        alive: ``[B, M]`` bool, False for constant maps, which mask nothing and are never run.
    """

    def __init__(self, run: Run, options: ChannelOptions) -> None:
        self._run, self._options = run, options
        self.maps = reduce_channels(run.activation, options, run.shared.seed)
        flat = self.maps.flatten(2)
        self.alive = flat.amax(-1) > flat.amin(-1)
        self._rows, self._channels = torch.nonzero(self.alive, as_tuple=True)
        self._masker = Masker(run, options.masking)
        run.report["maps_used"] = self.alive.sum(1)

    @cached_property
    def _scaled(self) -> Tensor:
        """``[count, *s]``, the masks before they are enlarged."""
        return scaled_maps(self.maps[self._rows, self._channels], self._run.spatial)

    @property
    def count(self) -> int:
        """Forwards of one round over the batch."""
        return len(self._rows)

    def scores(
        self, key: Hashable, *, factor: float = 1.0, shift: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Score ``[B, M]`` of the image under each map, 0 for constant ones.

        Args:
            key: says what was done, so that another target need not do it again.
            factor: the mask is multiplied by it.
            shift: ``[*S]`` added to the mask.
            noise: ``[C, *S]`` added to the image before masking; needs a mask of the image itself.
        """
        found = torch.zeros(self.alive.shape)
        size, run = self._run.samples_at_once, self._run
        for start in range(0, self.count, size):
            rows, channels = self._rows[start : start + size], self._channels[start : start + size]
            place = (key, run.layer, self._options.channels, self._options.reduce, start)
            maps = self._scaled[start : start + size] * factor
            if noise is not None:
                masks = enlarge(maps, run.spatial)
                outputs = run.outputs(self._masker.images(masks, rows) + masks[:, None].to(run.x) * noise, rows)
            elif shift is not None:
                outputs = self._masker.outputs(enlarge(maps, run.spatial) + shift, rows, place)
            else:
                outputs = self._masker.enlarged(maps, rows, self.alive.sum(1), place)
            found[rows, channels] = read_score(run.target, outputs, rows, self._options.score).float().to(found)
        return found

    def combine(self, scores: Tensor) -> Tensor:
        """Map ``[B, *s]`` of weighted channels; the largest weight goes into the report.

        Args:
            scores: ``[B, M]`` of the masked images.
        """
        run = self._run
        if self._options.weighting == "softmax":
            weights = scores.masked_fill(~self.alive, -torch.inf).softmax(1).nan_to_num(0.0)
        else:
            batch = torch.arange(len(run.x))
            removed = self._masker.outputs(torch.zeros(len(batch), *run.spatial), batch)
            base = read_score(run.target, removed, batch, self._options.score).float().to(scores)
            weights = torch.where(self.alive, scores - base[:, None], 0)
        run.report["max_weight"] = weights.amax(1)
        return (weights[:, None] @ self.maps.flatten(2).to(weights))[:, 0].view(len(weights), *self.maps.shape[2:])


def reduce_channels(activation: Tensor, options: ChannelOptions, seed: int) -> Tensor:
    """Maps ``[B, M, *s]`` in place of the channels ``[B, K, *s]``, see `ChannelOptions.reduce`."""
    count = options.channels
    if options.reduce == "none" or not 0 < count < activation.shape[1]:
        return activation
    if options.reduce == "std":
        order = activation.flatten(2).std(-1, correction=0).argsort(dim=1, descending=True, stable=True)[:, :count]
        return activation.gather(
            1, order.view(*order.shape, *[1] * (activation.ndim - 2)).expand(-1, -1, *activation.shape[2:])
        )
    return torch.stack([_cluster(sample, count, seed) for sample in activation])


def _cluster(maps: Tensor, count: int, seed: int) -> Tensor:
    """Means ``[count, *s]`` of clusters of channels ``[K, *s]`` that point the same way; empty ones are zero."""
    from sklearn.cluster import KMeans

    flat = maps.flatten(1).double()
    directions = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    distinct = len(directions.unique(dim=0))
    found = KMeans(min(count, distinct), n_init=1, random_state=seed).fit(directions.cpu().numpy())
    member = torch.nn.functional.one_hot(torch.as_tensor(found.labels_).long(), count).to(flat)
    means = (member.T @ flat) / member.sum(0).clamp_min(1)[:, None]
    return means.to(maps).view(count, *maps.shape[1:])
