"""Explanations of transformers: attention, relevance and token grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks import nets
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import nn

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.layout import find_layout
from medxai.explain.window_attention import pull_windows, split_merged, window_index
from tests.explain.nets import Pooled, fingerprint

ATTENTION = ("attention_rollout", "chefer", "legrad", "attnlrp", "cplrp")


def vit(size: tuple[int, ...], *, layers: int = 2, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    network = nets.ViT(
        1,
        size,
        (8,) * len(size),
        hidden_size=24,
        mlp_dim=32,
        num_layers=layers,
        num_heads=4,
        classification=True,
        num_classes=classes,
        spatial_dims=len(size),
        post_activation=None,
    )
    with torch.no_grad():  # a fresh network's attention is uniform
        for block in network.blocks:
            block.attn.qkv.weight.mul_(8)
        network.cls_token.normal_()
    return network


class Mixer(nn.Module):
    """One attention layer over patches without any bias; mean of the tokens, linear head."""

    def __init__(self, fused: bool = False, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.patch = nn.Conv2d(1, 8, 4, stride=4, bias=False)
        self.tokens = nn.Identity()
        self.norm = nn.LayerNorm(8, bias=False) if norm else nn.Identity()
        self.qkv = nn.Linear(8, 24, bias=False)
        self.fc = nn.Linear(8, 3, bias=False)
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block(self.tokens(self.patch(x).flatten(2).transpose(1, 2))).mean(1))

    def block(self, z: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(z)).chunk(3, -1))
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v
        return z + mixed.transpose(1, 2).flatten(2)


class Named(Mixer):
    """The same with the block as a module."""

    def __init__(self, **keys: bool) -> None:
        super().__init__(**keys)
        self.layer = _Call(self.block)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer(self.tokens(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


class _Call(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = [function]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.function[0](z)  # type: ignore[operator]


@pytest.mark.parametrize("size", [(32, 48), (32, 16, 48)])
@pytest.mark.parametrize("method", ATTENTION)
def test_vision_transformers(method: str, size: tuple[int, ...]) -> None:
    """Batch equals single calls, the network comes back, maps lie on the patch grid."""
    network = vit(size)
    before = fingerprint(network)
    x = torch.randn(3, 1, *size)
    result = explain(network, x, methods=method, classes=[0, 1])
    assert result[0].raw.shape == (3, *(s // 8 for s in size))
    assert result[0].map.shape == (3, *size)
    for b in range(3):
        alone = explain(network, x[b : b + 1], methods=method, classes=0)[0]
        assert torch.allclose(result[0].raw[b], alone.raw[0], rtol=1e-3, atol=1e-6)
    same = torch.allclose(result[0].raw, result[1].raw)
    assert same == (method == "attention_rollout")
    assert fingerprint(network) == before
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    assert torch.allclose(explain(network, x, methods=method, classes=0)[0].raw, result[0].raw, atol=1e-6)


def test_uniform_attention_rolls_out_uniformly() -> None:
    network = vit((32, 48))
    with torch.no_grad():
        for block in network.blocks:
            block.attn.qkv.weight.zero_()
    raw = explain(network, torch.randn(1, 1, 32, 48), methods="attention_rollout")[0].raw
    assert torch.allclose(raw, raw[:, :1, :1].expand_as(raw))


def test_rollout_of_one_layer_is_its_attention() -> None:
    network, x = Named(), torch.randn(2, 1, 12, 20)
    z = network.patch(x).flatten(2).transpose(1, 2)
    q, k, _ = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in network.qkv(network.norm(z)).chunk(3, -1))
    matrix = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1).mean(1)
    rolled = (matrix + torch.eye(15)) / 2
    ours = explain(network, x, methods="attention_rollout")[0].raw
    assert torch.allclose(ours, rolled.mean(1).view(2, 3, 5), atol=1e-6)


def test_fused_attention_is_read_like_the_plain_one() -> None:
    x = torch.randn(2, 1, 12, 20)
    for method in ATTENTION:
        plain, fused = (explain(Named(fused=f), x, methods=method, classes=1)[0].raw for f in (False, True))
        assert torch.allclose(plain, fused, atol=1e-6), method


def test_chefer_of_one_layer() -> None:
    """``mean_heads(relu(dA A))``, mean of its rows."""
    network, x = Named(), torch.randn(2, 1, 12, 20)
    z = network.patch(x).flatten(2).transpose(1, 2)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in network.qkv(network.norm(z)).chunk(3, -1))
    matrix = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1).detach().requires_grad_()
    out = network.fc((z + (matrix @ v).transpose(1, 2).flatten(2)).mean(1))
    (gradient,) = torch.autograd.grad(out[:, 1].sum(), matrix)
    expected = (gradient * matrix).clamp_min(0).mean(1).mean(1).view(2, 3, 5)
    assert torch.allclose(explain(network, x, methods="chefer", classes=1)[0].raw, expected, atol=1e-6)
    positive = gradient.clamp_min(0).mean((1, 2)).view(2, 3, 5)
    ours = explain(network, x, methods="legrad", classes=1, options={"legrad": {"pool": "native"}})[0].raw
    assert torch.allclose(ours, positive, atol=1e-6)


def test_legrad_is_not_negative_and_takes_the_last_blocks() -> None:
    network, x = vit((32, 48), layers=3), torch.randn(1, 1, 32, 48)
    maps = [
        explain(network, x, methods="legrad", classes=1, options={"legrad": {"blocks": n}})[0].raw for n in (0, 1, 3)
    ]
    assert all((m >= 0).all() for m in maps)
    assert torch.equal(maps[0], maps[2])
    assert not torch.allclose(maps[0], maps[1])


def test_what_has_no_such_attention_is_refused_with_a_reason() -> None:
    x = torch.randn(1, 1, 64, 96)
    with pytest.raises(ExplainError, match="no common head"):
        explain(nets.SwinUNETR(1, 2, feature_size=12, spatial_dims=2), x, methods="legrad", classes=1)
    for method in ("attention_rollout", "chefer", "legrad"):
        with pytest.raises(ExplainError, match="the network has none"):
            explain(Pooled(2), x, methods=method, classes=1)
    with pytest.raises(ExplainError, match="no layer of the network returns patch tokens"):
        explain(Pooled(2), x, methods="attnlrp", classes=1)


class Swin(nn.Module):
    """A hierarchical transformer with shifted windows and a pooled head."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        window, patch = (4,) * dims, (2,) * dims
        self.body = SwinTransformer(1, 8, window, patch, (2, 2, 1, 1), (2, 2, 2, 2), spatial_dims=dims)
        self.fc = nn.Linear(128, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x)[-1].flatten(2).mean(-1))


