"""What all methods that repeat the forward promise, on MONAI networks in 2D and 3D."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets

from medxai.explain import explain
from medxai.explain.progress import Progress
from tests.explain.perturbed import state

OPTIONS: dict[str, dict[str, object]] = {
    "scorecam": {"channels": 4},
    "sscam": {"channels": 2, "samples": 2},
    "iscam": {"channels": 2, "samples": 2},
    "ablationcam": {},
    "occlusion": {"window": 0.5},
    "rise": {"samples": 20, "grid": 3},
    "lime": {"segments": 5, "samples": 20},
    "kernelshap": {"segments": 5, "samples": 20},
}
NETWORKS = {
    "2d": (lambda: nets.DenseNet(2, 1, 3, 8, 4, (2, 2)), (2, 1, 32, 40)),
    "3d": (lambda: nets.DenseNet(3, 1, 3, 8, 4, (2,)), (2, 1, 12, 20, 16)),
}


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_contract(method: str, kind: str) -> None:
    """A batch is its samples, twice is once, and the network in training mode comes back as it was."""
    torch.manual_seed(0)
    make, shape = NETWORKS[kind]
    network, x = make(), torch.randn(shape)
    network.train()
    network.class_layers.eval()
    before, image = state(network), x.clone()
    options = {method: OPTIONS[method]}
    seen: list[Progress] = []
    both = explain(network, x, methods=[method], classes=[1], options=options, masking="blur", seed=3, chunk=5,
                   progress=seen.append)[0]  # fmt: skip
    assert state(network) == before
    assert torch.equal(x, image)
    assert seen[-1].done == seen[-1].total
    assert all(p.total == seen[-1].total for p in seen)
    again = explain(network, x, methods=[method], classes=1, options=options, masking="blur", seed=3, chunk=5)[0]
    assert torch.equal(again.raw, both.raw)
    for row in range(2):
        alone = explain(network, x[row : row + 1], methods=[method], classes=1, options=options, masking="blur", seed=3)
        top = float(both.raw[row].abs().max())
        assert torch.allclose(alone[0].raw[0], both.raw[row], atol=1e-4 * top), row
    assert both.parameters["seed"] == 3
    if method != "ablationcam":
        assert both.report["masking"] == "blur"


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("value", [0.0, -2.5, 1e12])
def test_constant_images(method: str, value: float) -> None:
    """Zero, constant and huge images give finite maps."""
    torch.manual_seed(0)
    network = nets.DenseNet(2, 1, 3, 8, 4, (2, 2))
    found = explain(network, torch.full((1, 1, 32, 40), value), methods=[method], classes=1, masking="air",
                    options={method: OPTIONS[method]})[0]  # fmt: skip
    assert torch.isfinite(found.raw).all()


def test_single_logit_and_masking_of_a_method() -> None:
    """Class 0 of a yes-or-no network is the negation of class 1; a method's own operator wins over the call's."""
    torch.manual_seed(0)
    network, x = nets.DenseNet(2, 1, 1, 8, 4, (2, 2)), torch.randn(1, 1, 32, 40)
    options = {"occlusion": {"window": 0.5, "masking": "mean"}}
    yes, no = explain(network, x, methods=["occlusion"], classes=[1, 0], options=options, masking="air")
    assert torch.allclose(yes.raw, -no.raw, atol=1e-6)
    assert yes.report["masking"] == "mean"
    assert yes.parameters["masking"] == "mean"


def test_layer_masked_lime_agrees_with_the_network() -> None:
    """LIME through layer masking on a DenseNet: a batch is its samples."""
    torch.manual_seed(0)
    network, x = nets.DenseNet(3, 1, 3, 8, 4, (2,)), torch.randn(2, 1, 12, 20, 16)
    options = {"lime": OPTIONS["lime"]}
    both = explain(network, x, methods=["lime"], classes=1, options=options, masking="layer_mask", chunk=3)[0]
    alone = explain(network, x[1:], methods=["lime"], classes=1, options=options, masking="layer_mask")[0]
    assert torch.allclose(alone.raw[0], both.raw[1], atol=1e-5)
    assert both.report["masking"] == "layer_mask"
