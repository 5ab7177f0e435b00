"""CovidNet3D: mobile 3D networks for chest CT whose operations are chosen by architecture search.

He et al., AAAI 2021 (arXiv:2101.05442); the space is that of EMARS (arXiv:2101.10667). A cell is a 1x1x1
"calibration" convolution that sets width and stride, and one searched operation at that width.

Two things differ from the published code. A skipped cell passes its input on: the code has an identity, which
doubles the signal beside a shortcut, and a zero, which beside a shortcut is then the identity; one function under two
names splits its architecture weight. And ``placement="centred"`` averages the voxels that a stride leaves out and
has an even kernel in the stem, so that cell ``j`` of a map is centred on the voxels it stands for.
``placement="published"`` takes the first voxel of each stride, which moves a map by up to half a cell towards the
first slice, row and column: 28 mm along the body for slices of 8 mm and cells of 8 slices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.nn import functional

from medxai.errors import BundleError
from medxai.files import write_text
from medxai.networks.depthwise3d import DepthwiseConv3d

Stride = tuple[int, int, int]
Placement = Literal["centred", "published"]
Depth = Literal["published", "kept"]

#: Kernel and expansion of the inverted bottlenecks a cell can be, by name.
BOTTLENECKS: dict[str, tuple[int, int]] = {
    f"k{k}e{e}": (k, e) for k, e in ((3, 3), (3, 4), (3, 6), (5, 3), (5, 4), (7, 3), (7, 4))
}
SKIP = "skip"
#: What a cell can be, in the order of the architecture weights.
OPERATIONS = (*BOTTLENECKS, SKIP)
#: Cells of the six stages.
CELLS = (4, 4, 4, 4, 4, 1)
#: Widths of the six stages by size.
WIDTHS: dict[str, tuple[int, ...]] = {"S": (24, 40, 80, 96, 192, 320), "L": (32, 64, 128, 256, 512, 1024)}
#: Strides of the six stages; ``kept`` leaves the depth alone in the last two reductions.
STRIDES: dict[Depth, tuple[Stride, ...]] = {
    "published": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1), (2, 2, 2), (1, 1, 1)),
    "kept": ((2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 2, 2), (1, 1, 1)),
}
#: Channels before the classifier.
FEATURES = 1280
#: Layer whose output feeds the mean and the classifier: its class activation map is exact.
TARGET_LAYER = "tail.relu"
#: Output of the second strided stage, cells of 8 x 8 x 8 voxels, and of the first, 4 x 4 x 4.
FINE_LAYERS = {"stage3": "stages.1", "stage2": "stages.0"}


@dataclass(frozen=True)
class Architecture:
    """What a search decides, and all that is needed to build the network but its classes.

    Attributes:
        size: ``S`` or ``L``.
        operations: one of `OPERATIONS` for each of the 21 cells, from the input on.
        depth: strides, see `STRIDES`.
        placement: see the module.
    """

    size: str
    operations: tuple[str, ...]
    depth: Depth = "kept"
    placement: Placement = "centred"

    def __post_init__(self) -> None:
        """Refuse what is no architecture."""
        unknown = sorted(set(self.operations) - set(OPERATIONS))
        if self.size not in WIDTHS or self.depth not in STRIDES or self.placement not in ("centred", "published"):
            msg = f"size {self.size!r}, depth {self.depth!r} or placement {self.placement!r} is none of CovidNet3D's"
            raise BundleError(msg)
        if unknown or len(self.operations) != sum(CELLS):
            wrong = f"knows no operation {unknown[0]!r}" if unknown else f"has {len(self.operations)} operations"
            msg = f"the architecture {wrong}; it needs {sum(CELLS)} of {', '.join(OPERATIONS)}"
            raise BundleError(msg)

    @classmethod
    def uniform(cls, operation: str, size: str = "S", depth: Depth = "kept", placement: Placement = "centred") -> Self:
        """Every cell the same operation."""
        return cls(size, (operation,) * sum(CELLS), depth, placement)

    def write(self, path: Path) -> None:
        """Write as JSON, the same bytes for the same architecture."""
        write_text(path, json.dumps(self.stated(), indent=1) + "\n")

    def stated(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"operations": list(self.operations)}

    @classmethod
    def of(cls, stated: dict[str, Any]) -> Self:
        """What `stated` gave.

        Raises:
            BundleError: no architecture.
            TypeError, KeyError: other fields.
        """
        return cls(**(stated | {"operations": tuple(stated["operations"])}))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            BundleError: unreadable, or no architecture.
        """
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            msg = f"{path.name} holds no architecture ({type(error).__name__})"
            raise BundleError(msg) from error


