from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from medxai.errors import BundleError
from medxai.explain import explain
from medxai.identity import sha256_file
from medxai.networks.vgg_us import (
    FINE_LAYER,
    TARGET_LAYER,
    VggBase,
    VggCam,
    freeze_trunk,
    imagenet_state,
    load_imagenet,
)


def parameters(network: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained)


def statistics(network: nn.Module) -> int:
    return sum(b.numel() for name, b in network.named_buffers() if not name.endswith("num_batches_tracked"))


@pytest.fixture(scope="module")
def cam_network() -> VggCam:
    torch.manual_seed(0)
    return VggCam(3).eval()


def test_counts_are_those_of_the_publication() -> None:
    base, cam = VggBase(3), VggCam(3)
    assert parameters(base.features) == 14_714_688
    assert parameters(base) == 14_747_843
    assert parameters(base) + statistics(base) == 14_747_971  # Keras counts the running statistics
    assert parameters(cam) == 14_716_227
    assert parameters(VggCam(4)) == 14_716_740
    freeze_trunk(base)
    freeze_trunk(cam)
    assert parameters(base, trained=True) == 2_392_963
    assert parameters(cam, trained=True) == 2_361_347
    freeze_trunk(cam, open_convolutions=0)
    assert parameters(cam, trained=True) == 3 * 512 + 3


def test_both_grids_have_the_published_shapes(cam_network: VggCam) -> None:
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        cam_network.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name in (TARGET_LAYER, FINE_LAYER)
    ]
    with torch.inference_mode():
        assert cam_network(torch.rand(1, 3, 224, 224)).shape == (1, 3)
    for hook in hooks:
        hook.remove()
    assert seen[FINE_LAYER].shape == (1, 512, 14, 14)
    assert seen[TARGET_LAYER].shape == (1, 512, 7, 7)
    assert min(float(seen[name].min()) for name in seen) >= 0


def test_the_class_activation_map_sums_to_the_logit_of_every_class(cam_network: VggCam) -> None:
    x = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = cam_network(x)[0]
    maps = explain(cam_network, x, methods=("cam",), classes=[0, 1, 2], layers=TARGET_LAYER)
    assert len(maps) == 3
    for k, found in enumerate(maps):
        mean = float(torch.as_tensor(found.raw).mean()) + float(cam_network.classifier.bias[k])
        assert mean == pytest.approx(float(logits[k]), rel=1e-4, abs=1e-4)


def test_the_base_head_reads_four_of_seven_rows_and_columns() -> None:
    network = VggBase(3).eval()
    features = torch.rand(1, 512, 7, 7, requires_grad=True)
    network.classifier(network.head(features)).sum().backward()
    assert features.grad is not None
    reached = features.grad[0].abs().sum(0) > 0
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(reached, expected)


def test_the_trunk_of_a_published_state_fits_and_the_head_stays(tmp_path: Path) -> None:
    source = VggCam(3)
    state = {name: tensor for name, tensor in source.state_dict().items() if name.startswith("features.")}
    state["classifier.0.weight"] = torch.zeros(1)  # of the 1000 ImageNet classes
    torch.save(state, tmp_path / "vgg16.pth")
    target = VggBase(3)
    before = target.classifier.weight.clone()
    load_imagenet(target, imagenet_state(tmp_path / "vgg16.pth"))
    assert torch.equal(target.features[28].weight, source.features[28].weight)
    assert torch.equal(target.classifier.weight, before)


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(BundleError, match=r"vgg16-397923af\.pth into torch's cache"):
        imagenet_state()
    cached = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    cached.parent.mkdir(parents=True)
    torch.save({"features.0.weight": torch.zeros(1)}, cached)
    with pytest.raises(BundleError, match="does not start with 397923af"):
        imagenet_state()
    renamed = cached.with_name(f"vgg16-{sha256_file(cached)[:8]}.pth")
    cached.rename(renamed)
    with pytest.raises(BundleError, match=r"unusable \['0.weight'\], missing \['0.bias', '10.bias'"):
        load_imagenet(VggCam(3), imagenet_state(renamed))
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(b"no weights")
    with pytest.raises(BundleError, match="tensors and nothing else"):
        imagenet_state(damaged)
