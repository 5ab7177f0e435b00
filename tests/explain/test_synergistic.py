from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.enlarge import enlarge, scaled_maps
from medxai.explain.evidence_share import evidence_share
from medxai.explain.synergistic import PUBLISHED_GAMMA, SynergisticOptions, synergistic_maps
from tests.explain.nets import Pooled, fingerprint
from tests.networks.test_hierarchical_fusion import SHAPES as TINY
from tests.networks.test_hierarchical_fusion import arrays as tiny
from tests.networks.test_hierarchical_fusion import small

SHAPES = TINY | {"dfc": (40, 40, 9)}


def fusion() -> nn.Module:
    """Layers that still have a grid at these sizes."""
    return small(strides=(1, 1, 1)).eval()


def arrays() -> dict[str, Tensor]:
    """One subject."""
    return tiny(1) | {"dfc": torch.randn(1, 1, *SHAPES["dfc"], generator=torch.Generator().manual_seed(5))}


class Sum(nn.Module):
    """Two inputs with 6 and 3 channels whose logits add; `product` adds an interaction."""

    modalities = ("a", "b")

    def __init__(self, product: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Conv3d(1, 6, 3, padding=1), nn.Conv3d(1, 3, 3, stride=2, padding=1)
        self.heads = nn.ModuleDict({"a": nn.Linear(6, 2), "b": nn.Linear(3, 2)})
        self.absent = nn.ParameterDict({"a": nn.Parameter(torch.zeros(6)), "b": nn.Parameter(torch.zeros(3))})
        self.product, self.encoded = product, {"a": 0, "b": 0}
        self.largest = 0

    def encode(self, name: str, array: Tensor) -> Tensor:
        self.encoded[name] += len(array)
        self.largest = max(self.largest, len(array))
        found: Tensor = self.get_submodule(name)(array).flatten(2).mean(2)
        return found

    def embed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: self.encode(name, inputs[name]) if name in inputs else self.absent[name][None]
            for name in self.modalities
        }

    def classify(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        a, b = (self.heads[name](embeddings[name]) for name in self.modalities)
        return a + b + self.product * a * b

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.classify(self.embed(inputs))

    def target_calls(self, inputs: Sequence[str] | None = None) -> dict[str, str]:
        return {name: f"{name}#0" for name in self.modalities if inputs is None or name in inputs}


def two(seed: int = 0) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(1, 1, 6, 5, 4, generator=source), "b": torch.randn(1, 1, 7, 8, 1, generator=source)}


@pytest.mark.parametrize("marker", ["relative", "absolute", "mask", "insert"])
@pytest.mark.parametrize("repeats", ["sum", "first"])
def test_maps_by_hand(marker: str, repeats: str) -> None:
    """Every perturbed subject is run through the whole network, one at a time."""
    network, inputs, healthy = Sum(0.7), two(), two(1)
    options = SynergisticOptions(marker, 2.0, "joint", repeats, chunk=4)  # type: ignore[arg-type]
    found = synergistic_maps(network, inputs, 1, options, reference=healthy)
    with torch.no_grad():
        activations = {"a": network.a(inputs["a"])[0], "b": network.b(inputs["b"])[0]}
        clean = network(inputs)[0, 1]
        start = network(healthy)[0, 1] if marker == "insert" else clean
        gains = []
        for k in range(6):
            changed = {}
            for name, x in inputs.items():
                channel = activations[name][k % len(activations[name])][None]
                mark = enlarge(scaled_maps(channel, x.shape[2:]), x.shape[2:])[None]
                step = 2.0 * x.std(correction=0) if marker == "relative" else 2.0
                if marker == "insert":
                    changed[name] = healthy[name] + mark * (x - healthy[name])
                else:
                    changed[name] = x * mark if marker == "mask" else x + step * mark
            gains.append(network(changed)[0, 1] - start)
        weights = torch.stack(gains).softmax(0)
        own = {"a": weights, "b": weights[:3] if repeats == "first" else weights[:3] + weights[3:]}
    assert found.score == pytest.approx(float(clean), abs=1e-5)
    assert found.start == pytest.approx(float(start), abs=1e-5)
    assert torch.allclose(found.increments, torch.stack(gains), atol=1e-5)
    for name in inputs:
        assert torch.allclose(found.weights[name], own[name], atol=1e-5)
        raw = torch.tensordot(own[name], activations[name], 1).clamp_min(0)
        assert torch.allclose(found.raw[name], raw, atol=1e-5)
        assert found.maps[name].shape == inputs[name].shape[2:]
        assert (found.maps[name].min(), found.maps[name].max()) == (0, 1)


