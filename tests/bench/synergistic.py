"""Synergistic activation maps against their forwards, their memory against a chunk, and a training step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.bench.engine import paired, timed
from tests.bench.entry import Entry, of_runs

CHANNELS, CHUNK = 512, 16
#: Scaled down from 61 x 73 x 61 voxels, 164 nodes and 120 windows.
SHAPES = {"alff": (16, 18, 16), "dfc": (40, 40, 12), "sfc": (40, 40, 1), "fa": (24, 24, 1)}
WORDS = "ALFF 16x18x16, 40 nodes, 12 windows, 24 FA nodes; 16 hidden channels, one core"


def fusion() -> tuple[Any, dict[str, Any]]:
    """A narrow network whose layers still have a grid, and one subject."""
    import torch

    from medxai.networks.hierarchical_fusion import HierarchicalFusion

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = HierarchicalFusion(2, channels=16, width=64, depth=2, heads=4, strides=(2, 1, 1)).eval()
    return network, {name: torch.randn(1, 1, *shape) for name, shape in SHAPES.items()}


def maps(network: Any, inputs: dict[str, Any]) -> None:
    """Maps of the four modalities, and the weights of each alone."""
    from medxai.explain.synergistic import SynergisticOptions, synergistic_maps

    found = synergistic_maps(network, inputs, 1, SynergisticOptions(chunk=CHUNK))
    if len(found.increments) != CHANNELS or len(found.maps) != len(SHAPES):
        raise RuntimeError(f"{len(found.increments)} channels in {len(found.maps)} maps")


def forwards(network: Any, inputs: dict[str, Any], count: int = CHANNELS) -> None:
    """As many forwards of the whole network in the same chunks."""
    import torch

    with torch.inference_mode():
        for _ in range(count // CHUNK):
            network({name: x.repeat(CHUNK, 1, 1, 1, 1) for name, x in inputs.items()})


def over_forwards() -> list[Entry]:
    """Time over that of the K forwards with all inputs changed."""
    network, inputs = fusion()
    runs = paired(lambda: maps(network, inputs), lambda: forwards(network, inputs), 3)
    against = f"{CHANNELS} forwards of four inputs, {CHUNK} at once; {WORDS}"
    return [of_runs("sam_over_forwards", runs, "ratio", 1.1, "lower", against)]


_CHILD = """
import sys, json
sys.path.insert(0, '.')
from tests.bench.synergistic import CHUNK, forwards, fusion, maps
network, inputs = fusion()
def value(name):
    for line in open('/proc/self/status'):
        if line.startswith(name): return int(line.split()[1])
forwards(network, {name: x[:, :, :24, :24, :4] for name, x in inputs.items()}, CHUNK)
before = value('VmRSS:')
open('/proc/self/clear_refs', 'w').write('5')
forwards(network, inputs, CHUNK) if sys.argv[1] == 'chunk' else maps(network, inputs)
print(json.dumps(value('VmHWM:') - before))
"""
#: Freed blocks go back to the system at once, see `tests.bench.engine`.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _peak(mode: str) -> float:
    command = [sys.executable, "-c", _CHILD, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | _ALLOCATOR)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def memory() -> list[Entry]:
    """Peak memory above the loaded network, maps over one chunk's forward."""
    ratios = [_peak("maps") / _peak("chunk") for _ in range(3)]
    against = f"peak of one forward of {CHUNK} subjects; {CHANNELS} channels, {WORDS}"
    return [of_runs("sam_peak_memory_over_chunk", ratios, "ratio", 1.25, "lower", against)]


def step() -> list[Entry]:
    """Seconds of one training step with all losses."""
    import torch

    from medxai.learn.brain.losses import FusionLoss
    from medxai.networks.hierarchical_fusion import HierarchicalFusion

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network, loss = HierarchicalFusion(2, channels=64, width=64, depth=2, heads=4), FusionLoss()
    optimiser = torch.optim.Adam([*network.parameters(), *loss.parameters()], 1e-4)
    shapes = SHAPES | {"alff": (20, 24, 20), "dfc": (40, 40, 30), "fa": (40, 40, 1)}
    inputs = {name: torch.randn(8, 1, *shape) for name, shape in shapes.items()}
    labels = torch.arange(8) % 2

    def once() -> None:
        optimiser.zero_grad()
        logits, embeddings = network.outputs(inputs)
        loss(logits, labels, embeddings).total.backward()
        optimiser.step()

    once()
    words = "8 subjects, ALFF 20x24x20, 40 nodes, 30 windows, 64 hidden channels, two blocks of width 64, one core"
    return [of_runs("fusion_step_seconds", [timed(once) for _ in range(5)], "s", None, "lower", words)]
