"""Networks of two precisions: which layers they are, and that the two parts together are the network."""

from pathlib import Path

import pytest
import torch
from torch import nn

from medxai.errors import BundleError
from medxai.explain.preparing import compare, prepare
from medxai.predict.arithmetic import Arithmetic
from medxai.predict.local_changes import LocalChanges
from medxai.predict.openvino_engine import Engine, convert, fix, openvino, processor_runs
from medxai.predict.reach import waists

SHAPE = (2, 26, 34)
needs_bfloat16 = pytest.mark.skipif(
    not processor_runs("bfloat16"), reason="this processor does not compute in bfloat16"
)


class _Offset(nn.Module):
    """First layers that work far from zero, where bfloat16 keeps three digits; the others do not mind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        nn.init.constant_(self.first.bias, 500.0)
        self.second = nn.Conv2d(6, 6, 3, stride=2)
        with torch.no_grad():  # what all values have in common cancels, and their rounding stays
            self.second.weight -= self.second.weight.mean((1, 2, 3), keepdim=True)
            self.second.weight *= 5
        self.side = nn.Conv2d(6, 4, 1)
        self.third = nn.Conv2d(10, 8, 3, padding=1)
        self.fourth = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).relu()
        x = self.third(torch.cat([x, self.side(x).sigmoid()], 1)).relu()
        return self.head(self.fourth(x).relu().flatten(2).mean(-1))


@pytest.fixture(scope="module")
def made() -> tuple[_Offset, bytes, bytes]:
    network = _Offset().eval()
    return network, *convert(network, torch.zeros(2, *SHAPE))


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@needs_bfloat16
def test_every_waist_divides_the_network(made: tuple[_Offset, bytes, bytes]) -> None:
    """The later the change of precision, the nearer to float32; whole, in parts and for local changes."""
    network, graph, weights = made
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(x)
    found, _ = waists(fix(Engine(graph, weights, SHAPE, 2, "float32").read(), [1, *SHAPE]))
    assert len(found) > 8
    errors = []
    for waist in found[1:]:
        engine = Engine(graph, weights, SHAPE, 2, "bfloat16", exact=waist.name)
        whole = engine(x)[0]
        errors.append(_difference(whole, expected))
        if waist.shape[0] == 6 and waist.shape != (6, *SHAPE[1:]):  # behind what must be exact
            local = LocalChanges(engine.read, SHAPE, 2, engine.arithmetic)
            assert _difference(local.clean(x[0], {}), whole[:1]) < 5e-3
            for middle in (found[2], found[-2]):
                assert _difference(engine.behind(middle)(engine.until(middle, x))[0], whole) < 5e-3
    plain = _difference(Engine(graph, weights, SHAPE, 2, "bfloat16")(x)[0], expected)
    assert max(errors[len(errors) // 2 :]) < 5e-3 < 2e-2 < plain


def test_parts_are_of_one_precision_where_they_can_be(made: tuple[_Offset, bytes, bytes]) -> None:
    _, graph, weights = made
    ov = openvino()
    engine = Engine(graph, weights, SHAPE, 1, "float32")
    found, _ = waists(fix(engine.read(), [1, *SHAPE]))
    arithmetic = Arithmetic.of("bfloat16", engine.read(), found[5].name)
    halves = arithmetic.divide(ov.opset15, ov.Model, fix(engine.read(), [1, *SHAPE]))
    assert [half.precision for half in halves] == ["float32", "bfloat16"]
    assert [half.places for half in halves] == [(), (0,)]
    names = [{node.get_friendly_name() for node in half.model.get_ordered_ops()} for half in halves]
    assert found[5].name in names[0]
    assert found[6].name in names[1]
    plain = Arithmetic.of("bfloat16", engine.read(), None)
    assert [h.precision for h in plain.divide(ov.opset15, ov.Model, engine.read())] == ["bfloat16"]
    with pytest.raises(BundleError, match="no layer 'absent'"):
        Arithmetic.of("bfloat16", engine.read(), "absent")


@needs_bfloat16
def test_preparing_keeps_first_layers_exact_where_maps_need_it(tmp_path: Path) -> None:
    network = _Offset().eval()
    samples = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2))
    prepared = prepare(network, samples[:1], "fourth", tmp_path, precision="bfloat16", batch=2, samples=samples)
    assert set(prepared.manifest.exact) == {"stem", "whole"}
    assert 0 < prepared.manifest.measured["float32_share"] < 1
    assert compare(network, prepared, samples).correlation >= 0.999
    plain = type(prepared)(prepared.manifest.model_copy(update={"exact": {}}), prepared._files)
    assert compare(network, plain, samples).refusal("bfloat16")
