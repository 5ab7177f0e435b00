"""Networks as OpenVINO models: converted once, compiled for this processor when they are loaded.

A model is a graph and its weights in two byte strings: data, not machine code. One file serves every batch size
and both precisions; both are fixed when it is compiled, which takes under a second.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from medxai.errors import BundleError
from medxai.predict.arithmetic import Arithmetic, Precision
from medxai.predict.reach import Waist, affine_end, deep_from, waists
from medxai.predict.short_convolution import shorten

_HINTS = {"float32": "f32", "bfloat16": "bf16"}
#: Relative difference from the whole network that rounding explains where a shorter way is taken.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
_TELEMETRY = "openvino_telemetry"
#: So many batches go at once through layers whose weights outweigh their values.
_MANY = 4


def openvino() -> Any:
    """The `openvino` module, imported such that it reports nothing to anybody.

    Its package sends usage statistics over the network on import when its telemetry package is installed
    with it. A workstation with patient data must not: the import is made to fail, for which it has a fallback.

    Raises:
        BundleError: it is not installed.
    """
    if "openvino" not in sys.modules:
        kept = sys.modules.get(_TELEMETRY)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            import openvino as module
        except ImportError as error:
            msg = "prepared bundles need OpenVINO; install it with: pip install 'medxai[prepared]'"
            raise BundleError(msg) from error
        finally:
            del sys.modules[_TELEMETRY]
            if kept is not None:
                sys.modules[_TELEMETRY] = kept
        return module
    return sys.modules["openvino"]


def processor_runs(precision: Precision) -> bool:
    """True if the processor computes in this precision by itself; otherwise it would be emulated or ignored."""
    if precision == "float32":
        return True
    return "BF16" in openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def convert(network: nn.Module, example: Tensor) -> tuple[bytes, bytes]:
    """Convert a network for any batch size.

    Args:
        network: in evaluation mode; returns a tensor or a tuple of tensors, batch first.
        example: ``[B, C, *S]`` of the spatial size in use.

    Returns:
        The graph as XML and the float32 weights.

    Raises:
        BundleError: the network cannot be exported or holds an unknown operation.
    """
    ov = openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    try:
        # Batch 1 would be taken for a constant.
        twice = torch.cat([example[:1], example[:1]])
        batch = {0: torch.export.Dim("batch", min=1, max=4096)}
        with torch.no_grad(), _quiet():
            program = torch.export.export(network, (twice,), dynamic_shapes=(batch,), strict=False)
            decoder = TorchFXPythonDecoder.from_exported_program(program)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.xml"
            ov.save_model(model, str(path), compress_to_fp16=False)
            return path.read_bytes(), path.with_suffix(".bin").read_bytes()
    except Exception as error:  # exporting runs foreign code; whatever it raises means the same here
        msg = f"the network cannot be prepared: {' '.join(str(error).split())[:200]}"
        raise BundleError(msg) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the conversion says on the root logger (with tracebacks) and as warnings; none of it is actionable."""
    root, silence = logging.getLogger(), logging.NullHandler()

    def others(record: logging.LogRecord) -> bool:
        return "decomp table" not in record.getMessage()

    root.addHandler(silence)  # without any handler the first record would configure one for good
    root.addFilter(others)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(others)
        root.removeHandler(silence)


