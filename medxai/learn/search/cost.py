"""What architectures cost: multiply-accumulates, parameters, and measured CPU time of every operation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from medxai.networks.covidnet3d import OPERATIONS, SKIP, Architecture, CovidNet3d, operation, parameters, plan

Kind = Literal["macs", "parameters", "latency"]


def macs(network: nn.Module, shape: Sequence[int], in_channels: int = 1) -> int:
    """Multiply-accumulates of convolutions and linear layers for one input.

    Args:
        network: left as it is.
        shape: spatial, ``(D, H, W)``.
        in_channels: channels of the input.
    """
    total = 0

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv3d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv3d | nn.Linear)]
    mode = network.training
    try:
        network.eval()
        with torch.device("meta"), torch.no_grad():
            state = {name: torch.empty_like(value, device="meta") for name, value in network.state_dict().items()}
            torch.func.functional_call(network, state, (torch.empty(1, in_channels, *shape),))
    finally:
        network.train(mode)
        for handle in handles:
            handle.remove()
    return total


@dataclass(frozen=True, eq=False)
class CostTable:
    """Cost of each operation of each cell, as a share of the dearest path.

    Attributes:
        kind: what was counted.
        cells: ``[cells, operations]``.
        fixed: of all that is not searched.
        whole: of the dearest path in units of `kind`; seconds for ``latency``.
    """

    kind: Kind
    cells: Tensor
    fixed: float
    whole: float

    def expected(self, weights: Tensor) -> Tensor:
        """Mean share of a path drawn with these architecture weights; differentiable."""
        return self.fixed + (torch.softmax(weights, dim=1) * self.cells).sum()

    def of(self, choice: Sequence[int]) -> float:
        """Cost of a path in units of `kind`."""
        return float(self.fixed + sum(self.cells[cell, index] for cell, index in enumerate(choice))) * self.whole


def table(kind: Kind, frame: Architecture, shape: Sequence[int], num_classes: int, repeats: int = 3) -> CostTable:
    """Cost of the space that `frame` belongs to; its operations do not matter.

    Args:
        kind: see `CostTable`.
        frame: size, strides and placement.
        shape: spatial input size.
        num_classes: logits.
        repeats: timings of which the shortest counts, for ``latency``.
    """
    empty = CovidNet3d.of(Architecture.uniform(SKIP, frame.size, frame.depth, frame.placement), num_classes).eval()
    cells = torch.zeros(len(plan(frame)), len(OPERATIONS), dtype=torch.float64)
    known: dict[tuple[int, tuple[int, ...], str], float] = {}
    with torch.inference_mode():
        x = empty.stem(torch.zeros(1, 1, *shape))
        for number, (cell, (_, width, _)) in enumerate(zip(empty.cells, plan(frame), strict=True)):
            x = cell.calibration(x)
            for index, name in enumerate(OPERATIONS):
                key = (width, tuple(x.shape[2:]), name)  # cells of a stage are alike
                if key not in known:
                    known[key] = 0.0 if name == SKIP else _one(kind, operation(name, width).eval(), x, repeats)
                cells[number, index] = known[key]
        if kind == "latency":
            fixed = _seconds(empty, torch.zeros(1, 1, *shape), repeats)
        else:
            fixed = float(parameters(empty) if kind == "parameters" else macs(empty, shape))
    whole = fixed + float(cells.amax(1).sum())
    return CostTable(kind, (cells / whole).float(), fixed / whole, whole)


def _one(kind: Kind, module: nn.Module, x: Tensor, repeats: int) -> float:
    if kind == "latency":
        return _seconds(module, x, repeats)
    return float(parameters(module) if kind == "parameters" else macs(module, x.shape[2:], x.shape[1]))


def _seconds(module: nn.Module, x: Tensor, repeats: int) -> float:
    best = float("inf")
    module(x)
    for _ in range(repeats):
        start = time.perf_counter()
        module(x)
        best = min(best, time.perf_counter() - start)
    return best
