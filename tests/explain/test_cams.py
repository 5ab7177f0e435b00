"""Class activation maps against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medxai.errors import ExplainError
from medxai.explain import Segment, explain
from medxai.explain.components import first_component
from medxai.explain.gaussian import smooth
from medxai.explain.split import forward_split
from medxai.explain.target import class_score
from tests.explain.nets import Flat, Pooled, Tail

SHAPES = {2: (2, 1, 12, 20), 3: (2, 1, 8, 12, 20)}


def raw(network: nn.Module, x: torch.Tensor, method: str, target: object = 1, layer: str = "act", **options: object):
    """The raw map of one method."""
    return explain(
        network, x, methods=method, classes=target, layers=layer, options={method: options} if options else None
    )[0].raw  # type: ignore[arg-type]


def parts(network: nn.Module, x: torch.Tensor, index: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Activation and gradient at ``act``."""
    captured = forward_split(network, x, "act")
    return captured.activation("act"), captured.gradients(class_score(captured.logits, index), ["act"])["act"]


@pytest.mark.parametrize("dims", [2, 3])
def test_gradcam_ignores_scale_and_constants_of_the_score(dims: int) -> None:
    network, x = Pooled(dims), torch.randn(SHAPES[dims])
    base = raw(network, x, "gradcam")
    assert torch.allclose(raw(network, x, "gradcam", lambda z: 3 * z[:, 1]), 3 * base, rtol=1e-5, atol=1e-8)
    assert torch.allclose(raw(network, x, "gradcam", lambda z: z[:, 1] + 7), base)