class Run(Protocol):
    """A compiled model of fixed shape."""

    def __call__(self, *given: Tensor, into: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Outputs for inputs of just that shape, in memory of their own or in that of `into`."""
        ...


class Front(Protocol):
    """Nodes that make the input of a network.

    Attributes:
        key: equal for fronts of the same nodes.
        given: what they need besides the samples, the same for all of them.
    """

    @property
    def key(self) -> Hashable:
        """See above."""
        ...

    @property
    def given(self) -> Sequence[Tensor]:
        """See above."""
        ...

    def make(self, op: Any, shape: Sequence[int]) -> tuple[list[Any], Any]:
        """Parameters, first for `given` and last for the samples, and the node that makes an input of `shape`."""
        ...


class Engine:
    """A converted network that runs batches of any size, by running batches of a few fixed sizes.

    Args:
        graph: XML of `convert`.
        weights: weights of `convert`.
        shape: ``(C, *S)`` of the network's input.
        batch: samples that are run at once; the other sizes are 1 and, from where weights outweigh values, `many`.
        precision: of the computation; inputs and outputs are float32.
        source: run the network from this tensor on alone, which is the input then.
        exact: waist up to which the layers compute in float32 all the same.

    Attributes:
        shape: ``(C, *S)`` of the input.
    """

    def __init__(
        self,
        graph: bytes,
        weights: bytes,
        shape: Sequence[int],
        batch: int,
        precision: Precision,
        source: Waist | None = None,
        exact: str | None = None,
    ) -> None:
        self.shape = tuple(shape) if source is None else source.shape
        self.batch, self.precision = batch, precision
        self._whole_shape, self._source, self._exact = tuple(shape), source, exact
        self._graph, self._weights = graph, weights
        self._compiled: dict[Any, Run] = {}
        self._lock = threading.Lock()

    @property
    def many(self) -> int:
        """Samples that are run at once where weights outweigh values; calls with fewer do not reach that speed."""
        return _MANY * self.batch

    def behind(self, source: Waist) -> Engine:
        """The network from a tensor on."""
        return Engine(self._graph, self._weights, self._whole_shape, self.batch, self.precision, source, self._exact)

    @cached_property
    def affine(self) -> Waist | None:
        """Last tensor that is an affine function of the input behind one convolution; None without such a layer."""
        name = affine_end(fix(self.read(), [1, *self._whole_shape]))
        return next((waist for waist in self._found[0] if waist.name == name), None)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Outputs for ``x [B, C, *S]``, each ``[B, ...]`` float32 on the CPU and without a graph.

        Raises:
            BundleError: `x` has another shape.
        """
        if tuple(x.shape[1:]) != self.shape or not len(x):
            msg = f"prepared for inputs [*, {', '.join(map(str, self.shape))}], the input is {list(x.shape)}"
            raise BundleError(msg)
        return self._batches(x, lambda size, end: self._run(size, end=end))

    def through(self, front: Front, x: Tensor) -> list[Tensor]:
        """Outputs for inputs that the graph itself makes of ``x [B, ...]``."""
        return self._batches(x, lambda size, end: partial(self._run(size, end=end, front=front), *front.given))

    def until(self, end: Waist, x: Tensor) -> Tensor:
        """What a batch ``[B, C, *S]`` gives at a tensor, ``[B, *end.shape]``, one sample after the other."""
        found = torch.empty(len(x), *end.shape)
        with self._lock:
            front = self._run(1, end=end)
            for number in range(len(x)):
                front(x[number : number + 1].contiguous(), into=[found[number : number + 1]])
        return found

    def _batches(self, x: Tensor, first: Callable[[int, Waist | None], Run]) -> list[Tensor]:
        """Cut a batch into those that are compiled; `first` gives what runs so many up to a tensor or to the end."""
        given = x.detach().to("cpu", torch.float32).contiguous()
        parts, start = [], 0
        with self._lock:
            while len(given) - start >= self.many and self._deep is not None:
                many = given[start : start + self.many]
                front, values = first(self.batch, self._deep), torch.empty(self.many, *self._deep.shape)
                for piece, place in zip(torch.split(many, self.batch), torch.split(values, self.batch), strict=True):
                    front(piece, into=[place])
                parts.append(self._run(self.many, start=self._deep)(values))
                start += self.many
            for size, real in split_batch(len(given) - start, self.batch):
                piece = given[start : start + real]
                if real < size:
                    piece = torch.cat([piece, piece.new_zeros(size - real, *given.shape[1:])])
                parts.append([output[:real] for output in first(size, None)(piece)])
                start += real
        if len(parts) == 1:
            return parts[0]
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]

    @cached_property
    def _found(self) -> tuple[list[Waist], float]:
        model = fix(self.read(), [1, *self._whole_shape])
        found, work = waists(model)
        if len(model.get_results()) > 1:  # a result may come from before a waist
            found = found[:1]
        if self._source is not None:
            place = [waist.name for waist in found].index(self._source.name)
            found = found[place:]
        return found, work

    @cached_property
    def _deep(self) -> Waist | None:
        return deep_from(*self._found, self.batch)

    def _run(self, size: int, start: Waist | None = None, end: Waist | None = None, front: Front | None = None) -> Run:
        """What runs the network, or the part between two waists, for `size` samples."""
        start = start or self._source
        key = (size, torch.get_num_threads(), start, end, front and front.key)
        if key not in self._compiled:
            model = fix(self.read(), [size, *self._whole_shape])
            if start is not None or end is not None:
                shape = self._whole_shape if start is None else start.shape
                names = None if end is None else [end.name]
                model = cut(model, None if start is None else start.name, names, [size, *shape])
            if front is not None:
                graft(model, front)
            self._compiled[key] = build(model, self.arithmetic, key[1])
        return self._compiled[key]

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """Precision of each layer."""
        return Arithmetic.of(self.precision, self.read(), self._exact)

    @property
    def work(self) -> float:
        """Multiplications for one sample."""
        return self._found[1]

    def waist(self, work: float) -> Waist:
        """First waist that so many multiplications lie in front of."""
        found = self._found[0]
        return next((waist for waist in found if waist.work >= work), found[-1])

    def read(self) -> Any:
        """A fresh model of any batch size, to be changed freely."""
        return openvino().Core().read_model(self._graph, self._weights)