class OneInput(Pooled):
    """The network of the Score-CAM reference with the methods of a fusion of one."""

    modalities = ("x",)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        return super().forward(inputs if isinstance(inputs, Tensor) else inputs["x"])

    def encode(self, _name: str, array: Tensor) -> Tensor:
        return self.act(self.body(array)).flatten(2).mean(-1)

    def embed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"x": self.encode("x", inputs["x"])}

    def classify(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        return self.fc(embeddings["x"])


@pytest.mark.parametrize("score", ["logit", "prob"])
@pytest.mark.parametrize("weights", ["joint", "single"])
def test_one_modality_with_masks_is_score_cam(score: str, weights: str) -> None:
    torch.manual_seed(1)
    network, x = OneInput(channels=7).eval(), torch.randn(1, 1, 8, 12, 10)
    reference = explain(
        network, x, methods=["scorecam"], classes=2, layers="act", options={"scorecam": {"score": score}}
    )[0]
    options = SynergisticOptions("mask", weights=weights, score=score, chunk=3)
    found = synergistic_maps(network, {"x": x}, 2, options, {"x": "act#0"})
    assert torch.allclose(found.raw["x"], reference.raw[0].clamp_min(0), atol=1e-5)
    assert found.weights["x"].max() == pytest.approx(float(reference.report["max_weight"][0]), abs=1e-5)


def test_weights_sum_to_one_whatever_is_added_to_all_logits() -> None:
    network, inputs = fusion(), arrays()
    found = synergistic_maps(network, inputs, 1)
    with torch.no_grad():
        network.classifier.bias += 5
    shifted = synergistic_maps(network, inputs, 1)
    for name in SHAPES:
        assert float(found.weights[name].sum()) == pytest.approx(1, abs=1e-5)
        assert torch.allclose(found.weights[name], shifted.weights[name], atol=1e-4)
    assert found.weights["alff"].shape == (512,)
    assert found.weights["dfc"].shape == (64,)
    assert {name: found.maps[name].shape for name in SHAPES} == SHAPES
    assert torch.equal(found.maps["fa"], synergistic_maps(fusion(), inputs, 1).maps["fa"])


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training: bool) -> None:
    network, inputs = fusion().train(training), arrays()
    before = fingerprint(network)
    synergistic_maps(network, inputs, 0, SynergisticOptions("absolute", PUBLISHED_GAMMA))
    evidence_share(network, inputs, 0)
    assert fingerprint(network) == before


def test_what_is_encoded_once_is_not_encoded_again_and_chunks_bound_it() -> None:
    network = Sum()
    whole = synergistic_maps(network, two(), 1, SynergisticOptions(chunk=100))
    network.encoded, network.largest = {"a": 0, "b": 0}, 0
    pieces = synergistic_maps(network, two(), 1, SynergisticOptions(chunk=2))
    assert network.encoded == {"a": 6 + 2, "b": 3 + 2}  # two runs as it is
    assert network.largest == 2
    assert all(torch.allclose(pieces.raw[name], whole.raw[name], atol=1e-6) for name in whole.raw)


def test_synergy_is_what_does_not_add() -> None:
    alone, mixed = synergistic_maps(Sum(), two(), 1), synergistic_maps(Sum(5.0), two(), 1)
    assert alone.synergy.abs().max() < 1e-5
    assert torch.allclose(mixed.synergy, 5 * alone.single["a"] * alone.single["b"], atol=1e-6)  # of a product
    assert mixed.synergy.abs().max() > 1e-4
    for name, place in (("a", 4), ("b", 1)):  # the fourth mark of a is the first of b again
        assert alone.single[name][4] == pytest.approx(float(alone.single[name][place]))