@pytest.mark.parametrize("dims", [2, 3])
def test_gradcam_ignores_a_compensated_channel_scale(dims: int) -> None:
    network, x = Pooled(dims), torch.randn(SHAPES[dims])
    base = raw(network, x, "gradcam")
    scale = torch.tensor([0.5, 2.0, 3.0, 1.0, 0.1])
    with torch.no_grad():
        conv = network.body[2]
        conv.weight *= scale.view(-1, *[1] * (dims + 1))
        conv.bias *= scale
        network.fc.weight /= scale
    assert torch.allclose(raw(network, x, "gradcam"), base, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dims", [2, 3])
def test_pooled_head_makes_the_gradient_cams_agree(dims: int) -> None:
    """Equal gradients at all positions: XGrad-CAM and HiRes-CAM are Grad-CAM."""
    network, x = Pooled(dims), torch.randn(SHAPES[dims])
    base = raw(network, x, "gradcam")
    for method in ("xgradcam", "hirescam"):
        assert torch.allclose(raw(network, x, method), base, rtol=1e-4, atol=1e-7), method


@pytest.mark.parametrize("dims", [2, 3])
def test_gradcampp_closed_form(dims: int) -> None:
    """``w_k = P relu(g) / (2 + S_k g)`` with ``g = w_ck / P``."""
    network, x = Pooled(dims), torch.randn(SHAPES[dims])
    activation, _ = parts(network, x)
    size = activation.flatten(2).shape[2]
    g = network.fc.weight[1].detach() / size
    weights = size * g.clamp_min(0) / (2 + activation.flatten(2).sum(2) * g)
    expected = torch.einsum("bk,bk...->b...", weights, activation)
    assert torch.allclose(raw(network, x, "gradcampp"), expected, rtol=1e-4, atol=1e-6)


def test_gradcampp_depends_on_temperature() -> None:
    network, x = Pooled(2), torch.randn(SHAPES[2])
    one, ten = (raw(network, x, "gradcampp", lambda z, s=s: s * z[:, 1]) for s in (1, 100))
    one, ten = one / one.abs().max(), ten / ten.abs().max()
    assert (one - ten).abs().max() > 1e-3


def test_smoothgradcampp_without_noise_is_gradcampp() -> None:
    network, x = Pooled(3), torch.randn(SHAPES[3])
    base = raw(network, x, "gradcampp")
    assert torch.allclose(raw(network, x, "smoothgradcampp", noise=0.0, samples=1), base, rtol=1e-5, atol=1e-7)
    assert torch.allclose(raw(network, x, "smoothgradcampp", noise=1e-7, samples=3), base, rtol=1e-3, atol=1e-5)


def test_smoothgradcampp_selects_channels_and_region() -> None:
    network, x = Pooled(2), torch.randn(SHAPES[2])
    activation, _ = parts(network, x)
    weights = torch.linalg.lstsq(
        activation[0].flatten(1).T, raw(network, x, "smoothgradcampp", noise=0.0, samples=1)[0].flatten()[:, None]
    ).solution[:, 0]
    best = weights.argmax()
    one = raw(network, x, "smoothgradcampp", noise=0.0, samples=1, channels=1)
    assert torch.allclose(one[0], weights[best] * activation[0, best], rtol=1e-3, atol=1e-5)
    only = raw(network, x, "smoothgradcampp", noise=0.0, samples=1, only=(int(best),))
    assert torch.allclose(only, one, atol=1e-6)
    inside = raw(network, x, "smoothgradcampp", noise=0.0, samples=1, region=((1, 3), (2, 7)))
    outside = torch.ones_like(inside, dtype=torch.bool)
    outside[:, 1:3, 2:7] = False
    assert (inside[outside] == 0).all()
    assert inside.abs().max() > 0
    with pytest.raises(ExplainError, match="for each of the 2 axes"):
        raw(network, x, "smoothgradcampp", region=((1, 3),))


@pytest.mark.parametrize("dims", [2, 3])
def test_xgradcam_sums_to_gradient_times_activation(dims: int) -> None:
    network = Flat(SHAPES[dims][2:])
    x = torch.randn(SHAPES[dims])
    activation, gradient = parts(network, x)
    total = raw(network, x, "xgradcam").flatten(1).sum(1)
    assert torch.allclose(total, (activation * gradient).flatten(1).sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_hirescam_is_exact_for_an_affine_tail(dims: int) -> None:
    network = Flat(SHAPES[dims][2:])
    x = torch.randn(SHAPES[dims])
    result = explain(network, x, methods="hirescam", classes=2, layers="act")
    expected = result.logits[:, 2] - network.fc.bias[2].detach()
    assert torch.allclose(result[0].raw.flatten(1).sum(1), expected, rtol=1e-4, atol=1e-5)
    before = result[0].raw
    with torch.no_grad():
        network.fc.weight[2, 7] += 1.0  # channel 0, position 7
    changed = (raw(network, x, "hirescam", 2) - before).flatten(1) != 0
    assert changed.any(0).nonzero().flatten().tolist() in ([7], [])


def test_layercam_is_hirescam_without_negative_gradients() -> None:
    network, x = Pooled(3), torch.randn(SHAPES[3])
    with torch.no_grad():
        network.fc.weight.abs_()
    assert torch.allclose(raw(network, x, "layercam"), raw(network, x, "hirescam"), atol=1e-7)


def test_elementwise_is_never_negative() -> None:
    activation, gradient = parts(network := Pooled(3), x := torch.randn(SHAPES[3]))
    assert torch.allclose(
        raw(network, x, "gradcam_elementwise"), (activation * gradient).clamp_min(0).sum(1), atol=1e-7
    )


# ---------------------------------------------------------------- components


def test_eigencam_recovers_a_single_factor() -> None:
    """Rank one: the spatial factor itself, up to scale, bright where features are strong."""
    space = torch.rand(3, 4, 5).double()
    channels = torch.tensor([0.5, -2.0, 1.0])
    x = (channels.view(1, 3, 1, 1, 1) * space[None, None]).float()
    result = explain(Tail(lambda a: a.flatten(2).mean(-1)), x, methods="eigencam", layers="keep")[0].raw[0].double()
    centred = space - space.mean()
    assert np.corrcoef(result.flatten(), centred.flatten())[0, 1] == pytest.approx(1, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(2, 40), st.integers(0, 10_000))
def test_component_is_that_of_the_singular_value_decomposition(positions: int, channels: int, seed: int) -> None:
    """Either Gram matrix gives numpy's singular vector, up to sign."""
    features = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, channels, positions, 2)))
    rows = features[0].flatten(1).T.numpy()
    _, values, vectors = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    ours, unclear = first_component(features.float(), center=True, sign="energy")
    assert bool(unclear[0]) == bool(values[0] < 1.05 * values[1]) or abs(values[0] / values[1] - 1.05) < 1e-3
    if values[0] > 1.01 * values[1]:
        expected = (rows - rows.mean(0)) @ vectors[0]
        error = min(np.abs(ours.numpy().ravel() - s * expected).max() for s in (1, -1))
        assert error < 1e-3 * np.abs(expected).max()


