from __future__ import annotations

import itertools

import pytest
import torch

from medxai.errors import MedxaiError
from medxai.explain.calls import capture
from medxai.networks.hierarchical_fusion import HierarchicalFusion
from medxai.prepare.brain.subject import MODALITIES

SHAPES = {"alff": (10, 12, 11), "dfc": (16, 16, 13), "sfc": (16, 16, 1), "fa": (9, 9, 1)}
SMALL = {"channels": 16, "width": 24, "depth": 2, "heads": 2, "head_dim": 8}


def small(classes: int = 2, **options: object) -> HierarchicalFusion:
    torch.manual_seed(0)
    return HierarchicalFusion(classes, **(SMALL | options))  # type: ignore[arg-type]


def arrays(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 1, *shape, generator=source) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("classes", [2, 3])
def test_shapes_and_determinism(classes: int) -> None:
    network, inputs = small(classes).eval(), arrays(3)
    with torch.inference_mode():
        logits, embeddings = network.outputs(inputs)
        assert logits.shape == (3, classes)
        assert {name: value.shape for name, value in embeddings.items()} == dict.fromkeys(MODALITIES, (3, 512))
        assert torch.equal(network(inputs), logits)
        assert torch.equal(small(classes).eval()(inputs), logits)
        assert torch.allclose(network({k: v[1:2] for k, v in inputs.items()})[0], logits[1], atol=1e-5)


@pytest.mark.parametrize("missing", MODALITIES)
def test_what_is_missing_is_never_looked_at(missing: str) -> None:
    inputs, column = arrays(3), MODALITIES.index(missing)
    present = torch.ones(3, 4, dtype=torch.bool)
    present[1, column] = False
    other = {name: value.clone() for name, value in inputs.items()}
    other[missing][1] = float("nan")
    for training in (True, False):
        network = small().train(training)
        assert torch.equal(network(inputs, present), small().train(training)(other, present))
    network = small().eval()
    found = network(inputs, present)
    assert not torch.allclose(found[1], network(inputs)[1], atol=1e-4)
    assert torch.allclose(found[::2], network(inputs)[::2], atol=1e-5)
    # A key that is not there for a whole batch is the same as nobody who has it.
    present[:, column] = False
    without = {name: value for name, value in inputs.items() if name != missing}
    assert torch.equal(network(without), network(inputs, present))


def test_a_subject_who_alone_has_a_modality_can_be_trained_on() -> None:
    present = torch.ones(3, 4, dtype=torch.bool)
    present[1:, MODALITIES.index("dfc")] = False
    assert torch.isfinite(small()(arrays(3), present)).all()


def test_the_gradient_reaches_every_parameter() -> None:
    network = small()
    present = torch.ones(4, 4, dtype=torch.bool)
    present[0, 0] = present[1, 1] = present[2, 2] = present[3, 3] = False
    network(arrays(4), present).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_subsets_of_modalities() -> None:
    inputs = arrays(2)
    for count in (1, 2, 3):
        for chosen in itertools.combinations(MODALITIES, count):
            network = small(modalities=chosen).eval()
            logits, embeddings = network.outputs(inputs)
            assert logits.shape == (2, 2)
            assert tuple(embeddings) == chosen
            changed = inputs | {name: torch.zeros_like(inputs[name]) for name in MODALITIES if name not in chosen}
            assert torch.equal(network(changed), logits)
            assert hasattr(network, "pyramid") == ("dfc" in chosen)


def test_the_parts_add_up() -> None:
    network = small()
    parts = (network.encoder, network.pyramid, network.absent, network.interactions, network.norm, network.classifier)
    counted = sum(p.numel() for part in parts for p in part.parameters())
    assert sum(p.numel() for p in network.parameters()) == counted
    assert sum(p.numel() for p in network.absent.parameters()) == 4 * 512


def test_call_names_are_those_of_the_modality() -> None:
    network, inputs = small().eval(), arrays(1)
    assert network.target_calls() == {
        "alff": "encoder.layer4#0", "dfc": "pyramid.encoders.4#0", "sfc": "encoder.layer4#1", "fa": "encoder.layer4#2",
    }  # fmt: skip
    for given in (("alff", "dfc", "sfc", "fa"), ("dfc", "fa"), ("fa",)):
        calls = network.target_calls(given)
        chosen = {name: inputs[name] for name in reversed(given)}
        with torch.inference_mode():
            values, _ = capture(network, chosen, list(calls.values()))  # type: ignore[arg-type]
            for name in given:
                if name != "dfc":
                    pooled = values[calls[name]].mean((2, 3, 4))
                    assert torch.allclose(pooled, network.encode(name, inputs[name]), atol=1e-6)


def test_shared_statistics_are_an_option() -> None:
    assert len(small().encoder.norm1.norms) == 3
    assert len(small(shared_norms=True).encoder.norm1.norms) == 1
    assert small(shared_norms=True)(arrays(2)).shape == (2, 2)


def test_errors_say_which_modality() -> None:
    network, inputs = small().eval(), arrays(2)
    with pytest.raises(MedxaiError, match="none of them is given"):
        network({})
    with pytest.raises(MedxaiError, match="dfc is said to be present"):
        network({"alff": inputs["alff"]}, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(MedxaiError, match="sfc holds 1 subjects"):
        network(inputs | {"sfc": inputs["sfc"][:1]})
    with pytest.raises(ValueError, match="not some of"):
        HierarchicalFusion(2, modalities=("reho",))


@pytest.mark.slow
def test_the_published_size() -> None:
    network = HierarchicalFusion(3).eval()
    sizes = {"alff": (61, 73, 61), "sfc": (164, 164, 1), "fa": (90, 90, 1)}
    with torch.inference_mode():
        logits, embeddings = network.outputs({name: torch.randn(1, 1, *size) for name, size in sizes.items()})
    assert logits.shape == (1, 3)
    assert all(value.shape == (1, 512) for value in embeddings.values())
