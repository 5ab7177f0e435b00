"""Coarse-to-fine occlusion of the shipped bundles: its time, and how near its map is to that of all windows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tests.bench.engine import timed
from tests.bench.entry import Entry, of_runs
from tests.bench.prepared import faithful, windows_of

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Inputs of each bundle. All windows of one chest are 3375 forwards.
INPUTS = {"breast_us": 12, "phantom_ct": 6, "chest_ct": 3}
#: Versions that the time of a forward in PyTorch is measured on, and their batches.
_VERSIONS, _BATCHES = 64, (1, 4, 16)
_EAGER = "forwards of all windows in eager PyTorch in the best of batches of 1, 4 and 16, which any library needs"
NAMES = tuple(f"occlusion_coarse_to_fine_{name}_{what}" for name in INPUTS for what in ("over_eager", "correlation"))


def coarse_to_fine() -> list[Entry]:
    """Both figures of each bundle, through the prepared network (bfloat16 where the processor has it)."""
    import torch

    from medxai.explain import explain
    from medxai.predict.openvino_engine import processor_runs

    torch.set_num_threads(2)
    entries = []
    for name, count in INPUTS.items():
        samples = windows_of(name)
        if samples is None:
            continue
        network, prepared = faithful(name, samples, "bfloat16" if processor_runs("bfloat16") else "float32")
        chosen = samples[:: max(1, len(samples) // count)][:count]
        coarse = {"mode": "coarse_to_fine"}
        exact = {"window": 0.125}  # the same windows, all of them, in float32 and PyTorch's own results
        ratios, correlations = [], []
        explain(network, chosen[:1], methods="occlusion", options={"occlusion": coarse}, prepared=prepared)
        _, plain = faithful(name, samples, "float32")
        for number in range(len(chosen)):
            x = chosen[number : number + 1]
            call = partial(explain, network, x, methods="occlusion", options={"occlusion": coarse}, prepared=prepared)
            seconds = timed(call)
            found = call()[0]
            ratios.append(seconds / (_seconds_each(network, x) * float(found.report["windows"])))
            every = explain(network, x, methods="occlusion", options={"occlusion": exact}, prepared=plain)[0]
            both = torch.stack([found.raw.flatten(), every.raw.flatten()])
            correlations.append(float(torch.corrcoef(both)[0, 1]))
        share, nearness = (f"occlusion_coarse_to_fine_{name}_{what}" for what in ("over_eager", "correlation"))
        entries.append(of_runs(share, ratios, "ratio", 0.2, "lower", _EAGER))
        entry = of_runs(nearness, correlations, "1", 0.99, "higher", "map of all windows in float32; the worst input")
        entries.append(Entry(**(vars(entry) | {"value": entry.low})))
    return entries


def _seconds_each(network: nn.Module, x: Tensor) -> float:
    """Seconds of a forward for each version, in the best batch."""
    import torch

    versions = x.expand(_VERSIONS, *x.shape[1:])

    def forward(batch: int) -> Callable[[], object]:
        def call() -> None:
            with torch.inference_mode():
                for part in versions.split(batch):
                    network(part.contiguous())

        return call

    return min(timed(forward(batch)) for batch in _BATCHES) / _VERSIONS