def test_eigencam_ignores_a_rotation_of_channels_and_the_class() -> None:
    network, x = Pooled(2), torch.randn(SHAPES[2])
    activation, _ = parts(network, x)
    rotation = torch.linalg.qr(torch.randn(5, 5)).Q
    turned = torch.einsum("jk,bk...->bj...", rotation, activation)
    one, _ = first_component(activation, center=True, sign="range")
    two, _ = first_component(turned, center=True, sign="range")
    assert torch.allclose(one, two, atol=1e-4)
    maps = explain(network, x, methods="eigencam", classes=[0, 2], layers="act")
    assert torch.equal(maps[0].raw, maps[1].raw)
    assert all("class_agnostic" in flags for flags in maps[0].flags)


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam", "segeigencam", "kpca_cam"])
def test_components_of_constants_are_empty(method: str) -> None:
    result = explain(
        Tail(lambda a: a.flatten(2).mean(-1)), torch.full((2, 3, 4, 5, 6), 0.3), methods=method, layers="keep"
    )
    assert (result[0].raw == 0).all()
    assert all("empty" in flags for flags in result[0].flags)


def test_uncentred_eigencam_of_positive_features_is_positive() -> None:
    x = torch.rand(2, 4, 5, 6)
    result = explain(
        Tail(lambda a: a.flatten(2).mean(-1)),
        x,
        methods="eigencam",
        layers="keep",
        options={"eigencam": {"center": False}},
    )[0]
    assert result.raw.min() >= 0


def test_equal_singular_values_are_flagged() -> None:
    x = torch.zeros(1, 2, 2, 2)
    x[0, 0, 0, 0], x[0, 0, 1, 1] = 1, -1
    x[0, 1, 0, 1], x[0, 1, 1, 0] = 1, -1
    result = explain(Tail(lambda a: a.flatten(2).mean(-1)), x, methods="eigencam", layers="keep")[0]
    assert "unstable" in result.flags[0]
    assert "singular values" in result.report["unstable_reason"]


def test_linear_kernel_is_eigencam() -> None:
    network, x = Pooled(3), torch.randn(SHAPES[3])
    kernel, plain = raw(network, x, "kpca_cam", kernel="linear"), raw(network, x, "eigencam")
    for a, b in zip(kernel, plain, strict=True):
        assert np.corrcoef(a.flatten(), b.flatten())[0, 1] == pytest.approx(1, abs=1e-4)


def test_kpca_pools_large_grids() -> None:
    x = torch.rand(1, 3, 12, 16)
    result = explain(
        Tail(lambda a: a.flatten(2).mean(-1)),
        x,
        methods="kpca_cam",
        layers="keep",
        options={"kpca_cam": {"most_positions": 60}},
    )[0]
    assert result.report["pooled_to"] == [6, 8]
    assert result.raw.shape == (1, 12, 16)


def test_fem_weights_ignore_a_constant() -> None:
    network, x = Pooled(2), torch.randn(2, 1, 40, 60)
    activation, _ = parts(network, x)
    flat = activation.flatten(2)
    strong = (flat > flat.mean(2, keepdim=True) + 2 * flat.std(2, correction=0, keepdim=True)).float().mean(2)
    assert torch.allclose(raw(network, x, "fem"), torch.einsum("bk,bk...->b...", strong, activation), atol=1e-6)
    keep = Tail(lambda a: a.flatten(2).mean(-1))
    one, two = (raw(keep, activation + shift, "fem", layer="keep") for shift in (0, 5))
    assert torch.allclose(two - one, 5 * strong.sum(1).view(-1, 1, 1).expand_as(one), atol=1e-4)


# ---------------------------------------------------------------- targets


def test_finercam_closed_form() -> None:
    """Pooled head: ``CAM_c - alpha sum p_d CAM_d / sum p_d``, over P."""
    network, x = Pooled(2, classes=5), torch.randn(SHAPES[2])
    activation, _ = parts(network, x)
    size = activation.flatten(2).shape[2]
    logits = network(x).detach()
    cams = torch.einsum("ck,bk...->bc...", network.fc.weight.detach(), activation) / size
    for b in range(2):
        order = (logits[b] - logits[b, 1]).abs().argsort()[1:4]
        share = logits[b].softmax(0)[order]
        expected = cams[b, 1] - 0.7 * torch.einsum("d,d...->...", share / share.sum(), cams[b, order])
        assert torch.allclose(raw(network, x, "finercam", alpha=0.7)[b], expected, rtol=1e-4, atol=1e-6)
    for base in ("gradcam", "layercam"):
        assert torch.allclose(raw(network, x, "finercam", alpha=0.0, base=base), raw(network, x, base), atol=1e-7)
    with pytest.raises(ExplainError, match="two or more logits"):
        raw(Pooled(2, classes=1), x, "finercam")