@pytest.mark.parametrize("size", [(24, 40), (16, 24, 20)])
@pytest.mark.parametrize("method", ["attention_rollout", "chefer"])
def test_swin_transformers(method: str, size: tuple[int, ...]) -> None:
    """Windows, shifts, padding and merging: batch equals single calls, on the grid of the first patches."""
    network, x = Swin(len(size)), torch.randn(2, 1, *size)
    before = fingerprint(network)
    result = explain(network, x, methods=method, classes=1)[0]
    assert result.raw.shape == (2, *(s // 2 for s in size))
    assert (result.raw >= 0).all()
    alone = explain(network, x[1:], methods=method, classes=1)[0]
    assert torch.allclose(result.raw[1], alone.raw[0], rtol=1e-3, atol=1e-8)
    assert fingerprint(network) == before


def test_windows_are_the_whole_matrix() -> None:
    """Pulling through windows equals multiplying with the full matrix that they are blocks of."""
    block = Swin(2).body.layers1[0].blocks[1]  # shifted
    grid = (6, 10)  # padded to 8 x 12
    index = window_index(block, grid)
    assert sorted(index[index >= 0].tolist()) == list(range(60))
    matrix = torch.rand(2 * 6, 16, 16)
    whole = torch.zeros(2, 60, 60)
    for b in range(2):
        for w in range(6):
            places = index.view(6, 16)[w]
            for q in range(16):
                for k in range(16):
                    if places[q] >= 0 and places[k] >= 0:
                        whole[b, places[q], places[k]] += matrix[b * 6 + w, q, k]
    values = torch.rand(2, 60)
    assert torch.allclose(pull_windows(values, matrix, index), (values[:, None] @ whole)[:, 0], atol=1e-5)


def test_rollout_through_windows_keeps_the_total() -> None:
    """Without padding every row of attention sums to one, and merging shares evenly."""
    result = explain(Swin(2), torch.randn(1, 1, 32, 64), methods="attention_rollout", classes=1)[0]
    assert result.raw.sum() == pytest.approx(1, abs=1e-4)
    coarse = torch.rand(1, 6)
    fine = split_merged(coarse, (2, 3), (3, 6))
    assert fine.view(3, 6)[0, 0] == pytest.approx(float(coarse[0, 0]) / 4)
    assert split_merged(coarse, (2, 3), (4, 6)).sum() == pytest.approx(float(coarse.sum()))


def test_cplrp_without_biases_conserves() -> None:
    result = explain(Named(), torch.randn(3, 1, 12, 20), methods="cplrp", classes=[0, 1, 2])
    for item in result:
        assert torch.allclose(item.report["conservation"], torch.ones(3), atol=1e-4)
        assert torch.allclose(item.raw.flatten(1).sum(1), item.score, rtol=1e-3, atol=1e-6)


def test_attnlrp_follows_its_rules_layer_by_layer() -> None:
    """Against relevance propagated explicitly: proportional sums, halves of products, Taylor rule of the softmax."""
    network, x = Named(norm=False).double(), torch.randn(1, 1, 8, 12).double()
    with torch.no_grad():
        z = network.patch(x).flatten(2).transpose(1, 2)
        w_q, w_k, w_v = network.qkv.weight.chunk(3)
        heads = lambda t: t.unflatten(-1, (2, 4)).transpose(1, 2)  # noqa: E731
        q, k, v = (heads(z @ w.T) for w in (w_q, w_k, w_v))
        scores = (q @ k.transpose(-2, -1)) * 0.5
        a = scores.softmax(-1)
        mixed = a @ v
        out = z + mixed.transpose(1, 2).flatten(2)
        # Linear head of the mean: every summand in proportion to what it adds.
        r_out = out * network.fc.weight[1] / out.shape[1]
        r_mixed = heads(r_out / out * mixed.transpose(1, 2).flatten(2))
        r_z = r_out / out * z
        c = r_mixed / mixed
        r_a = a * (c @ v.transpose(-2, -1)) / 2
        r_v = v * (a.transpose(-2, -1) @ c) / 2
        r_s = scores * (r_a - a * r_a.sum(-1, keepdim=True))
        c = r_s / scores * 0.5
        r_q, r_k = q * (c @ k) / 2, k * (c.transpose(-2, -1) @ q) / 2
        join = lambda t: t.transpose(1, 2).flatten(2)  # noqa: E731
        for r, value, w in ((r_q, q, w_q), (r_k, k, w_k), (r_v, v, w_v)):
            r_z = r_z + z * ((join(r) / join(value)) @ w)
    ours = explain(network, x, methods="attnlrp", classes=1)[0].raw
    assert torch.allclose(ours, r_z.sum(-1).view(1, 2, 3).float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dims", [2, 3])
def test_cams_of_swin_and_unetr(dims: int) -> None:
    """Channels-last windows and token rows find their grid without help."""
    size = (64, 96) if dims == 2 else (64, 32, 96)
    x = torch.randn(1, 1, *size)
    methods = ("gradcam", "hirescam", "layercam", "eigencam", "xgradcam")
    swin = nets.SwinUNETR(1, 2, feature_size=12, spatial_dims=dims)
    for layer, stride in (("swinViT.layers2.0.blocks.1.norm2", 4), ("swinViT.layers3.0.blocks.0.norm1", 8)):
        result = explain(swin, x, methods=methods, classes=1, layers=layer)
        assert all(item.raw.shape == (1, *(s // stride for s in size)) for item in result)
        assert all(torch.isfinite(item.raw).all() for item in result)
    unetr = nets.UNETR(1, 2, size, hidden_size=24, mlp_dim=32, num_heads=4, spatial_dims=dims)
    result = explain(unetr, x, methods=methods, classes=1)
    assert result[0].raw.shape == (1, *(s // 16 for s in size))
    assert result.layers == ("vit.norm",)


@pytest.mark.parametrize(
    ("shape", "spatial", "expected"),
    [
        ((2, 8, 3, 4, 5), (24, 32, 40), ("map", (3, 4, 5), 0)),
        ((2, 3, 4, 5, 8), (24, 32, 40), ("last", (3, 4, 5), 0)),
        ((2, 61, 8), (24, 32, 40), ("tokens", (3, 4, 5), 1)),
        ((2, 12, 8), (24, 32), ("tokens", (3, 4), 0)),
        ((2, 17, 8), (24, 32), ("tokens", (3, 4), 5)),
        ((10, 6, 3, 4), (5, 24, 32), ("frames", (5, 3, 4), 0)),
        ((2, 7, 8), (24, 32), None),
        ((2, 8, 1, 1), (24, 32), None),
        ((3, 8, 3, 4), (24, 32), None),
    ],
)
def test_layouts(shape: tuple[int, ...], spatial: tuple[int, ...], expected: tuple[object, ...] | None) -> None:
    layout = find_layout(shape, 2, spatial)
    if expected is None:
        assert layout is None
        return
    assert layout is not None
    assert (layout.kind, layout.grid, layout.prefix) == expected
    values = torch.randn(shape)
    grid = layout.to_grid(values)
    assert grid.shape[2:] == layout.grid
    assert torch.equal(layout.from_grid(grid, values), values)
    index = np.unravel_index(1, layout.grid)
    if layout.kind == "tokens":
        assert torch.equal(grid[(slice(None), slice(None), *index)], values[:, layout.prefix + 1])


def test_token_grid_can_be_given() -> None:
    """A row of 12 tokens could be several grids; the caller knows."""

    class Rows(Mixer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.unflatten(-1, (3, 4)).mean(-1).flatten(1)  # [B, 4 * 3] from [B, 1, 4, 12]
            return self.fc(self.block(self.tokens(rows[..., None].expand(-1, -1, 8))).mean(1))

    x = torch.randn(1, 1, 4, 12)
    result = explain(Rows(), x, layers="tokens", grid=(4, 3), methods="hirescam")
    assert result[0].raw.shape == (1, 4, 3)
