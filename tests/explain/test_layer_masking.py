"""Layer masking and token dropping: the network sees what is kept and nothing else."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from torch import nn

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.masking.layer_masking import LayerMasked
from medxai.explain.masking.masked_tensor import MaskedTensor
from medxai.explain.masking.masker import Masker
from tests.explain.perturbed import make_run, state


def lively(network: nn.Module) -> nn.Module:
    """Weights that keep a signal alive, and biases and running statistics other than those at birth."""
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.3
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
        elif isinstance(module, nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if getattr(module, "bias", None) is not None and isinstance(module.bias, nn.Parameter):
            module.bias.data = torch.randn(module.bias.shape, generator=generator) * 0.3
    return network.eval()


def cases() -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Networks and input shapes."""
    torch.manual_seed(0)
    return [
        ("densenet2d", nets.DenseNet(2, 1, 3, 8, 4, (2, 2)), (2, 1, 48, 64)),
        ("densenet3d", nets.DenseNet(3, 1, 3, 8, 4, (2, 2)), (2, 1, 16, 32, 24)),
        ("resnet2d", nets.ResNet("basic", (1, 1, 1, 1), (8, 8, 16, 16), 2, 1), (2, 1, 48, 40)),
        ("resnet3d", nets.ResNet("basic", (1, 1, 1, 1), (4, 8, 8, 8), 3, 1, shortcut_type="A"), (1, 1, 32, 24, 40)),
        ("efficientnet2d", nets.EfficientNetBN("efficientnet-b0", False, in_channels=1), (1, 1, 64, 48)),
        ("efficientnet3d", nets.EfficientNetBN("efficientnet-b0", False, spatial_dims=3, in_channels=1),
         (1, 1, 32, 40, 48)),
        ("senet2d", nets.SENet(2, 1, "se_resnet_bottleneck", (1, 1, 1, 1), 1, 16, num_classes=3), (1, 1, 48, 32)),
        ("senet3d", nets.SENet(3, 1, "se_resnet_bottleneck", (1, 1, 1, 1), 1, 16, num_classes=3), (1, 1, 32, 24, 16)),
        ("unet", nets.BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 8, 4)), (2, 1, 32, 48)),
        ("segresnet", nets.SegResNet(3, 8, 1, 2), (1, 1, 16, 24, 32)),
    ]  # fmt: skip


_SLOW = ("senet3d", "efficientnet3d")


