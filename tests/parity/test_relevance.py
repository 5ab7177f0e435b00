"""Relevance propagation and guided backpropagation against Zennit and Captum."""

from __future__ import annotations

import pytest
import torch

from medxai.explain import explain
from tests.explain.nets import Pooled
from tests.explain.test_relevance import SHAPES, chain
from tests.parity.peers import peer


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("epsilon_plus_flat", "EpsilonPlusFlat"),
        ("epsilon_plus", "EpsilonPlus"),
        ("epsilon_gamma_box", "EpsilonGammaBox"),
        ("epsilon_alpha2_beta1", "EpsilonAlpha2Beta1"),
        ("epsilon_alpha2_beta1_flat", "EpsilonAlpha2Beta1Flat"),
    ],
)
def test_zennit(ours: str, theirs: str, dims: int) -> None:
    composites, canonizers = peer("zennit.composites"), peer("zennit.canonizers")
    attribution = peer("zennit.attribution")
    network, x = chain(dims, bias=True, norm=True), torch.randn(SHAPES[dims]).clamp(-2, 2)
    mine = explain(
        network, x, methods="lrp", classes=1, options={"lrp": {"composite": ours, "low": -2.0, "high": 2.0}}
    )[0].raw
    keys = {"low": -2.0, "high": 2.0} if "Box" in theirs else {}
    composite = getattr(composites, theirs)(canonizers=[canonizers.SequentialMergeBatchNorm()], **keys)
    with attribution.Gradient(network, composite) as attributor:
        scores = network(x).detach()
        start = torch.zeros_like(scores)
        start[:, 1] = scores[:, 1]
        _, reference = attributor(x, start)
    assert torch.allclose(mine, reference[:, 0], rtol=1e-2, atol=1e-3 * float(reference.abs().max()))


def test_captum_lrp_in_two_dimensions() -> None:
    """Captum has no rule for Conv3d."""
    attr = peer("captum.attr")

    class Plain(torch.nn.Module):  # Captum has no rule for nn.Flatten either
        def __init__(self) -> None:
            super().__init__()
            layers = list(chain(2, bias=False))
            layers[1].inplace = False
            cut = next(i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.Flatten))
            self.body, self.head = torch.nn.Sequential(*layers[:cut]), torch.nn.Sequential(*layers[cut + 1 :])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).flatten(1))

    network, x = Plain(), torch.randn(SHAPES[2])
    mine = explain(network, x, methods="lrp", classes=1, options={"lrp": {"composite": "epsilon", "eps": 1e-9}})[0].raw
    theirs = attr.LRP(network).attribute(x, target=1)[:, 0].detach()
    assert torch.allclose(mine, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("dims", [2, 3])
def test_captum_guided(dims: int) -> None:
    attr = peer("captum.attr")
    network, x = Pooled(dims).eval(), torch.randn(2, 1, *(8, 12, 10)[-dims:])
    network.body[1].inplace = network.act.inplace = False
    mine = explain(network, x, methods=("guided_backprop", "guided_gradcam"), classes=1, layers="act")
    plain = attr.GuidedBackprop(network).attribute(x, target=1)[:, 0].detach()
    assert torch.allclose(mine.get("guided_backprop").raw, plain, rtol=1e-3, atol=1e-6)
    both = (
        attr.GuidedGradCam(network, network.act)
        .attribute(x, target=1, interpolate_mode="bilinear" if dims == 2 else "trilinear")[:, 0]
        .detach()
    )
    assert torch.allclose(mine.get("guided_gradcam").raw, both, rtol=1e-2, atol=1e-3 * float(both.abs().max()))


def test_torchcam_legrad() -> None:
    methods = peer("torchcam.methods")
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(16, 4, 3, 2, 8, 16, num_classes=3).eval()
    torch.nn.init.normal_(network.heads.head.weight)
    x = torch.randn(1, 3, 16, 16)
    mine = explain(network, x, methods="legrad", classes=1)[0].raw
    with methods.LeGrad(network, list(network.encoder.layers)) as extractor:
        theirs = extractor(1, network(x), normalized=False)
    theirs = torch.stack([m[0] for m in theirs]).mean(0) if len(theirs) > 1 else theirs[0][0]
    assert torch.allclose(mine[0], theirs.detach(), rtol=1e-3, atol=1e-7)
