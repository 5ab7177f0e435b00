"""What searching costs beside training, what the networks cost beside each other, and what the search was worth."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.bench.engine import _ALLOCATOR, timed
from tests.bench.entry import Entry, of_runs

RESULTS = Path("docs/evidence/search_chest_ct.json")
LOCALISATION = Path("docs/evidence/chest_ct_localisation.json")
#: Input of the published training, at which networks are timed.
SHAPE = (32, 128, 128)
NETWORKS = ("covidnet3d_s", "covidnet3d_l", "densenet3d121", "mc3_18", "resnet3d101")
LATENCY = ("covidnet3d_s_latency_over_densenet121", *(f"{name}_32x128x128_seconds" for name in NETWORKS))
MEMORY = tuple(f"{name}_32x128x128_peak_gib" for name in NETWORKS)
STEP = ("search_step_over_training_step",)

_CHILD = """
import gc, json, pathlib, sys
import torch
from tests.bench.search import network, step
mode = sys.argv[1]
torch.set_num_threads(2)
act = step(mode) if mode.startswith("step") else network(mode)
gc.collect()
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: building took more than is kept
def kib(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
before = kib("VmRSS")
act()
act()
print(json.dumps([before, kib("VmHWM")]))
"""


def step(mode: str, seed: int = 0):  # type: ignore[no-untyped-def]
    """A function that does one update of architecture and shared weights, or plain updates of the same paths.

    ``step_search`` and ``step_train`` run two batches forward and backward; the search on a supernet, the training on
    the derived networks. ``step_path`` trains the second of these networks alone.
    """
    import torch
    from torch.nn import functional

    from medxai.learn.search.gumbel import draw
    from medxai.learn.search.search import SearchRecipe, architecture_step, weights_step
    from medxai.learn.search.supernet import Supernet3d

    torch.manual_seed(seed)
    supernet = Supernet3d(3).train()
    generator = torch.Generator().manual_seed(seed)
    batches = [(torch.rand(8, 1, 16, 64, 64, generator=generator), torch.arange(8) % 3) for _ in range(2)]
    paths = [draw(supernet.architecture_weights, 1.0, torch.Generator().manual_seed(seed + n)) for n in range(2)]
    if mode == "step_search":
        own = torch.optim.Adam([supernet.architecture_weights], lr=1e-6)  # the noise alone decides: the same path
        shared = torch.optim.Adam(supernet.shared(), lr=1e-3)

        def search() -> None:
            path = draw(supernet.architecture_weights, 1.0, torch.Generator().manual_seed(seed))
            assert path.choice == paths[0].choice
            architecture_step(supernet, path, *batches[0], own, SearchRecipe())
            weights_step(supernet, paths[1], *batches[1], shared)

        return search
    networks = [supernet.derive(supernet.architecture(path.choice)) for path in paths]
    if mode == "step_path":  # one path alone
        networks, batches = networks[1:], batches[1:]
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-3) for network in networks]

    def train() -> None:
        for network, optimizer, (x, y) in zip(networks, optimizers, batches, strict=True):
            loss = functional.cross_entropy(network(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()

    return train


def network(name: str):  # type: ignore[no-untyped-def]
    """A function that runs one input of `SHAPE` through one of `NETWORKS`."""
    import torch

    from medxai.networks.covidnet3d import CovidNet3d
    from medxai.networks.published3d import Mc3x18, densenet3d121, resnet3d101

    make = {
        "covidnet3d_s": lambda: CovidNet3d.of(_published("S"), 3),
        "covidnet3d_l": lambda: CovidNet3d.of(_published("L"), 3),
        "densenet3d121": lambda: densenet3d121(3),
        "mc3_18": lambda: Mc3x18(3),
        "resnet3d101": lambda: resnet3d101(3),
    }
    torch.manual_seed(0)
    made = make[name]().eval()
    x = torch.rand(1, 1, *SHAPE)

    def run() -> None:
        with torch.inference_mode():
            made(x)

    return run


def _published(size: str):  # type: ignore[no-untyped-def]
    """Operations of the first search, strides and placement as published."""
    from medxai.learn.chest_ct.bundle import SHIPPED
    from medxai.networks.covidnet3d import Architecture

    return Architecture(size, Architecture.read(SHIPPED).operations, "published", "published")


def steps() -> list[Entry]:
    """Time of a search step over plain training of the same paths, interleaved; a new pair of paths each run."""
    ratios = []
    for seed in range(9):
        search, train = step("step_search", seed), step("step_train", seed)
        search()
        train()
        pairs = [(timed(search), timed(train)) for _ in range(3)]
        ratios.append(min(a for a, _ in pairs) / min(b for _, b in pairs))
    words = "two training steps of the derived networks: a search step also runs two batches; S, batch 8, 16x64x64"
    return [of_runs("search_step_over_training_step", ratios, "ratio", 1.3, "lower", words)]


def memory_of_a_step() -> list[Entry]:
    """Peak memory a search step adds, over what training the same paths adds."""
    ratios = [_added("step_search") / _added("step_path") for _ in range(5)]
    words = "training of one derived network; peak above the loaded networks, S, batch 8, 16x64x64"
    return [of_runs("search_memory_over_path", ratios, "ratio", 1.2, "lower", words)]


def latency() -> list[Entry]:
    """Seconds of one input of the published size on two threads, networks interleaved."""
    runs = {name: network(name) for name in NETWORKS}
    seconds: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for name in NETWORKS:
        runs[name]()
    for _ in range(7):
        for name in NETWORKS:
            seconds[name].append(timed(runs[name]))
    ratios = [a / b for a, b in zip(seconds["covidnet3d_s"], seconds["densenet3d121"], strict=True)]
    words = "DenseNet3D-121, forward of one 32x128x128 input, batch 1, eager; operations of the first search"
    entries = [of_runs(LATENCY[0], ratios, "ratio", None, "lower", words)]
    for name in NETWORKS:
        entries.append(of_runs(f"{name}_32x128x128_seconds", seconds[name], "s", None, "lower", "forward, batch 1"))
    return entries


def peaks() -> list[Entry]:
    """Peak memory of that forward above the loaded network, each in a process of its own."""
    found = []
    for name in NETWORKS:
        runs = [_added(name) / 2**20 for _ in range(3)]
        words = "peak above the loaded network, forward of one 32x128x128 input"
        found.append(of_runs(f"{name}_32x128x128_peak_gib", runs, "GiB", None, "lower", words))
    return found


def _added(mode: str) -> float:
    command = [sys.executable, "-c", _CHILD, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | _ALLOCATOR)
    before, after = json.loads(done.stdout.strip().splitlines()[-1])
    return float(after - before)


def worth() -> list[Entry]:
    """AUROC of the searched networks less that of random ones of equal size, by seed."""
    if not RESULTS.exists():
        return []
    stored = json.loads(RESULTS.read_text())
    pairs = stored["searched_minus"]["random"]["auroc"]
    words = f"random architectures of equal size, synthetic test slabs; mean and extremes of {len(pairs)} seeds"
    mean = statistics.fmean(pairs)
    return [Entry("searched_minus_random_auroc", mean, "1", None, "higher", len(pairs), min(pairs), max(pairs), words)]


def lift() -> list[Entry]:
    """Mass lift of the shipped network's kind of map on synthetic truth, over cases of all seeds."""
    if not LOCALISATION.exists():
        return []
    stored = json.loads(LOCALISATION.read_text())
    chosen = stored["shipped_view"]
    values = np.array(chosen["lift"])
    random = np.random.default_rng(0)
    means = [float(np.mean(values[random.integers(len(values), size=len(values))])) for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    words = f"share of evidence over share of volume, {chosen['view']}, strides {chosen['depth']}"
    return [Entry("synthetic_ct_mass_lift", float(values.mean()), "1", None, "higher", len(values), low, high, words)]
