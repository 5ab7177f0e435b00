"""Score-CAM, SS-CAM, IS-CAM and Ablation-CAM against closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks import nets
from torch import nn
from torch.nn import functional

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.enlarge import enlarge, scaled_maps
from medxai.explain.registry import make_options
from medxai.explain.resize import resize
from tests.explain.perturbed import Constant, Pooled, state

SHAPES = {2: (2, 1, 12, 18), 3: (2, 1, 8, 12, 10)}


def activation(network: Pooled, x: torch.Tensor) -> torch.Tensor:
    """Output of the layer ``act``."""
    with torch.no_grad():
        return network.act(network.stem(x))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("method", ["scorecam", "sscam", "iscam"])
def test_network_that_ignores_the_image(dims: int, method: str) -> None:
    """Uniform weights: the map is the mean of the channels that are not constant."""
    torch.manual_seed(0)
    network, x = Constant(dims), torch.randn(SHAPES[dims])
    found = explain(network, x, methods=[method], classes=1, layers="features",
                    options={method: {} if method == "scorecam" else {"samples": 2}})[0]  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(found.raw, network.features(x).mean(1), atol=1e-5)
    assert torch.allclose(found.report["max_weight"], torch.full((2,), 1 / 6))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("score", ["logit", "prob"])
def test_score_cam_by_hand(dims: int, score: str) -> None:
    """Masks are the enlarged channels between 0 and 1; constant channels get nothing and cost nothing."""
    network, x = Pooled(dims), torch.randn(SHAPES[dims])
    network.stem.conv.weight.data[2], network.stem.conv.bias.data[2] = 0, -1.0
    a = activation(network, x)
    network.seen = 0
    found = explain(network, x, methods=["scorecam"], classes=1, layers="act", options={"scorecam": {"score": score}},
                    chunk=4)[0]  # fmt: skip
    alive = [k for k in range(6) if k != 2]
    assert network.seen == 2 + 2 * len(alive)
    mode = "bilinear" if dims == 2 else "trilinear"
    for row in range(2):
        values = []
        for k in alive:
            mask = functional.interpolate(a[row : row + 1, k : k + 1], size=x.shape[2:], mode=mode)
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            with torch.no_grad():
                logits = network(x[row : row + 1] * mask)[0]
            values.append(logits.softmax(0)[1] if score == "prob" else logits[1])
        weights = torch.stack(values).softmax(0)
        assert torch.allclose(found.raw[row], torch.einsum("k,k...->...", weights, a[row, alive]), atol=1e-5)


def test_is_cam_factors_and_linear_weights() -> None:
    """Steps i/N or torch-cam's running sums; linear weights are gains over the masked-out image."""
    network, x = Pooled(2), torch.randn(SHAPES[2])
    a = activation(network, x)
    for compat, factors in ((False, (0.5, 1.0)), (True, (0.5, 1.5))):
        options = {"samples": 2, "torchcam_compat": compat, "weighting": "linear"}
        found = explain(network, x, methods=["iscam"], classes=0, layers="act", options={"iscam": options})[0]
        weights = torch.zeros(2, 6)
        for row in range(2):
            for k in range(6):
                mask = functional.interpolate(a[row : row + 1, k : k + 1], size=x.shape[2:], mode="bilinear")
                mask = (mask - mask.min()) / (mask.max() - mask.min()).clamp_min(1e-12)
                with torch.no_grad():
                    gains = [network(x[row : row + 1] * mask * f)[0, 0] - network(0 * x[:1])[0, 0] for f in factors]
                weights[row, k] = sum(gains) / 2 if a[row, k].max() > a[row, k].min() else 0.0
        assert torch.allclose(found.raw, torch.einsum("bk,bk...->b...", weights, a), atol=1e-5)


@pytest.mark.parametrize("noise", ["mask", "input"])
def test_ss_cam_without_noise_is_score_cam(noise: str) -> None:
    """And with noise it is reproducible and not Score-CAM."""
    network, x = Pooled(3), torch.randn(SHAPES[3])
    plain = explain(network, x, methods=["scorecam"], classes=2, layers="act")[0].raw
    runs = [
        explain(network, x, methods=["sscam"], classes=2, layers="act", seed=seed,
                options={"sscam": {"samples": 2, "sigma": sigma, "noise": noise}})[0].raw
        for sigma, seed in ((0.0, 0), (1.0, 0), (1.0, 0), (1.0, 1))
    ]  # fmt: skip
    assert torch.allclose(runs[0], plain, atol=1e-5)
    assert torch.equal(runs[1], runs[2])
    assert not torch.allclose(runs[1], plain, atol=1e-6)
    assert not torch.equal(runs[1], runs[3])