@pytest.mark.parametrize(
    ("name", "network", "shape"),
    [pytest.param(*case, id=case[0], marks=pytest.mark.slow if case[0] in _SLOW else ()) for case in cases()],
)
def test_checks(name: str, network: nn.Module, shape: tuple[int, ...]) -> None:
    """A whole mask changes nothing, hidden content nothing at all, and the network comes back as it was."""
    lively(network)
    network.train()
    before = state(network)
    x, whole = torch.randn(shape), torch.ones(shape[0], 1, *shape[2:])
    mask = (torch.rand(whole.shape) > 0.5).float()
    mask[..., : shape[-1] // 2] = 0
    with torch.no_grad(), LayerMasked(network) as masked:
        plain = network(x)
        assert torch.allclose(masked(x, whole), plain, atol=1e-5 * float(plain.abs().max().clamp_min(1)))
        seen = masked(x, mask)
        assert torch.equal(masked(torch.where(mask > 0, x, torch.inf), mask), seen)
        assert not torch.allclose(seen, plain, atol=1e-5)
        empty = masked(x, 0 * whole)
        assert torch.isfinite(empty).all()
    assert state(network) == before, name


def test_nothing_kept_leaves_the_bias_of_the_head() -> None:
    """Pooled features are zero."""
    network = lively(nets.DenseNet(3, 1, 3, 8, 4, (2, 2)))
    with torch.no_grad(), LayerMasked(network) as masked:
        found = masked(torch.randn(2, 1, 16, 32, 24), torch.zeros(2, 1, 16, 32, 24))
    assert torch.allclose(found, network.class_layers.out.bias.expand(2, 3))


@pytest.mark.parametrize(("conv", "shape"), [(nn.Conv2d, (24, 30)), (nn.Conv3d, (12, 16, 14))])
@pytest.mark.parametrize("padding", ["reflect", "none"])
def test_constant_image_looks_whole(conv: type[nn.Module], shape: tuple[int, ...], padding: str) -> None:
    """A constant with any mask gives the logits of the constant when nothing pads with zeros."""
    torch.manual_seed(0)
    how = {"padding": 2, "padding_mode": "reflect"} if padding == "reflect" else {}
    last = {"padding": 1, "padding_mode": "reflect"} if padding == "reflect" else {}
    pool = nn.AdaptiveAvgPool2d(1) if len(shape) == 2 else nn.AdaptiveAvgPool3d(1)
    network = nn.Sequential(
        conv(1, 4, 5, **how), nn.GELU(), conv(4, 5, 3, **last), nn.SiLU(), pool, nn.Flatten(), nn.Linear(5, 2)
    )
    x = torch.full((3, 1, *shape), 1.7)
    mask = torch.zeros(3, 1, *shape)
    mask[0, 0, 2, 3], mask[1, ..., 5:9] = 1, 1
    mask[2] = (torch.rand(1, *shape) > 0.7).float()
    with torch.no_grad(), LayerMasked(network) as masked:
        assert torch.allclose(masked(x, mask), network(x), atol=1e-5)


def test_masks_grow_by_what_windows_saw() -> None:
    """Valid after a strided, dilated convolution is what a window of it covers."""
    m = torch.zeros(1, 1, 9, 9)
    m[0, 0, 4, 4] = 1
    conv = nn.Conv2d(1, 2, 3, stride=2, padding=2, dilation=2)
    found = conv(MaskedTensor(torch.randn(1, 1, 9, 9), m))
    assert isinstance(found, MaskedTensor)
    expected = torch.zeros(5, 5)
    expected[1:4, 1:4] = 1
    assert torch.equal(found.m[0, 0], expected)
    assert found.shape == (1, 2, 5, 5)


def test_pools_and_norms_use_valid_positions() -> None:
    """Negative maxima survive, instance norm ignores what is hidden, averages may be renormalised."""
    x, m = -torch.rand(1, 2, 6, 8) - 1, torch.zeros(1, 1, 6, 8)
    m[..., :4] = 1
    pair = MaskedTensor(x, m)
    assert torch.equal(nn.MaxPool2d(2)(pair).x[..., :2], nn.MaxPool2d(2)(x)[..., :2])
    assert (nn.MaxPool2d(2)(pair).x[..., 2:] == 0).all()
    norm = nn.InstanceNorm2d(2, affine=True)
    assert torch.allclose(norm(pair).x[..., :4], norm(x[..., :4]), atol=1e-5)
    group = nn.GroupNorm(1, 2)
    assert torch.allclose(group(pair).x[..., :4], group(x[..., :4]), atol=1e-5)
    m[..., 3] = 0
    network = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    constant = torch.full((1, 2, 6, 8), 2.0)
    with LayerMasked(network, renormalise=True) as masked:
        assert torch.allclose(masked(constant, m), torch.full((1, 2), 2.0))
    with LayerMasked(network) as masked:
        assert torch.allclose(masked(constant, m), torch.full((1, 2), 1.5))


def test_gradients_reach_kept_voxels_only() -> None:
    """Filled values are constants to autograd."""
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    mask = (torch.rand(1, 1, 8, 8) > 0.5).float()
    with LayerMasked(network) as masked:
        (gradient,) = torch.autograd.grad(masked(x, mask).sum(), x)
    assert (gradient[mask == 0] == 0).all()
    assert gradient.abs().sum() > 0


def test_unknown_step_is_named() -> None:
    """A module whose step has no rule is told by name, and the network is left alone."""

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(2)

    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(1, 2, 3))
    network.add_module("strange", Odd())
    before = state(network)
    with pytest.raises(ExplainError, match=r"cumsum.*strange \(Odd\)"), LayerMasked(network) as masked:
        masked(torch.randn(1, 1, 8, 8), torch.ones(1, 1, 8, 8))
    assert state(network) == before
    vit = nets.ViT(1, (16, 16), (8, 8), hidden_size=24, mlp_dim=24, num_layers=1, num_heads=2, spatial_dims=2)
    with pytest.raises(ExplainError, match="token_drop"), LayerMasked(vit) as masked:
        masked(torch.randn(1, 1, 16, 16), torch.ones(1, 1, 16, 16))


