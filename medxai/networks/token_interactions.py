"""Interactions between modalities as streams of tokens: the hierarchical interactions of HA-HI.

After Shen et al. 2024, arXiv:2401.06780. An embedding of 512 numbers is 16 tokens of 32. In each block a stream sees a
third of itself and a third of each of two partners (fine exchange); at the end connectivity and region are summed,
look at each other and become one stream.

Ours, where the published code does not run: four streams through all blocks (it makes one of them after the first
block and cuts that into four by tokens); the sums, the look across and the last attention once at the end; no random
shuffling of modalities; the residual of a block is the stream itself, not the exchanged one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medxai.networks.resnet10_3d import EMBEDDING

#: Tokens of an embedding.
TOKENS = 16
#: Whose second and third third a stream takes.
PARTNERS = {"dfc": ("alff", "sfc"), "alff": ("dfc", "fa"), "fa": ("dfc", "alff"), "sfc": ("dfc", "alff")}
#: Streams that are summed at the end.
DOMAINS = {"connectivity": ("dfc", "sfc"), "region": ("alff", "fa")}


def sine_positions(count: int, width: int) -> Tensor:
    """Sine and cosine positions ``[count, width]`` (Vaswani et al. 2017, arXiv:1706.03762), sines first."""
    rate = torch.exp(torch.arange(width // 2) * (-torch.log(torch.tensor(10000.0)) / (width // 2)))
    angle = torch.arange(count)[:, None] * rate
    return torch.cat((angle.sin(), angle.cos()), 1)


class TokenEmbedding(nn.Module):
    """``[B, 512]`` -> ``[B, 16, width]``.

    Args:
        width: of a token, even; published 512.
    """

    positions: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        part = EMBEDDING // TOKENS
        self.layers = nn.Sequential(nn.LayerNorm(part), nn.Linear(part, width), nn.LayerNorm(width))
        self.register_buffer("positions", sine_positions(TOKENS, width), persistent=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """Tokens with their positions."""
        tokens: Tensor = self.layers(embedding.view(len(embedding), TOKENS, -1))
        return tokens + self.positions


class Attention(nn.Module):
    """Multi-head attention behind a layer normalisation; what is asked may be another stream.

    Args:
        width: of a token.
        heads: how many; published 16.
        head_dim: width of one; published 16.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key_value = nn.Linear(width, 2 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width)
        self._heads = heads

    def forward(self, tokens: Tensor, asked: Tensor | None = None) -> Tensor:
        """``[B, n, width]`` about `asked` ``[B, m, width]`` -> ``[B, n, width]``."""
        own = self.norm(tokens)
        other = own if asked is None else self.norm(asked)
        keys, values = self.key_value(other).chunk(2, -1)
        split = [part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in (self.query(own), keys, values)]
        seen = functional.scaled_dot_product_attention(*split)
        result: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return result


class Refine(nn.Module):
    """Attention and a small perceptron, both beside a shortcut.

    Args:
        width: of a token.
        heads: see `Attention`, as is `head_dim`.
        head_dim: width of one.
        hidden: of the perceptron; published 16.
    """

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, head_dim)
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, n, width]`` -> same."""
        tokens = tokens + self.attention(tokens)
        result: Tensor = tokens + self.feed(tokens)
        return result


def exchange(streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fine exchange: a third of the features from the stream and from each partner; from itself where one is absent."""
    width = next(iter(streams.values())).shape[-1]
    first, second = width // 3, 2 * width // 3
    mixed = {}
    for name, own in streams.items():
        two, three = (streams.get(partner, own) for partner in PARTNERS[name])
        mixed[name] = torch.cat((own[..., :first], two[..., first:second], three[..., second:]), -1)
    return mixed


class TokenInteractions(nn.Module):
    """Embeddings of some modalities -> one vector ``[B, width]``.

    Args:
        modalities: which; a domain of `DOMAINS` without any is left out.
        width: of a token, even.
        depth: blocks of exchange; published 6.
        heads: see `Attention`, as is `head_dim`.
        head_dim: width of a head.
        hidden: see `Refine`.
    """

    def __init__(
        self, modalities: Sequence[str], width: int, depth: int, heads: int, head_dim: int, hidden: int
    ) -> None:
        super().__init__()
        size = (width, heads, head_dim)
        self.embeddings = nn.ModuleDict({name: TokenEmbedding(width) for name in modalities})
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: Attention(*size) for name in modalities}) for _ in range(depth)
        )
        self._members = {
            domain: [name for name in names if name in modalities]
            for domain, names in DOMAINS.items()
            if set(names) & set(modalities)
        }
        self.domains = nn.ModuleDict({domain: Refine(*size, hidden) for domain in self._members})
        self.across = nn.ModuleDict(
            {domain: Attention(*size) for domain in self._members} if len(self._members) > 1 else {}
        )
        self.last = Refine(*size, hidden)

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Mean over the tokens of the last stream."""
        streams = {name: module(embeddings[name]) for name, module in self.embeddings.items()}
        for block in self.blocks:
            mixed = exchange(streams)
            streams = {name: tokens + block[name](mixed[name]) for name, tokens in streams.items()}  # type: ignore[index]
        sums = {
            domain: refine(torch.stack([streams[name] for name in self._members[domain]]).sum(0))
            for domain, refine in self.domains.items()
        }
        looked = dict(sums)
        for domain, attention in self.across.items():
            (other,) = (name for name in sums if name != domain)
            looked[domain] = sums[domain] + attention(sums[domain], sums[other])
        pooled: Tensor = self.last(torch.stack(list(looked.values())).sum(0)).mean(1)
        return pooled
