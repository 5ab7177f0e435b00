"""Grad-CAM on DenseNet121-3D at 96x96x96: time over the floor, memory over inference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.entry import Entry, of_runs

LAYER = "features.denseblock3"
RUNS = 15


def gradcam_over_floor() -> list[Entry]:
    """Ratio to the floor: layers before the target without graph, then autograd to one logit; runs interleaved.

    Order alternates, so that a drift of the machine falls on both.
    """
    import torch
    from monai.networks.nets import DenseNet121

    from medxai.explain.engine import explain

    torch.manual_seed(0)
    torch.set_num_threads(2)
    network = DenseNet121(spatial_dims=3, in_channels=1, out_channels=2).eval()
    x = torch.randn(1, 1, 96, 96, 96)
    children = list(network.features.named_children())
    cut = [name for name, _ in children].index("denseblock3") + 1

    def floor() -> None:
        with torch.inference_mode():
            a = x
            for _, layer in children[:cut]:
                a = layer(a)
        leaf = a.clone().requires_grad_()
        b = leaf
        for _, layer in children[cut:]:
            b = layer(b)
        torch.autograd.grad(network.class_layers(b)[:, 1].sum(), leaf)

    def ours() -> None:
        explain(network, x, methods=("gradcam",), classes=1, layers=LAYER)

    def timed(call: object) -> float:
        start = time.perf_counter()
        call()  # type: ignore[operator]
        return time.perf_counter() - start

    for call in (floor, ours):
        call()
    ratios = []
    for run in range(RUNS):
        if run % 2:
            mine, least = timed(ours), timed(floor)
        else:
            least, mine = timed(floor), timed(ours)
        ratios.append(mine / least)
    against = "layers below features.denseblock3 without graph plus autograd from there; DenseNet121-3D, 96x96x96"
    return [of_runs("gradcam_3d_96_over_floor", ratios, "ratio", 1.1, "lower", against)]


_CHILD = """
import sys, json, torch
from monai.networks.nets import DenseNet121
from medxai.explain.engine import explain
torch.manual_seed(0); torch.set_num_threads(2)
network = DenseNet121(spatial_dims=3, in_channels=1, out_channels=2).eval()
x = torch.randn(1, 1, 96, 96, 96)
def value(name):
    for line in open('/proc/self/status'):
        if line.startswith(name): return int(line.split()[1])
with torch.inference_mode(): network(torch.randn(1, 1, 32, 32, 32))
explain(network, torch.randn(1, 1, 32, 32, 32), classes=1, layers='features.denseblock3')
before = value('VmRSS:')
open('/proc/self/clear_refs', 'w').write('5')
if sys.argv[1] == 'inference':
    with torch.inference_mode(): network(x)
else:
    explain(network, x, methods=('gradcam',), classes=1, layers='features.denseblock3')
print(json.dumps(value('VmHWM:') - before))
"""


#: Freed blocks go back to the system at once; otherwise what malloc happens to keep (up to 80 MB either way,
#: in inference alone as much as in Grad-CAM) hides what the two need.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def gradcam_memory() -> list[Entry]:
    """Peak memory above the loaded model, Grad-CAM over inference, each in a process of its own."""

    def extra(mode: str) -> float:
        command = [sys.executable, "-c", _CHILD, mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | _ALLOCATOR)
        return float(json.loads(done.stdout.strip().splitlines()[-1]))

    ratios = [extra("gradcam") / extra("inference") for _ in range(5)]
    against = "peak resident memory above the loaded model, inference alone; DenseNet121-3D, 96x96x96"
    return [of_runs("gradcam_3d_96_memory_over_inference", ratios, "ratio", 1.15, "lower", against)]


def cli_import() -> list[Entry]:
    """Seconds of ``medxai --help`` as a whole process."""
    command = [str(Path(sys.executable).parent / "medxai"), "--help"]
    runs = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        runs.append(time.perf_counter() - start)
    return [of_runs("cli_import_seconds", runs[1:], "s", 0.5, "lower", "whole process, byte code written")]
