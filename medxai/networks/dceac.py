"""Autoencoder with attention whose pooled latent maps are clustered: DCEAC, after García et al. 2021.

arXiv:2106.13559 has no public code. From it come the tile, the three patterns, an attention module that refines the
latent maps before clustering, and the two steps of training; sizes of blocks, the form of the attention, the pooled
embedding and the decoder are ours. Pooling by the mean keeps an exact map of a cluster possible
(`medxai.explain.cluster_map`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medxai.errors import MismatchError
from medxai.networks.soft_assignment import log_assignment

#: Refined latent maps F', which maps explain: the name of the layer.
TARGET_LAYER = "refined"
#: ``map``: one weight for a position; ``channels``: one for each channel of it; ``none``: F' is F.
AttentionKind = Literal["map", "channels", "none"]


@dataclass(frozen=True, eq=False)
class Latent:
    """What the encoder makes of tiles.

    Attributes:
        features: F ``[N, C, h, w]``.
        attention: a ``[N, 1 or C, h, w]`` in 0..1; None without attention.
        refined: F' = F + a * F.
        embedding: z ``[N, d]``.
    """

    features: Tensor
    attention: Tensor | None
    refined: Tensor
    embedding: Tensor


class Attention(nn.Module):
    """``a = sigmoid(conv1(ReLU(BN(conv1 C -> C / 4))))``, near 0.5 everywhere before training."""

    def __init__(self, channels: int, kind: AttentionKind = "map") -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.squeeze = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.excite = nn.Conv2d(inner, channels if kind == "channels" else 1, 1)
        for parameter in self.excite.parameters():
            nn.init.normal_(parameter, std=1e-2)

    def forward(self, features: Tensor) -> Tensor:
        """``[N, C, h, w]`` -> ``[N, 1 or C, h, w]``."""
        return torch.sigmoid(self.excite(functional.relu(self.norm(self.squeeze(features)))))


class Dceac(nn.Module):
    """Encoder, attention, clustering head and decoder for RGB tiles in 0..1 whose sides are multiples of 16.

    The grid of the latent maps has a cell for 16 x 16 pixels: 32 x 32 for a tile of 512. Buffers that training sets:
    ``centre`` and ``scale`` ``[d]`` standardise the embedding, ``far`` is the distance from the nearest centroid
    beyond which a tile is unlike those of training.
    """

    centroids: nn.Parameter
    centre: Tensor
    scale: Tensor
    far: Tensor

    def __init__(
        self,
        clusters: int = 3,
        widths: Sequence[int] = (32, 64, 128, 256),
        attention: AttentionKind = "map",
        embedding: int | None = None,
        channels: int = 3,
    ) -> None:
        """Make the network with random weights and centroids at 0; `medxai.learn.clustering` sets them.

        Args:
            clusters: K.
            widths: channels of the four blocks.
            attention: see `AttentionKind`.
            embedding: d, by a linear layer on the pooled maps; None takes the pooled maps.
            channels: of the input.
        """
        super().__init__()
        if len(widths) != 4:
            msg = f"four blocks are needed, not {len(widths)}"
            raise ValueError(msg)
        last = widths[-1]
        self.encoder = nn.Sequential(*(_down(a, b) for a, b in itertools.pairwise((channels, *widths))))
        self.attention = None if attention == "none" else Attention(last, attention)
        self.refined = nn.Identity()
        self.project = None if embedding is None else nn.Linear(last, embedding)
        upwards = (last, *reversed([max(1, width // 2) for width in widths]))
        self.decoder = nn.Sequential(
            *(_up(a, b) for a, b in itertools.pairwise(upwards)),
            nn.Conv2d(upwards[-1], channels, 3, padding=1),
            nn.Sigmoid(),
        )
        self.centroids = nn.Parameter(torch.zeros(clusters, embedding or last))
        self.register_buffer("centre", torch.zeros(embedding or last))
        self.register_buffer("scale", torch.ones(embedding or last))
        self.register_buffer("far", torch.full((), torch.inf))

    def encode(self, x: Tensor) -> Latent:
        """Latent maps and embedding of ``[N, C, H, W]``.

        Raises:
            MismatchError: a side is no multiple of 16.
        """
        if x.shape[-1] % 16 or x.shape[-2] % 16:
            msg = (
                f"a tile of {x.shape[-2]} x {x.shape[-1]} pixels; both sides must be multiples of 16, so cut or pad it"
            )
            raise MismatchError(msg)
        features = self.encoder(x)
        attention = None if self.attention is None else self.attention(features)
        refined = self.refined(features if attention is None else features + attention * features)
        return Latent(features, attention, refined, self._embedded(refined.mean((-2, -1))))

    def places(self, refined: Tensor) -> Tensor:
        """Contribution of every cell to the embedding ``[N, h, w, d]``: their mean is the embedding."""
        return self._embedded(refined.movedim(1, -1))

    def decode(self, refined: Tensor) -> Tensor:
        """Tiles ``[N, C, H, W]`` in 0..1 from F'."""
        decoded: Tensor = self.decoder(refined)
        return decoded

    def forward(self, x: Tensor) -> Tensor:
        """``log q`` ``[N, K]``: the score of every cluster, whose softmax is the assignment."""
        return log_assignment(self.encode(x).embedding, self.centroids)

    def _embedded(self, maps: Tensor) -> Tensor:
        embedded: Tensor = maps if self.project is None else self.project(maps)
        return (embedded - self.centre) * self.scale


class Dcec(nn.Module):
    """Reference without attention: DCEC (Guo et al. 2017, github.com/XifengGuo/DCEC, MIT), 28 x 28 with one channel.

    The third convolution has no padding, since 28 is not divisible by 8.
    """

    def __init__(self, clusters: int = 10, channels: int = 1, embedding: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 32, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, 2),
            nn.ReLU(),
        )
        self.project = nn.Linear(1152, embedding)
        self.spread = nn.Linear(embedding, 1152)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(128, 64, 3, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 5, 2, 2, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, channels, 5, 2, 2, output_padding=1),
        )
        self.centroids = nn.Parameter(torch.zeros(clusters, embedding))

    def embed(self, x: Tensor) -> Tensor:
        """``[N, C, 28, 28]`` -> ``[N, d]``."""
        z: Tensor = self.project(self.encoder(x).flatten(1))
        return z

    def decode(self, z: Tensor) -> Tensor:
        """``[N, d]`` -> ``[N, C, 28, 28]``, not bounded."""
        decoded: Tensor = self.decoder(functional.relu(self.spread(z)).view(-1, 128, 3, 3))
        return decoded

    def forward(self, x: Tensor) -> Tensor:
        """``log q`` ``[N, K]``."""
        return log_assignment(self.embed(x), self.centroids)


def _down(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def _up(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
