"""What a method file says about itself: `INFO`, `Options` and `attribute`, the same three names in every one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

Family = Literal["gradient_cam", "activation_cam", "score_cam", "perturbation", "gradient", "relevance", "attention"]
#: Where the graph must begin: nowhere (forwards only), at the target layer, or at the image.
Graph = Literal["none", "layer", "input"]


@dataclass(frozen=True)
class MethodInfo:
    """A method's entry in the table of methods.

    Attributes:
        name: registry name, equal to the file's.
        title: as people write it.
        family: what kind of evidence it uses.
        reference: authors and year.
        passes: cost of one map of one class; F a forward, B a backward down to the target layer, BB one
            through the whole network, K the channels of the layer, N a number of samples.
        graph: where the shared forward must keep a graph from.
        layer: whether it reads a target layer, several at once, or none (its maps lie on the input's grid).
        dims: kinds of input: ``2d``, ``3d``, ``t2d`` (video).
        tokens: works on the token grid of a transformer.
        class_agnostic: the map is the same for every class.
        repeats: runs the network more than once, so that its time is worth announcing.
        needs: what the network must offer, in words; empty when any classifier will do.
        caveat: what a reader of its maps must know.
    """

    name: str
    title: str
    family: Family
    reference: str
    passes: str
    graph: Graph = "layer"
    layer: Literal["one", "several", "none"] = "one"
    dims: tuple[str, ...] = ("2d", "3d", "t2d")
    tokens: bool = True
    class_agnostic: bool = False
    repeats: bool = False
    needs: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


class Method(Protocol):
    """What a method file offers."""

    INFO: MethodInfo
    Options: type[Any]

    @staticmethod
    def attribute(run: Run, options: Any) -> Tensor:
        """Signed map ``[B, *s]`` on the layer's grid, or ``[B, *S]`` on the input's; positive speaks for the target."""
        ...