def test_a_hole_in_the_shape_of_a_lesion_is_no_lesion() -> None:
    """On the trained phantom classifier, grey or blurred holes look like lesions, layer masking does not."""
    from medxai.learn.phantom_ct import SPEC, as_volume, draw
    from medxai.predict.bundle import load_bundle
    from medxai.prepare.prepare import prepare

    network = load_bundle("phantom_ct").network()
    pixels = torch.from_numpy(prepare(as_volume(draw(60_000, 0)), SPEC).pixels)
    x = pixels[None, :, :32, :64, :64].contiguous()
    lung = (x[0, 0] > 0.05) & (x[0, 0] < 0.2)
    places = torch.nonzero(lung[8:24, 10:-10, 10:-10]) + torch.tensor([8, 10, 10])
    grid = torch.stack(torch.meshgrid(*[torch.arange(s) for s in x.shape[2:]], indexing="ij"), -1)
    masks = torch.stack([((grid - p).float().norm(dim=-1) > 4.5).float() for p in places[:: len(places) // 6][:6]])
    run = make_run(network, x)
    rows = torch.zeros(len(masks), dtype=torch.long)
    change = {
        name: (Masker(run, name).scores(masks, rows, score="prob") - run.target.probability(run.logits)).abs().mean()
        for name in ("layer_mask", "mean", "blur")
    }
    assert change["layer_mask"] < change["mean"]
    assert change["layer_mask"] < change["blur"]


def vit(shape: tuple[int, ...], *, token: bool = True) -> nn.Module:
    """A small vision transformer of MONAI's."""
    torch.manual_seed(0)
    network = nets.ViT(1, shape, 8, hidden_size=24, mlp_dim=48, num_layers=2, num_heads=4, classification=token,
                       num_classes=3, spatial_dims=len(shape))  # fmt: skip
    return network.eval()


@pytest.mark.parametrize("shape", [(24, 32), (16, 24, 32)])
def test_token_drop(shape: tuple[int, ...]) -> None:
    """Hidden patches change nothing at all, a whole mask neither, and an empty image is finite."""
    network, x = vit(shape), torch.randn(2, 1, *shape)
    before = state(network)
    run = make_run(network, x)
    masker = Masker(run, "token_drop")
    masks = torch.ones(3, *shape)
    masks[1, ..., :8] = 0
    masks[2] = 0
    rows = torch.tensor([0, 1, 1])
    found = masker.outputs(masks, rows)
    assert torch.allclose(found[0], run.logits[0], atol=1e-6)
    assert not torch.allclose(found[1], run.logits[1], atol=1e-4)
    assert torch.isfinite(found).all()
    changed = x.clone()
    changed[..., :8] = 1e3
    other = Masker(make_run(network, changed), "token_drop").outputs(masks[1:], rows[1:])
    assert torch.equal(other, found[1:])
    assert state(network) == before


def test_token_drop_equals_removing_tokens_by_hand() -> None:
    """The blocks of the transformer see the class token and the survivors with their own positions."""
    network, x = vit((24, 32)), torch.randn(1, 1, 24, 32)
    mask = torch.ones(1, 24, 32)
    mask[:, 8:16, 16:] = 0
    with torch.no_grad():
        tokens = network.patch_embedding(x)[:, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]]
        tokens = torch.cat((network.cls_token, tokens), 1)
        for block in network.blocks:
            tokens = block(tokens)
        expected = network.classification_head(network.norm(tokens)[:, 0])
    found = Masker(make_run(network, x), "token_drop").outputs(mask, torch.tensor([0]))
    assert torch.allclose(found, expected, atol=1e-6)


def test_token_drop_needs_tokens() -> None:
    """A convolutional network is refused with the way out."""
    with pytest.raises(ExplainError, match="transformer"):
        explain(
            nets.DenseNet(2, 1, 3, 8, 4, (2, 2)), torch.randn(1, 1, 32, 32), methods=["occlusion"], masking="token_drop"
        )


def test_token_drop_without_class_token() -> None:
    """With every token gone a single one of zeros stands for the empty image."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = vit((16, 24), token=False), nn.Linear(24, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x)[0].mean(1))

    run = make_run(Mean().eval(), torch.randn(1, 1, 16, 24))
    masks = torch.ones(2, 16, 24)
    masks[0] = 0
    found = Masker(run, "token_drop").outputs(masks, torch.zeros(2, dtype=torch.long))
    assert torch.isfinite(found).all()
    assert torch.allclose(found[1], run.logits[0], atol=1e-6)