@pytest.mark.parametrize("reduce", ["std", "cluster", "none"])
def test_fewer_channels(reduce: str) -> None:
    """The number of forwards follows; with as many clusters as channels nothing is lost."""
    network, x = Pooled(2, channels=8), torch.randn(SHAPES[2])
    options = {"channels": 3, "reduce": reduce}
    network.seen = 0
    found = explain(network, x, methods=["scorecam"], classes=1, layers="act", options={"scorecam": options}, chunk=8)[
        0
    ]
    assert network.seen - 2 == int(found.report["maps_used"].sum())
    assert found.report["maps_used"].tolist() == ([8, 8] if reduce == "none" else [3, 3])
    alone = explain(network, x[1:], methods=["scorecam"], classes=1, layers="act", options={"scorecam": options})[0]
    assert torch.allclose(alone.raw[0], found.raw[1], atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_ablation_of_a_pooled_head(dims: int) -> None:
    """``w_k = w_ck mean(A_k) / |y|``, from the tail alone."""
    network, x = Pooled(dims), torch.randn(SHAPES[dims])
    a = activation(network, x)
    network.seen = 0
    found = explain(network, x, methods=["ablationcam"], classes=1, layers="act", chunk=5)[0]
    assert found.report["tail_only"] is True
    assert network.seen <= 2 + 8  # the clean pass and the planning of the replay, none of the ablations
    weights = network.fc.weight[1] * a.flatten(2).mean(-1) / found.score.abs()[:, None]
    expected = torch.einsum("bk,bk...->b...", weights, a)
    assert torch.allclose(found.raw, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_ablation_without_a_replay() -> None:
    """Two inputs, tokens: the whole network with the layer replaced gives the same."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Pooled(2)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * scale

    two, x = Two(), torch.randn(SHAPES[2])
    scale = torch.tensor([[1.0], [1.0]])
    whole = explain(two, (x, scale), methods=["ablationcam"], classes=1, layers="inner.act", chunk=3)[0]
    tail = explain(two.inner, x, methods=["ablationcam"], classes=1, layers="act")[0]
    assert whole.report["tail_only"] is False
    assert torch.allclose(whole.raw, tail.raw, atol=1e-5 * float(tail.raw.abs().max()))
    mean = explain(two.inner, x, methods=["ablationcam"], classes=1, layers="act",
                   options={"ablationcam": {"ablate": "mean"}})[0]  # fmt: skip
    assert torch.allclose(mean.raw, torch.zeros(()), atol=1e-3 * float(tail.raw.abs().max()))
    vit = nets.ViT(1, (16, 24), 8, hidden_size=12, mlp_dim=12, num_layers=2, num_heads=2, classification=True,
                   num_classes=3, spatial_dims=2)  # fmt: skip
    x = torch.randn(2, 1, 16, 24)
    both = explain(vit, x, methods=["ablationcam", "scorecam"], classes=1)
    for item in both:
        alone = explain(vit, x[1:], methods=[item.method], classes=1)[0]
        assert torch.allclose(alone.raw[0], item.raw[1], atol=1e-5 * float(item.raw[1].abs().max()))


def test_skip_connections_are_replayed() -> None:
    """A residual network whose target layer has a way round it."""
    torch.manual_seed(0)
    network = nets.ResNet("basic", (1, 1, 1, 1), (4, 8, 8, 8), 3, 1, num_classes=2).eval()
    x = torch.randn(2, 1, 16, 32, 24)
    before = state(network)
    found = explain(network, x, methods=["ablationcam"], classes=1, layers="layer3.0.conv1")[0]
    assert state(network) == before
    a, expected = None, []

    def ablate(channel: int | None) -> torch.Tensor:
        def hook(_m: nn.Module, _i: object, output: torch.Tensor) -> torch.Tensor:
            nonlocal a
            a = output.clone()
            if channel is not None:
                output = output.clone()
                output[:, channel] = 0
            return output

        handle = network.layer3[0].conv1.register_forward_hook(hook)
        with torch.no_grad():
            y = network(x)[:, 1]
        handle.remove()
        return y

    clean = ablate(None)
    expected = torch.stack([(clean - ablate(k)) / (clean.abs() + 1e-8) for k in range(8)], 1)
    assert a is not None
    expected = torch.einsum("bk,bk...->b...", expected, a)
    assert torch.allclose(found.raw, expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max()))


def test_options_are_checked() -> None:
    """Each wrong value is refused in words."""
    for method, values in (
        ("scorecam", {"channels": -1}), ("scorecam", {"reduce": "pca"}), ("scorecam", {"score": "odds"}),
        ("scorecam", {"weighting": "max"}), ("scorecam", {"masking": "nothing"}), ("sscam", {"samples": 0}),
        ("sscam", {"noise": "both"}), ("iscam", {"samples": 0}), ("ablationcam", {"ablate": "min"}),
    ):  # fmt: skip
        with pytest.raises(ExplainError, match=f"options of {method}"):
            make_options(method, values)


@given(
    cells=st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 5)),
    dims=st.sampled_from([2, 3]),
    factor=st.integers(1, 9),
    extra=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_masks_are_enlarged_then_scaled(cells: tuple[int, ...], dims: int, factor: int, extra: int, seed: int) -> None:
    small = cells[:dims]
    size = [cell * factor + extra for cell in small]
    maps = torch.randn(3, *small, generator=torch.Generator().manual_seed(seed))
    large = resize(maps, size)
    low, high = large.flatten(1).amin(1), large.flatten(1).amax(1)
    shape = (-1, *[1] * dims)
    expected = (large - low.view(shape)) / (high - low).clamp_min(1e-12).view(shape)
    steady = (high - low > 1e-3).view(shape)
    got = enlarge(scaled_maps(maps, size), size)
    torch.testing.assert_close(torch.where(steady, got, 0), torch.where(steady, expected, 0), rtol=0, atol=1e-4)


def test_a_constant_map_makes_an_empty_mask() -> None:
    assert not scaled_maps(torch.full((2, 3, 4), 7.5), (9, 8)).any()
