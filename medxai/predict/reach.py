"""Which positions of a network's input each position inside it depends on, from the graph of an OpenVINO model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

#: Operations whose output at a position depends on their inputs at that position alone.
_POINTWISE = frozenset(
    "Relu PRelu Sigmoid Tanh Elu Selu Clamp Gelu Swish HSwish HSigmoid Mish SoftPlus Exp Abs Negative Sqrt Power "  # noqa: SIM905
    "Convert BatchNormInference Add Subtract Multiply Divide Maximum Minimum".split()
)
#: With constants for all other inputs.
_AFFINE = frozenset({"BatchNormInference", "Add", "Subtract", "Multiply", "Divide", "Pad"})
_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
_POOLS = frozenset({"MaxPool", "AvgPool"})
#: Share of the multiplications for which a part of its own is worth it.
_LEAST_DEEP = 0.1


@dataclass(frozen=True)
class Span:
    """Along one axis, output ``o`` depends on inputs ``o * stride + low`` to ``o * stride + high`` (included).

    ``low <= 0 <= high`` need not hold; padding counts as part of the input's outside.
    """

    stride: int = 1
    low: int = 0
    high: int = 0

    def then(self, after: Span) -> Span:
        """What `after` depends on behind this."""
        return Span(
            self.stride * after.stride, self.low + self.stride * after.low, self.high + self.stride * after.high
        )

    def joined(self, other: Span) -> Span | None:
        """What two tensors of one grid depend on together; None if their grids differ."""
        if self.stride != other.stride:
            return None
        return Span(self.stride, min(self.low, other.low), max(self.high, other.high))

    def changed(self, first: int, last: int) -> tuple[int, int]:
        """First and last output that depends on one of the inputs `first` to `last` (included); may lie outside."""
        return -((self.high - first) // self.stride), (last - self.low) // self.stride

    def needed(self, first: int, last: int) -> tuple[int, int]:
        """First and last input that the outputs `first` to `last` depend on; may lie outside."""
        return first * self.stride + self.low, last * self.stride + self.high


Reach = tuple[Span, ...]


@dataclass(frozen=True)
class Waist:
    """A tensor everything behind it depends on alone.

    Attributes:
        name: of the node that makes it.
        shape: ``(C, *s)``.
        reach: in positions of the input, one span for each spatial axis.
        work: multiplications from the input to here, for one sample.
        weights: numbers in the kernels from the input to here.
        values: numbers that layers with kernels give from the input to here, for one sample.
    """

    name: str
    shape: tuple[int, ...]
    reach: Reach
    work: float
    weights: int
    values: int


def waists(model: Any) -> tuple[list[Waist], float]:
    """Waists from the input on, in order, the input first, as long as positions keep a meaning.

    Args:
        model: of one image input ``[B, C, *S]``, of fixed shape.

    Returns:
        Them, and the multiplications of the whole network for one sample.
    """
    nodes = model.get_ordered_ops()
    start = next(node for node in nodes if node.get_type_name() == "Parameter")
    batch = start.output(0).shape[0]
    reaches: dict[str, Reach | None] = {start.get_friendly_name(): (Span(),) * (len(start.output(0).shape) - 2)}
    open_uses = {start.get_friendly_name(): len(start.output(0).get_target_inputs())}
    found, work, weights, values = [_waist(start, reaches)], 0.0, 0, 0
    for node in nodes:
        name = node.get_friendly_name()
        sources = [node.input_value(i).get_node() for i in range(node.get_input_size())]
        live = [source for source in sources if source.get_friendly_name() in reaches]
        if not live or node is start:
            continue
        work += _multiplications(node) / batch
        if node.get_type_name() in _CONVOLUTIONS | {"MatMul"}:
            weights += prod(node.input_value(1).shape)
            values += prod(node.output(0).shape) // batch
        reaches[name] = _reach(node, sources, reaches)
        open_uses[name] = sum(len(output.get_target_inputs()) for output in node.outputs())
        for source in sources:
            if source.get_friendly_name() in open_uses:
                open_uses[source.get_friendly_name()] -= 1
        open_uses = {key: count for key, count in open_uses.items() if count > 0}
        if reaches[name] is not None and set(open_uses) == {name}:
            found.append(_waist(node, reaches, work, weights, values))
    return found, work


def deep_from(found: Sequence[Waist], work: float, batch: int) -> Waist | None:
    """First waist behind which every layer has more weights than a batch has values in it; None if little is behind.

    There reading the weights takes longer than computing with them, and larger batches are faster.

    Args:
        found: waists from the input on.
        work: multiplications of the whole network.
        batch: samples at once.
    """
    place = len(found) - 1
    for i in range(len(found) - 1, 0, -1):
        weights, values = found[i].weights - found[i - 1].weights, found[i].values - found[i - 1].values
        if weights < batch * values:
            break
        if values:
            place = i - 1
    return found[place] if place and work - found[place].work > _LEAST_DEEP * (work - found[0].work) else None


def affine_end(model: Any) -> str | None:
    """Name of the last node behind one convolution of the input that is affine in it; None without one.

    Args:
        model: of one image input, of fixed shape.
    """
    node = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Parameter")
    convolved = None
    while len(node.output(0).get_target_inputs()) == 1:
        use = next(iter(node.output(0).get_target_inputs()))
        after = use.get_node()
        kind = after.get_type_name()
        if kind in _CONVOLUTIONS:
            if convolved is not None or use.get_index() != 0:
                break
        elif kind not in _AFFINE or not _others_constant(after, use.get_index()):
            break
        node = after
        if convolved is not None or kind in _CONVOLUTIONS:
            convolved = node.get_friendly_name()
    return convolved


def _others_constant(node: Any, place: int) -> bool:
    others = [node.input_value(i).get_node() for i in range(node.get_input_size()) if i != place]
    if node.get_type_name() == "Divide" and place == 1:
        return False
    return all(other.get_type_name() == "Constant" for other in others)


def between(first: Waist, second: Waist) -> Reach:
    """What the second depends on in positions of the first."""
    spans = []
    for outer, inner in zip(first.reach, second.reach, strict=True):
        stride = outer.stride
        spans.append(
            Span(inner.stride // stride, (inner.low - outer.low) // stride, (inner.high - outer.high) // stride)
        )
    return tuple(spans)


def _waist(node: Any, reaches: dict[str, Reach | None], work: float = 0.0, weights: int = 0, values: int = 0) -> Waist:
    reach = reaches[node.get_friendly_name()]
    assert reach is not None  # noqa: S101
    return Waist(node.get_friendly_name(), tuple(node.output(0).shape)[1:], reach, work, weights, values)


def _reach(node: Any, sources: list[Any], reaches: dict[str, Reach | None]) -> Reach | None:
    """Reach of a node's first output, None where positions lose their meaning."""
    kind = node.get_type_name()
    given = [reaches[source.get_friendly_name()] for source in sources if source.get_friendly_name() in reaches]
    if any(reach is None for reach in given) or not given:
        return None
    first = given[0]
    assert first is not None  # noqa: S101
    if kind in _CONVOLUTIONS | _POOLS:
        own = _window(node)
        if own is None or len(given) != 1 or len(own) != len(first):
            return None
        return tuple(span.then(after) for span, after in zip(first, own, strict=True))
    if kind == "Pad":
        border = _border(node)
        if border is None:
            return None
        return tuple(span.then(Span(1, -before, -before)) for span, before in zip(first, border, strict=True))
    if kind in _POINTWISE or (kind == "Concat" and node.get_attributes()["axis"] == 1):
        return _together(node, sources, reaches)
    return None


