"""Class activation maps against grad-cam, TorchCAM, Captum and MONAI, and where those are known to be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks import nets
from torch import nn

from medxai.explain import Segment, explain
from tests.explain.nets import Pooled
from tests.parity.peers import correlation, grad_cam_raw, peer, torchcam_raw


def case(dims: int) -> tuple[nn.Module, torch.Tensor, str]:
    """A network whose tail is neither linear nor constant over positions, and a batch."""
    torch.manual_seed(dims)
    network = nets.DenseNet(dims, 1, 4, 8, 4, (2, 2, 2)).eval()
    for module in network.modules():  # a fresh network's maps are nearly constant
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network, torch.randn(2, 1, *((32, 40, 24) if dims == 3 else (48, 64))), "features.denseblock2"


def target(index: int, scale: float = 1.0):
    return lambda output: scale * output[index]


SAME = {
    "gradcam": "GradCAM",
    "hirescam": "HiResCAM",
    "gradcam_elementwise": "GradCAMElementWise",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "fem": "FEM",
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", list(SAME))
def test_grad_cam_package(name: str, dims: int) -> None:
    network, x, layer = case(dims)
    theirs = grad_cam_raw(SAME[name], network, x, layer, target(1))
    ours = explain(network, x, methods=name, classes=1, layers=layer)[0].raw.numpy()
    size = np.abs(theirs).max()
    if name == "layercam":  # theirs is rectified already
        ours = np.maximum(ours, 0)
    assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * size)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("name", "theirs"), [("eigencam", "EigenCAM"), ("eigengradcam", "EigenGradCAM"), ("kpca_cam", "KPCA_CAM")]
)
def test_grad_cam_package_up_to_sign(name: str, theirs: str, dims: int) -> None:
    network, x, layer = case(dims)
    reference = grad_cam_raw(theirs, network, x, layer, target(1))
    ours = explain(network, x, methods=name, classes=1, layers=layer)[0].raw.numpy()
    for a, b in zip(ours, reference, strict=True):
        assert min(np.abs(a - b).max(), np.abs(a + b).max()) < 2e-3 * np.abs(b).max()


@pytest.mark.parametrize("dims", [2, 3])
def test_grad_cam_plus_plus_where_gradients_are_large(dims: int) -> None:
    """The package adds 1e-6 to a denominator of squared gradients; with |G| above 0.03 that does not matter."""
    network, x, layer = case(dims)
    large, small = (
        (
            grad_cam_raw("GradCAMPlusPlus", network, x, layer, target(1, scale)),
            explain(network, x, methods="gradcampp", classes=lambda z, s=scale: s * z[:, 1], layers=layer)[
                0
            ].raw.numpy(),
        )
        for scale in (1e4, 1e-3)
    )
    assert correlation(*large) > 0.999
    # With the small gradients of a volume its weights turn into cubes of the gradient.
    assert correlation(*small) < correlation(*large)


@pytest.mark.parametrize("dims", [2, 3])
def test_shapleycam(dims: int) -> None:
    peer("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST

    network, x, layer = case(dims)
    theirs = np.concatenate(
        [grad_cam_raw("ShapleyCAM", network, x[b : b + 1], layer, ClassifierOutputReST(1)) for b in range(2)]
    )
    ours = explain(network, x, methods="shapleycam", classes=1, layers=layer)[0].raw.numpy()
    assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_finercam() -> None:
    """The package lets the gradient run through the softmax; equal weights leave nothing to differ."""
    peer("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    network, x, layer = case(2)
    for b in range(2):
        logits = network(x)[b].detach()
        near = (logits - logits[1]).abs().argsort()[1]
        theirs = grad_cam_raw("GradCAM", network, x[b : b + 1], layer, FinerWeightedTarget(1, [int(near)], 1.0))
        ours = explain(
            network, x[b : b + 1], methods="finercam", classes=1, layers=layer, options={"finercam": {"similar": 1}}
        )
        assert np.allclose(ours[0].raw.numpy(), theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_segmentation_target() -> None:
    peer("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    torch.manual_seed(0)
    network = nets.UNet(2, 1, 3, (4, 8), (2,)).eval()
    x = torch.randn(1, 1, 24, 32)
    mask = np.zeros((24, 32), np.float32)
    mask[5:9, 10:20] = 1
    theirs = grad_cam_raw("GradCAM", network, x, "model.1", SemanticSegmentationTarget(2, mask))
    ours = explain(
        network, x, methods="seggradcam", classes=Segment(2, torch.from_numpy(mask), "sum"), layers="model.1"
    )
    assert np.allclose(ours[0].raw.numpy(), theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("name", "theirs"), [("gradcam", "GradCAM"), ("layercam", "LayerCAM"), ("xgradcam", "XGradCAM")]
)
def test_torchcam(name: str, theirs: str, dims: int) -> None:
    network, x, layer = case(dims)
    reference = torchcam_raw(theirs, network, x, layer, 1)
    ours = explain(network, x, methods=name, classes=1, layers=layer)[0].raw.clamp_min(0).numpy()
    assert np.allclose(ours, reference, rtol=1e-3, atol=1e-4 * np.abs(reference).max())


def test_torchcam_cam() -> None:
    network = Pooled(2).eval()
    x = torch.randn(2, 1, 16, 20)
    methods = peer("torchcam.methods")
    with methods.CAM(network, "act", fc_layer="fc", input_shape=(1, 16, 20)) as extractor, torch.no_grad():
        network(x)
        (theirs,) = extractor(1, normalized=False)
    ours = explain(network, x, methods="cam", classes=1, layers="act")[0].raw
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_torchcam_grad_cam_plus_plus_is_not_the_published_one() -> None:
    """Its division acts on a copy, so that weights become cubes of the gradient: ours is compared with the formula."""
    network = Pooled(2).eval()
    x = torch.randn(2, 1, 16, 20)
    theirs = torchcam_raw("GradCAMpp", network, x, "act", 1)
    ours = explain(network, x, methods="gradcampp", classes=1, layers="act")[0].raw
    activation = network.act(network.body(x)).detach()
    g = network.fc.weight[1].detach() / 80
    cubes = torch.einsum("k,bk...->b...", 80 * g.clamp_min(0) ** 3, activation)
    formula = torch.einsum("bk,bk...->b...", 80 * g.clamp_min(0) / (2 + activation.flatten(2).sum(2) * g), activation)
    assert torch.allclose(ours, formula, rtol=1e-4, atol=1e-6)
    assert correlation(theirs, cubes) > 0.9999
    assert correlation(theirs, ours) < 0.9999


@pytest.mark.parametrize("dims", [2, 3])
def test_captum_layer_grad_cam(dims: int) -> None:
    attr = peer("captum.attr")
    network, x, layer = case(dims)
    theirs = attr.LayerGradCam(network, network.get_submodule(layer)).attribute(x, target=1)[:, 0].detach()
    ours = explain(network, x, methods="gradcam", classes=1, layers=layer)[0].raw
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "theirs"), [("saliency", "Saliency"), ("inputxgradient", "InputXGradient")])
def test_captum_input_gradients(name: str, theirs: str, dims: int) -> None:
    attr = peer("captum.attr")
    network, x, _ = case(dims)
    reference = getattr(attr, theirs)(network).attribute(x.clone().requires_grad_(), target=1)[:, 0].detach()
    ours = explain(network, x, methods=name, classes=1)[0].raw
    assert torch.allclose(ours, reference, rtol=1e-3, atol=1e-5 * float(reference.abs().max()))


def test_captum_integrated_gradients() -> None:
    attr = peer("captum.attr")
    network, x, _ = case(2)
    reference = (
        attr.IntegratedGradients(network).attribute(x, target=1, n_steps=20, method="gausslegendre")[:, 0].detach()
    )
    ours = explain(
        network, x, methods="integrated_gradients", classes=1, options={"integrated_gradients": {"steps": 20}}
    )
    assert torch.allclose(ours[0].raw, reference.float(), rtol=1e-2, atol=1e-4 * float(reference.abs().max()))


@pytest.mark.parametrize("dims", [2, 3])
def test_monai_maps_are_the_same_and_upside_down(dims: int) -> None:
    """`compute_map` agrees; what `GradCAM` returns by default has the most important voxel at zero."""
    from monai.visualize.class_activation_maps import GradCAM

    network, x, layer = case(dims)
    cam = GradCAM(network, layer)
    reference = cam.compute_map(x, class_idx=1)[:, 0].detach()
    shown = cam(x, class_idx=1)[:, 0].detach()
    ours = explain(network, x, methods="gradcam", classes=1, layers=layer)[0]
    assert torch.allclose(ours.raw.clamp_min(0), reference, rtol=1e-3, atol=1e-5 * float(reference.max()))
    assert correlation(ours.map, shown) < -0.9
