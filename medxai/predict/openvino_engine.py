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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from medxai.errors import BundleError
from medxai.predict.short_convolution import shorten

Precision = Literal["float32", "bfloat16"]

_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_TELEMETRY = "openvino_telemetry"


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


def parse_precision(text: str) -> Precision:
    """Check the name of a precision.

    Raises:
        BundleError: it is none.
    """
    if text in get_args(Precision):
        return cast(Precision, text)
    msg = f"precision {text!r} is not one of {', '.join(get_args(Precision))}"
    raise BundleError(msg)


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


class Engine:
    """A converted network that runs batches of any size, by running batches of a few fixed sizes.

    Args:
        graph: XML of `convert`.
        weights: weights of `convert`.
        shape: ``(C, *S)`` of the input.
        batch: largest batch that is run at once; the other size is 1.
        precision: of the computation; inputs and outputs are float32.
    """

    def __init__(self, graph: bytes, weights: bytes, shape: Sequence[int], batch: int, precision: Precision) -> None:
        self.shape, self.batch, self.precision = tuple(shape), batch, precision
        self._graph, self._weights = graph, weights
        self._compiled: dict[tuple[int, int], Callable[[Tensor], list[Tensor]]] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Outputs for ``x [B, C, *S]``, each ``[B, ...]`` float32 on the CPU and without a graph.

        Raises:
            BundleError: `x` has another shape.
        """
        if tuple(x.shape[1:]) != self.shape or not len(x):
            msg = f"prepared for inputs [*, {', '.join(map(str, self.shape))}], the input is {list(x.shape)}"
            raise BundleError(msg)
        given = x.detach().to("cpu", torch.float32).contiguous()
        parts = []
        with self._lock:
            start = 0
            for size, real in split_batch(len(given), self.batch):
                piece = given[start : start + real]
                if real < size:
                    piece = torch.cat([piece, piece.new_zeros(size - real, *self.shape)])
                parts.append([output[:real] for output in self._run(size)(piece)])
                start += real
        if len(parts) == 1:
            return parts[0]
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]

    def _run(self, size: int) -> Callable[[Tensor], list[Tensor]]:
        key = (size, torch.get_num_threads())
        if key not in self._compiled:
            self._compiled[key] = self._compile(*key)
        return self._compiled[key]

    def _compile(self, size: int, threads: int) -> Callable[[Tensor], list[Tensor]]:
        return build(fix(self.read(), [size, *self.shape]), self.precision, threads)

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


def build(model: Any, precision: Precision, threads: int) -> Callable[[Tensor], list[Tensor]]:
    """Compile a model of fixed shape for the CPU; returns what runs it, one call at a time."""
    if precision == "float32":
        shorten(openvino(), model)
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }
    request = openvino().Core().compile_model(model, "CPU", options).create_infer_request()

    def run(x: Tensor) -> list[Tensor]:
        results = request.infer({0: x.numpy()}, share_inputs=True, share_outputs=True)
        # The memory of the results is used again by the next call.
        return [torch.from_numpy(np.array(results[i], dtype=np.float32)) for i in range(len(results))]

    return run


def split_batch(count: int, batch: int) -> list[tuple[int, int]]:
    """Cut a batch into runs of `batch` or 1: ``(size of the run, samples in it)``.

    A rest of at least half a batch is padded, a smaller one runs one by one.
    """
    runs = [(batch, batch)] * (count // batch)
    rest = count % batch
    return runs + ([(batch, rest)] if 2 * rest >= batch and rest > 1 else [(1, 1)] * rest)