def _together(node: Any, sources: list[Any], reaches: dict[str, Reach | None]) -> Reach | None:
    """Reach of what works position by position on tensors of one grid and on constants without positions."""
    grid = list(node.output(0).shape)[2:]
    by_channel = node.get_type_name() in ("BatchNormInference", "PRelu")
    result: Reach | None = None
    for place, source in enumerate(sources):
        shape = list(node.input_value(place).shape)
        if source.get_friendly_name() not in reaches:
            if not by_channel and prod(shape[-len(grid) :]) != 1:
                return None
            continue
        reach = reaches[source.get_friendly_name()]
        if reach is None or shape[2:] != grid:
            return None
        if result is None:
            result = reach
            continue
        spans = [one.joined(other) for one, other in zip(result, reach, strict=True)]
        if any(span is None for span in spans):
            return None
        result = tuple(span for span in spans if span is not None)
    return result


def _window(node: Any) -> Reach | None:
    """Spans of a convolution or pooling."""
    stated = node.get_attributes()
    if (
        stated.get("auto_pad", "explicit") not in ("explicit", "valid", "notset")
        or stated.get("rounding_type") == "ceil"
    ):
        return None
    if node.get_type_name() in _POOLS:
        kernel = list(stated["kernel"])
    else:
        kernel = list(node.input_value(1).shape)[2 if node.get_type_name() == "Convolution" else 3 :]
    ones = [1] * len(kernel)
    return tuple(
        Span(stride, -pad, (size - 1) * dilation - pad)
        for size, stride, pad, dilation in zip(
            kernel, stated["strides"], stated["pads_begin"], stated.get("dilations", ones), strict=True
        )
    )


def _border(node: Any) -> list[int] | None:
    """Positions that a padding with a constant puts before each spatial axis; None for any other padding."""
    constants = [node.input_value(i).get_node() for i in range(1, node.get_input_size())]
    if node.get_attributes()["pad_mode"] != "constant" or any(c.get_type_name() != "Constant" for c in constants):
        return None
    before, after = ([int(count) for count in c.data] for c in constants[:2])
    if min(*before, *after) < 0 or any(before[:2]) or any(after[:2]):
        return None
    return before[2:]


def _multiplications(node: Any) -> float:
    """Roughly; what only moves data counts a few for each value."""
    size = float(prod(node.output(0).shape))
    kind = node.get_type_name()
    if kind in _CONVOLUTIONS:
        return size * float(prod(list(node.input_value(1).shape)[1 if kind == "Convolution" else 2 :]))
    if kind == "MatMul":
        return size * float(node.input_value(0).shape[-1])
    return 8.0 * size
