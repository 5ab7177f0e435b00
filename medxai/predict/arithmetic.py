"""In which precision the layers of a network compute: all in one, or the first of them in float32.

Rounding in the first layers, which everything behind them repeats, does most of the harm to a map, and they are
often a small part of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from medxai.errors import BundleError

Precision = Literal["float32", "bfloat16"]

_NO_WORK = frozenset({"Constant", "Parameter", "Result"})


@dataclass(frozen=True)
class Arithmetic:
    """Precision of the layers of one model.

    Attributes:
        precision: of those that are not named below.
        exact: name of the waist up to which they compute in float32; None where all are alike.
        early: names of the nodes up to there.
    """

    precision: Precision
    exact: str | None = None
    early: frozenset[str] = frozenset()

    @classmethod
    def of(cls, precision: Precision, model: Any, exact: str | None) -> Arithmetic:
        """Of a whole model and parts of it.

        Args:
            precision: of the layers behind `exact`.
            model: the whole.
            exact: waist of it, or None.

        Raises:
            BundleError: the model has no node of that name.
        """
        if exact is None:
            return cls(precision)
        nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
        if exact not in nodes:
            msg = f"the network has no layer {exact!r}"
            raise BundleError(msg)
        return cls(precision, exact, frozenset(_before([nodes[exact]])))

    def divide(self, op: Any, make: Callable[..., Any], model: Any) -> list[Half]:
        """A model, or part of one, as one or two models that are of one precision each.

        Args:
            op: operations of an OpenVINO version.
            make: class of models.
            model: of fixed shape; taken apart.
        """
        nodes = {n.get_friendly_name(): n for n in model.get_ordered_ops() if n.get_type_name() not in _NO_WORK}
        if self.exact not in nodes:
            # Only layers in front of the waist, or only layers behind it.
            precision: Precision = "float32" if self.early & nodes.keys() else self.precision
            return [Half(model, precision, tuple(range(len(model.get_results()))))]
        last = nodes[self.exact]
        early = _before([last])
        results = [result.input_value(0) for result in model.get_results()]
        first = [i for i, given in enumerate(results) if given.get_node().get_friendly_name() in early]
        if len(first) == len(results):
            return [Half(model, "float32", tuple(first))]
        uses = [u for u in last.output(0).get_target_inputs() if u.get_node().get_friendly_name() not in early]
        between = op.parameter(list(last.output(0).shape), last.output(0).get_element_type())
        ends = [op.result(results[i]) for i in first]
        for use in uses:
            if use.get_node().get_type_name() != "Result":
                use.replace_source_output(between.output(0))
        late = [i for i in range(len(results)) if i not in first]
        front = make([*ends, op.result(last.output(0))], model.get_parameters(), "front")
        back = make([op.result(results[i]) for i in late], [between], "back")
        return [Half(front, "float32", tuple(first)), Half(back, self.precision, tuple(late))]


@dataclass(frozen=True)
class Half:
    """A model of one precision.

    Attributes:
        model: of fixed shape; with a second half behind it, its last result is what that is given.
        precision: of all its layers.
        places: which results of the whole its results are.
    """

    model: Any
    precision: Precision
    places: tuple[int, ...]


def parse_precision(text: str) -> Precision:
    """Check the name of a precision.

    Raises:
        BundleError: it is none.
    """
    if text in get_args(Precision):
        return cast(Precision, text)
    msg = f"precision {text!r} is not one of {', '.join(get_args(Precision))}"
    raise BundleError(msg)


def _before(nodes: Iterable[Any]) -> set[str]:
    """Names of nodes and of all they are made from."""
    found: set[str] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node.get_friendly_name() not in found:
            found.add(node.get_friendly_name())
            left += [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return found