def test_shapleycam_with_a_linear_tail_is_gradcam() -> None:
    network, x = Pooled(3), torch.randn(SHAPES[3])
    assert torch.allclose(raw(network, x, "shapleycam", utility="logit"), raw(network, x, "gradcam"), atol=1e-7)
    flat = Flat(SHAPES[3][2:])
    assert torch.allclose(
        raw(flat, x, "shapleycam", utility="logit", form="hirescam"), raw(flat, x, "hirescam"), atol=1e-6
    )


def test_shapleycam_is_exact_for_a_quadratic_tail() -> None:
    """``sum(Q A) = u(A)`` for ``u = a' M a / 2 + b' a``."""
    torch.manual_seed(3)
    matrix, vector = torch.randn(24, 24), torch.randn(24)
    matrix = matrix + matrix.T

    def tail(a: torch.Tensor) -> torch.Tensor:
        flat = a.flatten(1)
        return (0.5 * ((flat @ matrix) * flat).sum(1) + flat @ vector)[:, None].expand(-1, 2)

    x = torch.randn(2, 2, 3, 4)
    result = explain(Tail(tail), x, methods="shapleycam", classes=1, layers="keep",
                     options={"shapleycam": {"utility": "logit", "form": "hirescam"}})[0]  # fmt: skip
    assert torch.allclose(result.raw.flatten(1).sum(1), result.score, rtol=1e-4)


def test_shapleycam_utility() -> None:
    """``2 z_c - logsumexp(z)``; its gradient is that of the logit plus that of the log-probability."""
    network, x = Pooled(2), torch.randn(SHAPES[2])
    explicit = raw(network, x, "gradcam", lambda z: 2 * z[:, 1] - z.logsumexp(1))
    ours = raw(network, x, "shapleycam")
    assert ours.shape == explicit.shape
    assert not torch.allclose(ours, raw(network, x, "gradcam"))
    single = Pooled(2, classes=1)
    assert torch.isfinite(raw(single, x, "shapleycam", 1)).all()


