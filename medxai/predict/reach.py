"""Which positions of a network's input each position inside it depends on, from the graph of an OpenVINO model."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

#: Operations whose output at a position depends on their inputs at that position alone.
_POINTWISE = frozenset(
    "Relu PRelu Sigmoid Tanh Elu Selu Clamp Gelu Swish HSwish HSigmoid Mish SoftPlus Exp Abs Negative Sqrt Power "  # noqa: SIM905
    "Convert BatchNormInference Add Subtract Multiply Divide Maximum Minimum".split()
)
_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
_POOLS = frozenset({"MaxPool", "AvgPool"})


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
    """

    name: str
    shape: tuple[int, ...]
    reach: Reach
    work: float


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
    found, work = [_waist(start, reaches, 0.0)], 0.0
    for node in nodes:
        name = node.get_friendly_name()
        sources = [node.input_value(i).get_node() for i in range(node.get_input_size())]
        live = [source for source in sources if source.get_friendly_name() in reaches]
        if not live or node is start:
            continue
        work += _multiplications(node) / batch
        reaches[name] = _reach(node, sources, reaches)
        open_uses[name] = sum(len(output.get_target_inputs()) for output in node.outputs())
        for source in sources:
            if source.get_friendly_name() in open_uses:
                open_uses[source.get_friendly_name()] -= 1
        open_uses = {key: count for key, count in open_uses.items() if count > 0}
        if reaches[name] is not None and set(open_uses) == {name}:
            found.append(_waist(node, reaches, work))
    return found, work


def between(first: Waist, second: Waist) -> Reach:
    """What the second depends on in positions of the first."""
    spans = []
    for outer, inner in zip(first.reach, second.reach, strict=True):
        stride = outer.stride
        spans.append(
            Span(inner.stride // stride, (inner.low - outer.low) // stride, (inner.high - outer.high) // stride)
        )
    return tuple(spans)


def _waist(node: Any, reaches: dict[str, Reach | None], work: float) -> Waist:
    reach = reaches[node.get_friendly_name()]
    assert reach is not None  # noqa: S101
    return Waist(node.get_friendly_name(), tuple(node.output(0).shape)[1:], reach, work)


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


def _multiplications(node: Any) -> float:
    """Roughly; what only moves data counts a few for each value."""
    size = float(prod(node.output(0).shape))
    kind = node.get_type_name()
    if kind in _CONVOLUTIONS:
        return size * float(prod(list(node.input_value(1).shape)[1 if kind == "Convolution" else 2 :]))
    if kind == "MatMul":
        return size * float(node.input_value(0).shape[-1])
    return 8.0 * size
