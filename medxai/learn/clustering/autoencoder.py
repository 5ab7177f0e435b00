"""Step 1: the autoencoder alone, Adam and the mean squared error of tiles in 0..1; resumable.

After the last epoch the batch statistics are those of the final weights, and the embedding is standardised: pooled
maps differ by orders of magnitude, and without it k-means sees the few channels that follow brightness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medxai.files import atomic_path
from medxai.learn.loop import settle_norms
from medxai.networks.dceac import Dceac

#: ``progress(epoch, epochs, loss)`` after every epoch.
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class AutoencoderRecipe:
    """What decides step 1 besides data and network.

    Attributes:
        epochs: passes over the tiles; published for DCEC 200.
        batch_size: tiles a step.
        rate: of Adam.
        seed: of order and flips.
    """

    epochs: int = 12
    batch_size: int = 16
    rate: float = 1e-3
    seed: int = 0


def fit_autoencoder(
    network: Dceac,
    tiles: Tensor,
    recipe: AutoencoderRecipe,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Dceac:
    """Train in place and return the network in eval mode; colours stay as they are, tiles are turned and mirrored.

    Args:
        network: with random weights.
        tiles: ``[N, C, H, W]`` in 0..1, square.
        recipe: schedule.
        checkpoint: written after every epoch, resumed from when it exists.
        progress: told after every epoch.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    first = 0
    if checkpoint is not None and checkpoint.exists():
        state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    for epoch in range(first, recipe.epochs):
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        network.train()
        total = 0.0
        for rows in batches(len(tiles), recipe.batch_size, generator):
            x = turned(tiles[rows], generator)
            loss = (network.decode(network.encode(x).refined) - x).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        if checkpoint is not None:
            kept = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            with atomic_path(checkpoint) as temporary:
                torch.save(kept, temporary)
        if progress is not None:
            progress(epoch + 1, recipe.epochs, total / len(tiles))
    settle_norms(_Whole(network), (tiles[i : i + 64] for i in range(0, len(tiles), 64)))
    network.centre.zero_()
    network.scale.fill_(1)
    z = embed(network, tiles)
    network.centre.copy_(z.mean(0))
    network.scale.copy_(1 / z.std(0).clamp_min(1e-6) / z.shape[1] ** 0.5)
    return network


def batches(n: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Indices of all samples in a random order; a last single one, which has no batch statistics, is left out."""
    return [rows for rows in torch.split(torch.randperm(n, generator=generator), size) if len(rows) > 1 or n == 1]


def turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn and mirror a batch of square tiles, all the same way."""
    turns, mirror = torch.randint(0, 8, (1,), generator=generator).item() % 4, torch.rand(1, generator=generator) < 0.5
    x = torch.rot90(x, int(turns), (-2, -1))
    return x.flip(-1) if mirror else x


def embed(network: Dceac, tiles: Tensor, size: int = 32) -> Tensor:
    """Embeddings ``[N, d]`` in eval mode; the network comes back in the mode it had."""
    mode = network.training
    network.eval()
    with torch.inference_mode():
        found = torch.cat([network.encode(part).embedding for part in torch.split(tiles, size)])
    network.train(mode)
    return found.clone()


def reconstruction_error(network: Dceac, tiles: Tensor, size: int = 32) -> float:
    """Mean squared error in eval mode."""
    mode = network.training
    network.eval()
    with torch.inference_mode():
        parts = [
            float((network.decode(network.encode(part).refined) - part).square().mean()) * len(part)
            for part in torch.split(tiles, size)
        ]
    network.train(mode)
    return sum(parts) / len(tiles)


class _Whole(nn.Module):
    """Encoder and decoder as one call, as batch statistics need it."""

    def __init__(self, network: Dceac) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.decode(self.network.encode(x).refined)
