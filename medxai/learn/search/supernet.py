"""The network that holds every architecture of the space; a step runs one path of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medxai.learn.search.gumbel import Draw
from medxai.networks.covidnet3d import (
    CELLS,
    FEATURES,
    OPERATIONS,
    SKIP,
    WIDTHS,
    Architecture,
    CovidNet3d,
    Depth,
    Placement,
    Stem3d,
    Tail3d,
    calibration,
    initialise,
    operation,
    plan,
)


class MixedCell3d(nn.Module):
    """A cell with all operations, of which one is run."""

    def __init__(self, width_in: int, width: int, stride: tuple[int, int, int], placement: Placement) -> None:
        super().__init__()
        self.calibration = calibration(width_in, width, stride, placement)
        self.operations = nn.ModuleDict({name: operation(name, width) for name in OPERATIONS})
        self.shortcut = width_in == width and stride == (1, 1, 1)

    def forward(self, x: Tensor, name: str, gate: Tensor | None) -> Tensor:
        """Run operation `name`; its output is multiplied by `gate`, which is 1."""
        x = self.calibration(x)
        y: Tensor = self.operations[name](x)
        y = y if gate is None else y * gate
        return x + y if self.shortcut and name != SKIP else y


class Supernet3d(nn.Module):
    """All of CovidNet3D: weights of every operation of every cell, and the architecture weights.

    25,689,763 parameters at size S and 153,832,803 at L for one channel and three classes, strides as published,
    besides the architecture weights.

    Args:
        num_classes: logits.
        size: ``S`` or ``L``.
        depth: strides, see `CovidNet3d`.
        placement: likewise.
        in_channels: of the input.
        dropout: before the classifier.
    """

    def __init__(
        self,
        num_classes: int,
        size: str = "S",
        depth: Depth = "kept",
        placement: Placement = "centred",
        in_channels: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.frame = Architecture.uniform(SKIP, size, depth, placement)
        self.num_classes, self.in_channels, self.rate = num_classes, in_channels, dropout
        self.stem = Stem3d(in_channels, placement)
        self.cells = nn.ModuleList(MixedCell3d(*cell, placement) for cell in plan(self.frame))
        self.tail = Tail3d(WIDTHS[size][-1])
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(FEATURES, num_classes)
        # Operations are drawn too rarely to grow from zero, and what is zero says nothing for or against itself.
        initialise(self, share=0.3)
        self.architecture_weights = nn.Parameter(1e-3 * torch.randn(sum(CELLS), len(OPERATIONS)))

    def forward(self, x: Tensor, path: Draw | Sequence[int]) -> Tensor:
        """Logits ``[N, num_classes]`` of one path.

        Args:
            x: ``[N, in_channels, D, H, W]``.
            path: a draw, whose gates pass the gradient on to the architecture weights, or bare indices.
        """
        choice, gates = (path.choice, path.gates) if isinstance(path, Draw) else (path, None)
        x = self.stem(x)
        for number, (cell, index) in enumerate(zip(self.cells, choice, strict=True)):
            x = cell(x, OPERATIONS[index], None if gates is None else gates[number, index])
        logits: Tensor = self.classifier(self.dropout(self.pool(self.tail(x)).flatten(1)))
        return logits

    def shared(self) -> list[nn.Parameter]:
        """All parameters but the architecture weights."""
        return [p for name, p in self.named_parameters() if name != "architecture_weights"]

    def architecture(self, choice: Sequence[int] | None = None) -> Architecture:
        """The likeliest architecture, the first of equal ones, or that of a path."""
        chosen = self.architecture_weights.detach().argmax(1).tolist() if choice is None else choice
        names = tuple(OPERATIONS[index] for index in chosen)
        return Architecture(self.frame.size, names, self.frame.depth, self.frame.placement)

    def derive(self, architecture: Architecture) -> CovidNet3d:
        """The network of an architecture of this space with the weights it has here."""
        network = CovidNet3d.of(architecture, self.num_classes, self.in_channels, self.rate)
        for own, mixed, name in zip(network.cells, self.cells, architecture.operations, strict=True):
            assert isinstance(mixed, MixedCell3d)  # noqa: S101
            own.calibration.load_state_dict(mixed.calibration.state_dict())
            own.operation.load_state_dict(mixed.operations[name].state_dict())
        for part in ("stem", "tail", "classifier"):
            getattr(network, part).load_state_dict(getattr(self, part).state_dict())
        return network.train(self.training)


def indices(architecture: Architecture) -> tuple[int, ...]:
    """The path of an architecture."""
    return tuple(OPERATIONS.index(name) for name in architecture.operations)
