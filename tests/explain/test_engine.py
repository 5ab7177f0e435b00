"""The interface: what can be explained, what comes back, and what is refused before any work."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.networks import nets
from torch import nn

from medxai.errors import ExplainError
from medxai.explain import Similarity, explain
from medxai.explain.progress import Progress
from medxai.explain.split import forward_split
from tests.explain.nets import Pooled, fingerprint

X = torch.randn(3, 1, 8, 12, 20, generator=torch.Generator().manual_seed(0))


def test_one_forward_answers_all_methods_targets_and_layers() -> None:
    network = Pooled()
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    result = explain(network, X, methods=("gradcam", "layercam", "eigencam"), classes=[0, 2], layers=["body.1", "act"])
    assert len(calls) == 1
    assert len(result) == 12
    assert [item.method for item in result[:4]] == ["gradcam"] * 4
    assert result.get("layercam", 2, "body.1").layer == "body.1"
    with pytest.raises(KeyError):
        result.get("gradcam", 1)


def test_classes_of_every_kind() -> None:
    network = Pooled()
    logits = network(X).detach()
    order = logits.argsort(dim=1, descending=True)
    top = explain(network, X, classes=["top1", "top3"], layers="act")
    assert torch.equal(top[0].classes, order[:, 0])
    assert torch.equal(top[1].classes, order[:, 2])
    each = explain(network, X, classes=torch.tensor([0, 1, 2]), layers="act")[0]
    for b in range(3):
        alone = explain(network, X[b : b + 1], classes=b, layers="act")[0]
        assert torch.allclose(each.raw[b], alone.raw[0], atol=1e-7)
    nested = explain(network, X, classes=[[0, 1, 2]], layers="act")[0]
    assert torch.equal(nested.raw, each.raw)
    margin = explain(network, X, classes=lambda z: z[:, 1] - z[:, 0], layers="act")[0]
    one, zero = (explain(network, X, classes=c, layers="act")[0].raw for c in (1, 0))
    assert torch.allclose(margin.raw, one - zero, atol=1e-7)
    assert margin.classes is None


@pytest.mark.parametrize(
    ("request_", "words"),
    [(7, "there is no class 7"), (-1, "there is no class -1"), ("top9", "top1 to top3"), ("best", "not understood"),
     ([[0, 1]], "one for each sample"), (lambda z: z.sum(), "one number per sample"), ([], "no class was asked for"),
     (True, "there is no class True"), (1.5, "there is no class 1.5")],
)  # fmt: skip
def test_impossible_classes(request_: object, words: str) -> None:
    with pytest.raises(ExplainError, match=words):
        explain(Pooled(), X, classes=request_, layers="act")  # type: ignore[arg-type]


def test_a_wrong_request_fails_before_long_work() -> None:
    network, calls = Pooled(), []
    network.register_forward_hook(lambda *_: calls.append(1))
    for arguments in (
        {"methods": ("smoothgrad", "cam9")},
        {"methods": "smoothgrad", "options": {"smoothgrad": {"sample": 3}}},
        {"methods": "smoothgrad", "options": {"smoothgrad": {"samples": 0}}},
        {"methods": "smoothgrad", "options": {"gradcam": {}}},
        {"methods": "smoothgrad", "layers": "nowhere"},
        {"methods": ()},
        {"methods": ("smoothgrad", "refinecam"), "layers": "act"},
    ):
        with pytest.raises(ExplainError):
            explain(network, X, **arguments)
    assert not calls
    with pytest.raises(ExplainError):
        explain(network, X, methods="smoothgrad", classes=9, layers="act")
    with pytest.raises(ExplainError, match="dense"):
        explain(network, X, methods=("smoothgrad", "seggradcam"), layers="act")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("x", "words"),
    [(torch.zeros(2, 3), "an image of shape"), ("scan", "an image of shape"), (torch.zeros(0, 1, 4, 4), "is empty"),
     (torch.full((1, 1, 4, 4), float("nan")), "NaN"), (torch.zeros(1, 1, 4, 4, dtype=torch.int32), "int32")],
)  # fmt: skip
def test_impossible_inputs(x: object, words: str) -> None:
    with pytest.raises(ExplainError, match=words):
        explain(Pooled(2), x, layers="act")


class Fusion(nn.Module):
    """Image, clinical values and a flag in; a dictionary and extras out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.clinic = Pooled(3, classes=4), nn.Linear(2, 4)

    def forward(self, image: torch.Tensor, clinical: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        both = self.image(image) * self.clinic(clinical).sigmoid() * scale
        return {"logits": both, "features": image.flatten(1)}


def test_several_inputs_and_named_outputs() -> None:
    network, clinical = Fusion(), torch.randn(3, 2)
    whole = explain(network, (X, clinical), classes=1, layers="image.act", methods=("gradcam", "smoothgradcampp"))
    named = explain(network, {"image": X, "clinical": clinical, "scale": 1.0}, classes=1, layers="image.act")
    assert torch.equal(whole[0].raw, named[0].raw)
    for b in range(3):
        alone = explain(network, (X[b : b + 1], clinical[b : b + 1]), classes=1, layers="image.act",
                        methods=("gradcam", "smoothgradcampp"))  # fmt: skip
        for left, right in zip(whole, alone, strict=True):
            assert torch.allclose(left.raw[b], right.raw[0], rtol=1e-3, atol=1e-6)
    features = explain(network, (X, clinical), output="features", classes=lambda f: f.sum(1), methods="saliency")
    assert torch.allclose(features[0].raw, torch.ones_like(features[0].raw))
    with pytest.raises(ExplainError, match="no item 'risk'"):
        explain(network, (X, clinical), output="risk", layers="image.act")
    with pytest.raises(ExplainError, match="say with output"):
        explain(network, (X, clinical), output=lambda _: {"a": 1}, layers="image.act")


def test_outputs_of_every_kind() -> None:
    class Wrapped(nn.Module):
        def __init__(self, wrap: object) -> None:
            super().__init__()
            self.net, self.wrap = Pooled(), wrap

        def forward(self, x: torch.Tensor) -> object:
            return self.wrap(self.net(x))  # type: ignore[operator]

    plain = explain(Pooled(), X, classes=1, layers="act")[0].raw
    for wrap in (lambda z: (z, "hidden"), lambda z: [z, z * 2], lambda z: {"out": z}, lambda z: {"only": z}):
        assert torch.equal(explain(Wrapped(wrap), X, classes=1, layers="net.act")[0].raw, plain)
    second = explain(Wrapped(lambda z: (z, z * 2)), X, classes=1, layers="net.act", output=1)[0].raw
    assert torch.allclose(second, 2 * plain, atol=1e-7)
    regression = explain(Wrapped(lambda z: z[:, 1]), X, classes=1, layers="net.act")[0].raw
    assert torch.allclose(regression, plain, atol=1e-7)


def test_similarity_of_embeddings() -> None:
    network = Pooled(classes=6)
    query = network(X[:1])[0].detach()
    own, other = (explain(network, X, classes=Similarity(q), layers="act")[0] for q in (query, torch.randn(6)))
    assert own.score[0] == pytest.approx(1, abs=1e-5)
    assert own.raw[0].abs().max() < 1e-3 * other.raw[0].abs().max()  # at the maximum the gradient vanishes


def test_metatensor_in_and_out() -> None:
    affine = torch.tensor(
        [[0.0, 0.7, 0.0, -20], [0.1, 0.0, 0.8, 30], [2.5, 0.0, -0.1, 5], [0, 0, 0, 1]], dtype=torch.float64
    )
    result = explain(Pooled(), MetaTensor(X, affine=affine), classes=1, layers="act")[0]
    assert isinstance(result.map, MetaTensor)
    assert torch.equal(result.map.affine, affine)
    assert not isinstance(result.raw, MetaTensor)
    plain = explain(Pooled(), X, classes=1, layers="act")[0]
    assert torch.equal(result.map.as_tensor(), plain.map)
    assert not isinstance(plain.map, MetaTensor)
    assert result.cell == (2, 2, 2)
    assert plain.raw_affine is None
    # The first cell covers voxels 0 and 1 of each axis: its centre lies between theirs.
    first = result.raw_affine @ torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
    assert torch.allclose(first, affine @ torch.tensor([0.5, 0.5, 0.5, 1], dtype=torch.float64))


def test_views_of_a_map() -> None:
    result = explain(Pooled(), X, classes=1, layers="act")[0]
    opposite = explain(Pooled(), X, classes=lambda z: -z[:, 1], layers="act")[0]
    assert torch.allclose(result.negative, opposite.map, atol=1e-7)
    assert result.map.shape == (3, 8, 12, 20)
    shown = result.normalised()
    assert torch.allclose(shown.flatten(1).amax(1), torch.ones(3), atol=1e-4)
    assert (shown >= 0).all()
    frames = result.normalised("frame").flatten(2).amax(2)
    assert ((frames > 0.99) | (frames == 0)).all()
    assert torch.allclose(result.normalised((0.0, 2.0)), (result.map / 2).clamp(0, 1))
    assert result.normalised(signed=True).abs().flatten(1).amax(1).allclose(torch.ones(3))


def test_an_empty_map_is_flagged_and_not_divided() -> None:
    network = Pooled()
    with torch.no_grad():
        network.fc.weight[1] = -network.fc.weight[1].abs()
    result = explain(network, X, classes=1, layers="act")[0]
    assert all(flags == {"empty"} for flags in result.flags)
    assert (result.map == 0).all()
    assert (result.normalised() == 0).all()
    assert result.negative.max() > 0


def test_progress_is_reported_with_an_estimate() -> None:
    seen: list[Progress] = []
    explain(Pooled(), X, methods=("gradcam", "smoothgrad"), classes=1, layers="act", chunk=2, progress=seen.append)
    assert {item.method for item in seen} == {"smoothgrad"}
    assert seen[-1].done == seen[-1].total == 48
    assert seen[-1].seconds_left == 0
    assert all(a.done < b.done for a, b in pairwise(seen))


def test_chunks_do_not_matter() -> None:
    one, five = (explain(Pooled(), X, methods="smoothgrad", classes=1, chunk=chunk)[0].raw for chunk in (1, 5))
    assert torch.allclose(one, five, atol=1e-7)


def test_lower_precision_in_float32_out() -> None:
    for dims in (2, 3):
        x = X if dims == 3 else X[:, :, 0]
        exact = explain(Pooled(dims), x, classes=1, layers="act")[0].raw
        for kind in (torch.bfloat16, torch.float16):
            half = explain(Pooled(dims).to(kind), x.to(kind), classes=1, layers="act")[0].raw
            assert half.dtype == torch.float32
            assert torch.corrcoef(torch.stack((half.flatten(), exact.flatten())))[0, 1] > 0.99
        mixed = explain(
            Pooled(dims), x, classes=1, layers="act", autocast=torch.bfloat16, methods=("gradcam", "gradcampp")
        )
        assert torch.corrcoef(torch.stack((mixed[0].raw.flatten(), exact.flatten())))[0, 1] > 0.99
        assert all(item.raw.dtype == torch.float32 for item in mixed)
    double = explain(Pooled().double(), X.double(), classes=1, layers="act")[0].raw
    assert double.dtype == torch.float32


def test_half_precision_gradients_do_not_vanish() -> None:
    """1/P of a large grid is below what float16 holds."""
    network = Pooled(2).half()
    x = torch.randn(1, 1, 400, 600).half()
    result = explain(network, x, classes=1, layers="act")[0]
    exact = explain(Pooled(2), x.float(), classes=1, layers="act")[0]
    assert torch.allclose(result.raw, exact.raw, rtol=0.05, atol=float(exact.raw.abs().max()) * 0.05)


def test_autocast_with_a_skip_into_a_layer_of_its_own() -> None:
    """A half-precision arm cannot enter a float32 tail; autocast then stays on throughout."""

    class Arms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.a, self.b = (nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
            self.fc = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            early = self.stem(x)
            return self.fc((self.a(early).relu() + self.b(early)).flatten(2).mean(-1))

    result = explain(Arms(), torch.randn(1, 1, 12, 14), layers="a", autocast=torch.bfloat16)
    assert torch.isfinite(result[0].raw).all()


class PerFrame(nn.Module):
    """A 2D network for each frame, averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, t, h, w = x.shape
        frames = x.transpose(1, 2).reshape(b * t, c, h, w)
        return self.fc(self.conv(frames).relu().flatten(2).mean(-1)).view(b, t, -1).mean(1)


def test_video_through_a_network_for_single_frames() -> None:
    """Activations ``[B * T, K, h, w]`` become ``[B, K, T, h, w]``: the map says when."""
    network, x = PerFrame(), torch.randn(2, 1, 5, 12, 16)
    x[:, :, 3] *= 4
    result = explain(network, x, classes=1)[0]
    assert result.layer == "conv"
    assert result.raw.shape == (2, 5, 6, 8)
    assert result.map.shape == (2, 5, 12, 16)
    frame = explain(network, x[:, :, 3:4].expand(-1, -1, 2, -1, -1), classes=1, layers="conv", methods="hirescam")[
        0
    ].raw[:, 0]
    video = explain(network, x, classes=1, layers="conv", methods="hirescam")[0].raw[:, 3]
    assert torch.allclose(video * 5, frame * 2, atol=1e-6)


class ChannelsLast(nn.Module):
    """Feature map ``[B, h, w, K]``, as the Swin transformers of torchvision hand on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(1, 8, 4, stride=4), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_channels_last_features() -> None:
    x = torch.randn(2, 1, 32, 48)
    result = explain(ChannelsLast(), x, classes=1, methods=("gradcam", "cam"))
    assert result.layers == ("norm",)
    assert result[0].raw.shape == (2, 8, 12)
    assert torch.allclose(
        result.get("cam").raw.flatten(1).mean(1) + ChannelsLast().fc.bias[1].detach(), result.logits[:, 1], atol=1e-5
    )


def test_dense_networks_choose_their_bottleneck() -> None:
    network = nets.UNet(3, 1, 2, (4, 8, 16), (2, 2))
    x = torch.randn(1, 1, 16, 24, 20)
    result = explain(network, x, classes=1, methods=("seggradcam", "hirescam"))
    assert result[0].raw.shape == (1, 4, 6, 5)
    assert result[0].map.shape == (1, 16, 24, 20)


def test_layer_upstream_of_nothing_is_refused() -> None:
    class Ignored(Pooled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.act(self.body(x))
            return self.fc(torch.ones(len(x), 5))

    with pytest.raises(ExplainError, match="does not depend on layer 'act'"):
        explain(Ignored(), X, layers="act")


def test_two_layers_gradients_are_those_of_separate_calls() -> None:
    network = nets.DenseNet(3, 1, 3, 8, 4, (2, 2))
    names = ["features.transition1.conv", "class_layers.relu"]
    x = torch.randn(2, 1, 16, 24, 20)
    both = explain(network, x, classes=1, layers=names)
    for item in both:
        alone = explain(network, x, classes=1, layers=item.layer)[0]
        assert torch.allclose(item.raw, alone.raw, rtol=1e-4, atol=1e-8)
    captured = forward_split(network, x, names)
    assert set(captured.outputs) == set(names)


def test_parallel_layers() -> None:
    """Neither layer lies upstream of the other."""

    class Arms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.a(x).relu() * self.b(x)).flatten(2).mean(-1)

    network, x = Arms(), torch.randn(1, 1, 9, 11)
    both = explain(network, x, classes=1, layers=["a", "b"])
    for item in both:
        assert torch.allclose(item.raw, explain(network, x, classes=1, layers=item.layer)[0].raw, atol=1e-7)


def test_state_survives_errors_in_the_middle() -> None:
    network = Pooled()
    network.train()
    before = fingerprint(network)

    def broken(_z: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("in the target")

    with pytest.raises(RuntimeError, match="in the target"):
        explain(network, X, classes=broken, layers="act")
    with pytest.raises(RuntimeError):
        explain(network, torch.randn(1, 5, 8, 8, 8), layers="act")
    assert fingerprint(network) == before


def test_questions_made_on_the_way_are_not_mixed_up() -> None:
    """Finer-CAM asks its own question for each class; a later one must not get the gradient of an earlier one."""
    network = Pooled(classes=6)
    together = explain(network, X, methods="finercam", classes=list(range(6)), layers="act")
    for index in range(6):
        alone = explain(network, X, methods="finercam", classes=index, layers="act")[0]
        assert torch.allclose(together[index].raw, alone.raw, atol=1e-7)