def test_seggradcam_region() -> None:
    """Mean logit over the region; a region that is the whole image makes Grad-CAM of the mean."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    x = torch.randn(2, 1, 10, 14)
    whole = raw(network, x, "seggradcam", Segment(1, torch.ones(10, 14)), layer="1")
    assert torch.allclose(whole, raw(network, x, "gradcam", lambda z: z[:, 1].flatten(1).mean(1), layer="1"), atol=1e-7)
    one = torch.zeros(10, 14)
    one[4, 5] = 1
    voxel = raw(network, x, "hirescam", Segment(2, one), layer="1")
    assert voxel.nonzero()[:, 1:].unique(dim=0).tolist() == [[4, 5]]
    double = raw(network, x, "gradcam", Segment(1, torch.ones(10, 14), reduction="sum"), layer="1")
    assert torch.allclose(double, 140 * whole, rtol=1e-4)
    with torch.no_grad():
        network[2].bias[2] = -1e3
    missing = explain(network, x, methods="seggradcam", classes=2, layers="1")[0]
    assert all("empty" in flags for flags in missing.flags)
    assert (missing.raw == 0).all()
    with pytest.raises(ExplainError, match="dense output"):
        raw(Pooled(2), x, "seggradcam")


# ---------------------------------------------------------------- CF-CAM, RefineCAM


def test_cfcam_with_all_channels_dominant_is_gradcam() -> None:
    network, x = Pooled(3, channels=9), torch.randn(SHAPES[3])
    assert torch.allclose(raw(network, x, "cfcam", dominant=0.0), raw(network, x, "gradcam"), atol=1e-7)


@pytest.mark.parametrize("kind", ["gaussian", "bilateral", "released", "none"])
def test_cfcam_ignores_the_order_of_channels(kind: str) -> None:
    torch.manual_seed(5)
    weight = torch.randn(3, 12)
    order = torch.randperm(12)
    x = torch.rand(1, 12, 6, 7)

    def tail(w: torch.Tensor):
        return lambda a: (a.square() * (1 + torch.arange(42).view(6, 7) / 42)).flatten(2).mean(-1) @ w.T

    one = raw(Tail(tail(weight)), x, "cfcam", layer="keep", filter=kind)
    two = raw(Tail(tail(weight[:, order])), x[:, order], "cfcam", layer="keep", filter=kind)
    assert torch.allclose(one, two, atol=1e-6)


def test_cfcam_clusters_copies_and_reports() -> None:
    torch.manual_seed(2)
    base = torch.rand(1, 4, 5, 6) * 3
    copies = torch.rand(1, 1, 5, 6).expand(1, 12, 5, 6)
    result = explain(
        Tail(lambda a: a.square().flatten(2).mean(-1)),
        torch.cat((base, copies), 1),
        methods="cfcam",
        classes=1,
        layers="keep",
    )[0]
    (counts,) = result.report["channels"]
    assert counts == {"dominant": 4, "clustered": 12, "ignored": 0}


def test_released_cfcam_is_nearly_uniform() -> None:
    """The published softmax over weights of order 1e-3 leaves the mean of the channels."""
    x = torch.rand(1, 32, 6, 7)
    weight = torch.randn(2, 32)
    network = Tail(lambda a: a.flatten(2).mean(-1) @ weight.T)
    released = raw(network, x, "cfcam", 0, layer="keep", weights="softmax", dominant=0.0)
    assert np.corrcoef(released.flatten(), x.mean(1).flatten())[0, 1] > 0.99
    assert np.corrcoef(raw(network, x, "cfcam", 0, layer="keep").flatten(), x.mean(1).flatten())[0, 1] < 0.9


def test_smoothing_keeps_constants_and_the_sum_inside() -> None:
    flat = torch.full((1, 1, 5, 6, 7), 0.4)
    assert torch.allclose(smooth(flat, 1.0), flat, atol=1e-6)
    point = torch.zeros(1, 1, 21, 23)
    point[0, 0, 10, 11] = 1
    spread = smooth(point, (2.0, 0.0))
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert spread[0, 0, :, 10].sum() == 0


def test_refinecam_multiplies_layers() -> None:
    network, x = Pooled(3), torch.randn(SHAPES[3])
    result = explain(network, x, methods=("refinecam", "gradcampp"), classes=1, layers=["body.1", "act"])
    layers = [result.get("gradcampp", layer=name) for name in ("body.1", "act")]
    expected = torch.ones(2, *SHAPES[3][2:])
    for item in layers:
        expected = expected * item.map / item.raw.clamp_min(0).flatten(1).amax(1).view(2, 1, 1, 1)
    assert torch.allclose(result.get("refinecam").raw, expected, atol=1e-5)
    assert result.get("refinecam").layer == "body.1+act"
    with pytest.raises(ExplainError, match="two or more"):
        explain(network, x, methods="refinecam", layers="act")


def test_layercam_fusion_is_the_strongest_layer_at_each_voxel() -> None:
    network, x = Pooled(3), torch.randn(SHAPES[3])
    result = explain(network, x, methods=("layercam_fusion", "layercam"), classes=1, layers=["body.1", "act"])
    expected = torch.zeros(2, *SHAPES[3][2:])
    for name in ("body.1", "act"):
        raw = result.get("layercam", layer=name).raw.clamp_min(0)
        lifted = torch.tanh(2 * raw / raw.flatten(1).amax(1).view(2, 1, 1, 1))
        expected = torch.maximum(
            expected, nn.functional.interpolate(lifted[:, None], SHAPES[3][2:], mode="trilinear")[:, 0]
        )
    assert torch.allclose(result.get("layercam_fusion").raw, expected, atol=1e-5)


def test_the_sign_of_a_tie_is_not_left_to_rounding() -> None:
    """Two positions: the centred component is symmetric, and the stronger position is the bright one."""
    features = torch.tensor([[[1.0, 3.0], [0.5, 2.0]]]).view(1, 2, 1, 2)
    for scale in (1.0, 1 + 1e-6, 0.3):
        component, _ = first_component(features * scale, center=True, sign="range")
        assert component[0, 0, 1] > 0 > component[0, 0, 0]