def fix(model: Any, shape: Sequence[int]) -> Any:
    """Give a model's input a fixed shape; what asked for it far behind the input becomes a constant."""
    openvino()
    from openvino.passes import ConstantFolding, Manager

    model.reshape({0: list(shape)})
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    return model


def cut(model: Any, source: str | None, outputs: Sequence[str] | None, shape: Sequence[int]) -> Any:
    """Part of a model, as one of fixed `shape`.

    Args:
        model: of fixed shape (`fix`), with the batch of `shape`; taken apart.
        source: node whose output becomes the input; None for the model's own input.
        outputs: nodes whose outputs it returns; None for those of the model.
        shape: of the input.
    """
    ov = openvino()
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    parameter = model.get_parameters()[0]
    results = model.get_results() if outputs is None else [ov.opset15.result(nodes[name].output(0)) for name in outputs]
    if source is not None:
        given = nodes[source].output(0)
        uses = given.get_target_inputs()
        parameter = ov.opset15.parameter([-1, *shape[1:]], given.get_element_type())
        for use in uses:
            use.replace_source_output(parameter.output(0))
    part = ov.Model(results, [parameter], "part")
    part.reshape({0: list(shape)})
    return part


def graft(model: Any, front: Front) -> None:
    """Put what makes the input in the place of a model's only input; it comes last, what it is made with before."""
    old = model.get_parameters()[0]
    given = old.output(0)
    uses = given.get_target_inputs()
    parameters, made = front.make(openvino().opset15, list(given.shape))
    for use in uses:
        use.replace_source_output(made.output(0))
    model.remove_parameter(old)
    model.add_parameters(parameters)
    model.validate_nodes_and_infer_types()


def build(model: Any, arithmetic: Arithmetic, threads: int) -> Run:
    """Compile a model of fixed shape for the CPU; returns what runs it, one call at a time."""
    ov = openvino()
    halves = arithmetic.divide(ov.opset15, ov.Model, model)
    requests = [(_compile(half.model, half.precision, threads), half.places) for half in halves]
    count = sum(len(half.places) for half in halves)

    def run(*given: Tensor, into: Sequence[Tensor] | None = None) -> list[Tensor]:
        inputs: dict[int, Any] = {i: x.numpy() for i, x in enumerate(given)}
        found: list[Any] = [None] * count
        for request, places in requests:
            results = request.infer(inputs, share_inputs=True, share_outputs=True)
            for i, place in enumerate(places):
                # The memory of the results is used again by the next call.
                if into is None:
                    found[place] = torch.from_numpy(np.array(results[i], dtype=np.float32))
                else:
                    into[place].numpy()[:] = results[i]
            inputs = {0: results[len(results) - 1]}
        return found if into is None else list(into)

    return run


def _compile(model: Any, precision: Precision, threads: int) -> Any:
    if precision == "float32":
        shorten(openvino(), model)
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }
    return openvino().Core().compile_model(model, "CPU", options).create_infer_request()


def split_batch(count: int, batch: int) -> list[tuple[int, int]]:
    """Cut a batch into runs of `batch` or 1: ``(size of the run, samples in it)``.

    A rest of at least half a batch is padded, a smaller one runs one by one.
    """
    runs = [(batch, batch)] * (count // batch)
    rest = count % batch
    return runs + ([(batch, rest)] if 2 * rest >= batch and rest > 1 else [(1, 1)] * rest)