class InvertedBottleneck3d(nn.Module):
    """Expand, depthwise convolution, project (Sandler et al. 2018, arXiv:1801.04381): ``[N, C, D, H, W]`` -> same.

    Args:
        width: channels in and out.
        kernel: side of the depthwise kernel.
        expansion: inner channels per channel; 1 leaves the expansion out.
        out: channels out, where they differ.
    """

    def __init__(self, width: int, kernel: int, expansion: int, out: int | None = None) -> None:
        super().__init__()
        inner = round(expansion * width)
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv3d(width, inner, 1, bias=False), _norm(inner), nn.ReLU6()]
        layers += [DepthwiseConv3d(inner, kernel), _norm(inner), nn.ReLU6()]
        layers += [nn.Conv3d(inner, out or width, 1, bias=False), _norm(out or width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        y: Tensor = self.layers(x)
        return y


def operation(name: str, width: int) -> nn.Module:
    """The module of one of `OPERATIONS`."""
    return nn.Identity() if name == SKIP else InvertedBottleneck3d(width, *BOTTLENECKS[name])


def calibration(width_in: int, width: int, stride: Stride, placement: Placement) -> nn.Sequential:
    """1x1x1 convolution to `width`, with the stride of the stage as a mean of its voxels or as published."""
    if placement == "published" or stride == (1, 1, 1):
        return nn.Sequential(nn.Conv3d(width_in, width, 1, stride=stride))
    return nn.Sequential(BlockMean3d(stride), nn.Conv3d(width_in, width, 1))


class BlockMean3d(nn.Module):
    """Mean of blocks of voxels; at a border, or where the input is smaller than a block, of those that there are.

    Args:
        stride: size of a block.
    """

    def __init__(self, stride: Stride) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, D, H, W]`` -> as many voxels as a convolution with this stride has."""
        size = [min(step, have) for step, have in zip(self.stride, x.shape[2:], strict=True)]
        return functional.avg_pool3d(x, size, ceil_mode=True)


class Cell3d(nn.Module):
    """Calibration, then an operation with a shortcut where width and size stay.

    Args:
        width_in: channels in.
        width: channels out.
        stride: of the calibration.
        name: of the operation.
        placement: see the module.
    """

    def __init__(self, width_in: int, width: int, stride: Stride, name: str, placement: Placement) -> None:
        super().__init__()
        self.calibration = calibration(width_in, width, stride, placement)
        self.operation = operation(name, width)
        self.shortcut = name != SKIP and width_in == width and stride == (1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, width_in, D, H, W]`` -> ``[N, width, D', H', W']``."""
        x = self.calibration(x)
        y: Tensor = self.operation(x)
        return x + y if self.shortcut else y


def plan(architecture: Architecture) -> list[tuple[int, int, Stride]]:
    """Width in, width out and stride of each cell."""
    cells: list[tuple[int, int, Stride]] = []
    width_in = 16
    for count, width, stride in zip(CELLS, WIDTHS[architecture.size], STRIDES[architecture.depth], strict=True):
        for number in range(count):
            cells.append((width_in, width, stride if number == 0 else (1, 1, 1)))
            width_in = width
    return cells


class Stem3d(nn.Sequential):
    """Halve the volume to 16 channels: ``[N, C, D, H, W]`` -> ``[N, 16, D/2, H/2, W/2]``."""

    def __init__(self, in_channels: int, placement: Placement) -> None:
        kernel = 4 if placement == "centred" else 3
        super().__init__(
            nn.Conv3d(in_channels, 32, kernel, stride=2, padding=1, bias=False),
            _norm(32),
            nn.ReLU6(),
            InvertedBottleneck3d(32, 3, 1, 16),
        )


class Tail3d(nn.Module):
    """Features of which each channel's mean decides: ``[N, W, D, H, W]`` -> ``[N, 1280, D, H, W]``, 0..6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, FEATURES, 1, bias=False)
        self.norm = _norm(FEATURES)
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        y: Tensor = self.relu(self.norm(self.conv(x)))
        return y


class CovidNet3d(nn.Module):
    """Classifier ``[N, in_channels, D, H, W]`` -> logits ``[N, num_classes]``.

    The logits are linear in the mean of `TARGET_LAYER`, whose class activation map is therefore exact: its mean plus
    the bias is the logit.

    Args:
        num_classes: logits.
        size: see `Architecture`, as are `operations`, `depth` and `placement`.
        operations: of the cells.
        depth: strides.
        placement: of the cells of a map.
        in_channels: channels of the input.
        dropout: before the classifier.
    """

    def __init__(
        self,
        num_classes: int,
        size: str,
        operations: Sequence[str],
        depth: Depth = "kept",
        placement: Placement = "centred",
        in_channels: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.architecture = Architecture(size, tuple(operations), depth, placement)
        self.stem = Stem3d(in_channels, placement)
        cells = [
            Cell3d(width_in, width, stride, name, placement)
            for (width_in, width, stride), name in zip(plan(self.architecture), operations, strict=True)
        ]
        ends = tuple(accumulate(CELLS))
        self.stages = nn.Sequential(
            *(nn.Sequential(*cells[end - count : end]) for count, end in zip(CELLS, ends, strict=True))
        )
        self.tail = Tail3d(WIDTHS[size][-1])
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(FEATURES, num_classes)
        initialise(self)

    @classmethod
    def of(cls, architecture: Architecture, num_classes: int, in_channels: int = 1, dropout: float = 0.5) -> Self:
        """Build the network of an architecture with random weights."""
        return cls(num_classes, in_channels=in_channels, dropout=dropout, **asdict(architecture))

    @property
    def cells(self) -> list[Cell3d]:
        """The 21 cells in order."""
        return [cell for stage in self.stages for cell in stage]  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        features = self.tail(self.stages(self.stem(x)))
        logits: Tensor = self.classifier(self.dropout(self.pool(features).flatten(1)))
        return logits


def initialise(network: nn.Module, share: float = 0.0) -> None:
    """Random weights: He by what a voxel of the output reads, shortcuts that begin alone, a small classifier.

    A bottleneck beside a shortcut starts as zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1): few steps suffice
    to train what is then shallow.

    Args:
        network: any with cells of this module.
        share: with which a bottleneck beside a shortcut starts instead.
    """
    for module in network.modules():
        if getattr(module, "shortcut", False):
            _scale(module, share)
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


def _scale(cell: nn.Module, share: float) -> None:
    """Set the scale of the last normalisation of the bottlenecks of a cell."""
    for module in cell.modules():
        if isinstance(module, InvertedBottleneck3d):
            nn.init.constant_(module.layers[-1].weight, share)  # type: ignore[arg-type]


def parameters(network: nn.Module) -> int:
    """Number of learnt parameters."""
    return sum(p.numel() for p in network.parameters())


def definition(architecture: Architecture, num_classes: int, **more: Any) -> dict[str, Any]:
    """``network_def`` of a bundle."""
    return {"_target_": f"{__name__}.CovidNet3d", "num_classes": num_classes, **architecture.stated(), **more}


def _norm(width: int) -> nn.BatchNorm3d:
    return nn.BatchNorm3d(width, momentum=0.1, eps=1e-3)
