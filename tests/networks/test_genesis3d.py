from __future__ import annotations

import pytest
import torch

from medxai.errors import BundleError
from medxai.networks.genesis3d import INPUT_SHAPE, TARGET_LAYER, GenesisClassifier, freeze_encoder, load_genesis


def test_counts_are_those_of_the_publication() -> None:
    network = GenesisClassifier(3)
    total = sum(p.numel() for p in network.parameters())
    convolutions = sum(p.numel() for name, p in network.named_parameters() if ".conv1." in name)
    statistics = sum(b.numel() for name, b in network.named_buffers() if not name.endswith("num_batches_tracked"))
    assert convolutions == 7_024_896
    assert total == 7_556_163
    assert total + statistics == 7_559_043  # Keras counts the running statistics
    freeze_encoder(network)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 512 * 1024 + 1024 + 1024 * 3 + 3


def test_the_bottleneck_has_the_published_shape() -> None:
    network = GenesisClassifier(3).eval()
    seen: list[torch.Tensor] = []
    network.get_submodule(TARGET_LAYER).register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.inference_mode():
        logits = network(torch.rand(1, 1, *INPUT_SHAPE))
    assert logits.shape == (1, 3)
    assert [tuple(out.shape) for out in seen] == [(1, 512, 4, 8, 8)]  # 512 x 8 x 8 x 4 with depth last
    assert seen[0].min() >= 0


def test_a_case_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    network = GenesisClassifier(3).eval()
    x = torch.rand(3, 1, 8, 16, 24)
    with torch.inference_mode():
        assert torch.allclose(network(x)[1], network(x[1:2])[0], atol=1e-5)


def test_published_kernels_are_turned_with_the_axes() -> None:
    torch.manual_seed(0)
    source, target = GenesisClassifier(3).eval(), GenesisClassifier(3).eval()
    # A published state reads cubes with depth last: its answer on a turned cube must be ours on the cube.
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items() if name.startswith("down_tr")}
    state["module.up_tr64.up_conv.weight"] = torch.zeros(1)
    load_genesis(target, state)
    cube = torch.rand(1, 1, 16, 24, 8)  # x, y, z
    with torch.inference_mode():
        published = source.encode(cube)
        ours = target.encode(cube.permute(0, 1, 4, 2, 3))
    assert torch.allclose(published.permute(0, 1, 4, 2, 3), ours, atol=1e-4)


def test_a_foreign_state_is_refused() -> None:
    network = GenesisClassifier(3)
    with pytest.raises(BundleError, match="missing"):
        load_genesis(network, {"module.down_tr64.ops.0.conv1.weight": torch.zeros(32, 1, 3, 3, 3)})
    state = dict(network.state_dict())
    state["down_tr64.ops.0.conv1.weight"] = torch.zeros(32, 2, 3, 3, 3)
    with pytest.raises(BundleError, match=r"of another shape \['down_tr64.ops.0.conv1.weight'\]"):
        load_genesis(network, state)
