"""What a network costs: parameters, and seconds of one CPU core for a hundred frames."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from medxai.learn.lung_us.frames import CLIP_REPEATS, CLIP_SPEC
from medxai.learn.lung_us.heads import CutNetwork, fresh_network

#: Frames (or clips) of one run, and runs of which the fastest counts.
_BATCH, _RUNS = 10, 3


@dataclass(frozen=True)
class Cost:
    """Size and speed.

    Attributes:
        parameters: of the whole network.
        trainable: of these.
        seconds: CPU seconds of one core for a hundred frames at inference, without reading and preparing them; None
            if not measured. A clip of the video network counts as its five frames.
    """

    parameters: int
    trainable: int
    seconds: float | None


def cost_of(name: str, num_classes: int, *, timing: bool = True) -> Cost:
    """Return the cost of a network of `medxai.learn.lung_us.heads.NETWORKS`."""
    cut = fresh_network(name, num_classes, random_start=True)
    parameters = list(cut.network.parameters())
    return Cost(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        _seconds(cut) if timing else None,
    )


def _seconds(cut: CutNetwork) -> float:
    shape = (1, sum(CLIP_REPEATS), *CLIP_SPEC.window) if cut.unit == "clip" else (3, *cut.spec.window)
    frames = _BATCH * (len(CLIP_REPEATS) if cut.unit == "clip" else 1)
    network = cut.network.eval()
    if cut.unit == "frame":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs, threads = torch.rand(_BATCH, *shape), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            times = []
            for _ in range(_RUNS):
                begun = time.thread_time()
                network(inputs)
                times.append(time.thread_time() - begun)
    finally:
        torch.set_num_threads(threads)
    return min(times) * 100 / frames
