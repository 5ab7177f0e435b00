"""How time and memory grow with the volume, with the channels of the layer and with the number of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.bench.engine import LAYER, densenet3d, extra_memory, timed
from tests.bench.entry import Entry

SIZES = (48, 64, 96, 128)
CHANNELS = (64, 128, 256, 512)
CLASSES = (1, 2, 4, 8, 16)
RUNS = 9
PICTURE = Path("docs/images/growth.png")


def growth() -> list[Entry]:
    """Fitted exponents, and the plot."""
    import torch

    from medxai.explain import explain

    network = densenet3d(16)
    seconds, memory = [], []
    for size in SIZES:
        x = torch.randn(1, 1, size, size, size)
        seconds.append(_least(lambda x=x: explain(network, x, classes=1, layers=LAYER)))
        memory.append(extra_memory("gradcam", size) / 1024)
    x = torch.randn(1, 1, 48, 48, 48)
    classes = [_least(lambda n=n: explain(network, x, classes=list(range(n)), layers=LAYER)) for n in CLASSES]
    channels = []
    for count in CHANNELS:
        torch.manual_seed(0)
        small = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3, stride=4, padding=1), torch.nn.ReLU(),
                                    torch.nn.Conv3d(8, count, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool3d(1),
                                    torch.nn.Flatten(), torch.nn.Linear(count, 2))  # fmt: skip
        wide = torch.randn(1, 1, 64, 64, 64)

        channels.append(
            _least(lambda net=small, x=wide: explain(net, x, classes=1, layers="3", methods=("gradcam", "eigencam")))
        )
    _draw(seconds, memory, channels, classes)
    voxels = [size**3 for size in SIZES]
    return [
        _exponent(
            "growth_volume_exponent", voxels, seconds, "time over voxels, Grad-CAM, DenseNet121-3D, 48 to 128 cubed"
        ),
        _exponent("growth_memory_exponent", voxels, memory, "peak memory over voxels, likewise"),
        _exponent("growth_channels_exponent", CHANNELS, channels, "time over channels of the layer, 64 to 512"),
        _exponent(
            "growth_classes_exponent", CLASSES, classes, "time over classes asked for together, 1 to 16, 48 cubed"
        ),
    ]


def _least(call: object) -> float:
    """Shortest of several runs: what else the machine does can only add."""
    call()  # type: ignore[operator]
    return min(timed(call) for _ in range(RUNS))  # type: ignore[arg-type]


def _exponent(name: str, sizes: object, values: list[float], against: str) -> Entry:
    """Slope of the logarithms, with its lowest and highest when one point is left out."""
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values))
    slope = float(np.polyfit(x, y, 1)[0])
    left = [float(np.polyfit(np.delete(x, i), np.delete(y, i), 1)[0]) for i in range(len(x))]
    return Entry(name, slope, "exponent", None, "lower", len(x), min(left), max(left), against)


def _draw(seconds: list[float], memory: list[float], channels: list[float], classes: list[float]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), constrained_layout=True)
    rows = (
        ([size**3 for size in SIZES], seconds, "voxels of the volume", "seconds"),
        ([size**3 for size in SIZES], memory, "voxels of the volume", "peak MiB above the model"),
        (CHANNELS, channels, "channels of the layer", "seconds"),
        (CLASSES, classes, "classes in one call", "seconds"),
    )
    for axis, (x, y, below, beside) in zip(axes, rows, strict=True):
        slope, start = np.polyfit(np.log(x), np.log(y), 1)
        axis.loglog(x, y, "o", color="#1f5f8b")
        axis.loglog(
            x, np.exp(start) * np.asarray(x, float) ** slope, "-", color="#c0504d", label=f"exponent {slope:.2f}"
        )
        axis.minorticks_off()
        axis.set_xticks(list(x), [f"{round(n ** (1 / 3))}³" if n > 1e4 else str(n) for n in x])
        axis.set_xlabel(below)
        axis.set_ylabel(beside)
        axis.legend(frameon=False)
        axis.grid(visible=True, which="both", alpha=0.2)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)
