"""How many samples to send through a network at once: as many as are still fast and fit into the memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medxai.explain.inputs import Inputs
from medxai.explain.split import Forward, infer

#: Beyond this a larger batch is no faster; below, memory decides.
_LARGEST = 32
_SHARE, _CEILING = 0.25, 1 << 30
#: On a processor larger tensors come from fresh pages each time, and a batch takes up to twice as long for each image.
_CACHED = 20 << 20


def plan_chunk(forward: Forward, inputs: Inputs) -> int:
    """Samples per forward so that the widest layer stays within a quarter of the free memory, at most 1 GiB.

    On a processor it stays within 20 MiB for each thread: beyond, batches are slower than single images. Costs one
    inference of one sample, whose largest input-plus-output of a layer is measured. A prepared network keeps its
    memory within its own batches, so that only masks and images count: full batches then, and nothing to measure.
    """
    budget = min(_CEILING, _SHARE * _free(inputs.x.device))
    prepared = forward.prepared_for(inputs)
    if prepared is not None:
        batch, image = prepared.manifest.batch, inputs.x[:1].numel() * inputs.x.element_size()
        return max(1, int(min(prepared.most, budget // (4 * image))) // batch) * batch
    if inputs.x.device.type == "cpu":
        budget = min(budget, _CACHED * torch.get_num_threads())
    widest = 0

    def watch(_module: nn.Module, given: Any, output: Any) -> None:
        nonlocal widest
        tensors = [t for t in (*given, output) if isinstance(t, Tensor)]
        widest = max(widest, sum(t.numel() * t.element_size() for t in tensors))

    leaves = [module for module in forward.network.modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(watch) for module in leaves]
    try:
        infer(forward, inputs.replace(inputs.x[:1], torch.zeros(1, dtype=torch.long)))
    finally:
        for handle in handles:
            handle.remove()
    return int(max(1, min(_LARGEST, budget // max(widest, 1))))


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float(4 << 30)