def test_a_missing_modality_has_no_map() -> None:
    network, inputs = fusion(), arrays()
    for missing in ("alff", "dfc"):
        found = synergistic_maps(network, {name: x for name, x in inputs.items() if name != missing}, 1)
        assert set(found.maps) == set(SHAPES) - {missing}
        shares = evidence_share(network, {name: x for name, x in inputs.items() if name != missing}, 1)
        assert set(shares.shares) == set(SHAPES) - {missing}


def test_finer_layers_are_named_by_the_same_calls() -> None:
    network, inputs = fusion(), arrays()
    calls = network.target_calls(encoder="layer1", pyramid="encoders.0")
    assert calls["sfc"] == "encoder.layer1#1"
    found = synergistic_maps(network, inputs, 1, calls=calls)
    assert {name: tuple(raw.shape) for name, raw in found.raw.items()} == {
        "alff": (5, 3, 3), "dfc": (10, 10, 3), "sfc": (8, 4, 1), "fa": (5, 3, 1),
    }  # fmt: skip


def test_constant_channels_weigh_nothing() -> None:
    network, inputs = Sum(), two()
    with torch.no_grad():
        for module, rows in ((network.a, [1, 4]), (network.b, [1])):
            module.weight[rows], module.bias[rows] = 0, 9.0
    found = synergistic_maps(network, inputs, 1)
    assert found.weights["a"][[1, 4]].tolist() == [0, 0]
    assert found.weights["b"][1] == 0
    with torch.no_grad():
        for module in (network.a, network.b):
            module.weight.zero_()
    with pytest.raises(ExplainError, match="nothing to mark"):
        synergistic_maps(network, inputs, 1)


def test_shares_add_up_and_follow_the_weights() -> None:
    inputs = two()
    found = evidence_share(Sum(), inputs, 1)
    network = Sum()
    with torch.no_grad():
        logit = {name: network.heads[name](network.encode(name, inputs[name]))[0, 1] for name in inputs}
    for value, name in zip(found.values, inputs, strict=True):
        assert value == pytest.approx(float(logit[name] - network.heads[name].bias[1]), abs=1e-5)
    assert sum(found.shares.values()) == pytest.approx(1)
    mixed = evidence_share(Sum(2.0), inputs, 1)
    assert mixed.values.sum() == pytest.approx(mixed.whole - mixed.nothing, abs=1e-9)
    assert abs(mixed.synergy[0, 1]) > 1e-4
    assert np.allclose(found.synergy, 0, atol=1e-5)
    baseline = {name: network.encode(name, inputs[name]).detach() for name in inputs}
    assert np.allclose(evidence_share(network, inputs, 1, baseline).values, 0, atol=1e-6)  # it is its own mean


def test_the_reference_itself_gains_nothing() -> None:
    """Inserted into itself nothing changes; the whole subject is what the gains lead to."""
    network, inputs = Sum(0.7), two()
    found = synergistic_maps(network, inputs, 1, SynergisticOptions("insert"), reference=inputs)
    assert found.start == pytest.approx(found.score, abs=1e-6)
    assert torch.allclose(found.increments, torch.zeros(6), atol=1e-5)
    zeros = synergistic_maps(network, inputs, 1, SynergisticOptions("insert"))
    assert torch.allclose(
        zeros.increments, synergistic_maps(network, inputs, 1, SynergisticOptions("mask")).increments
        + zeros.score - zeros.start, atol=1e-5,
    )  # fmt: skip


def test_errors() -> None:
    network, inputs = Sum(), two()
    with pytest.raises(ExplainError, match="one subject"):
        synergistic_maps(network, {"a": torch.zeros(2, 1, 3, 3, 3)}, 0)
    with pytest.raises(ExplainError, match="no class 7"):
        synergistic_maps(network, inputs, 7)
    with pytest.raises(ExplainError, match="layers are named"):
        synergistic_maps(network, inputs, 1, calls={"a": "a#0"})
    with pytest.raises(ExplainError, match="reference has no b"):
        synergistic_maps(network, inputs, 1, SynergisticOptions("insert"), reference={"a": inputs["a"]})
    with pytest.raises(ValueError, match="marker is one of"):
        SynergisticOptions("blur")  # type: ignore[arg-type]
