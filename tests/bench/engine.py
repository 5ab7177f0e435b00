"""The engine against its floor: one map, eight methods and three classes, windows of a large volume, memory, growth.

The floor is the layers before the target without a graph, then autograd from the target layer's output to one
logit: no explanation that needs the network's own forward in eager PyTorch can be faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.entry import Entry, of_runs

LAYER = "features.denseblock3"
RUNS = 15
_FLOOR_3D = "layers below features.denseblock3 without graph plus autograd from there; DenseNet121-3D, 96x96x96"
_FLOOR_2D = "layers below layer4 included without graph plus autograd from there; ResNet50, 3x224x224"
#: Eight methods that read one gradient.
EIGHT = (
    "gradcam",
    "gradcam_elementwise",
    "hirescam",
    "xgradcam",
    "gradcampp",
    "layercam",
    "eigengradcam",
    "segeigencam",
)


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def paired(ours: Callable[[], object], theirs: Callable[[], object], runs: int = RUNS) -> list[float]:
    """Ratios of runs next to each other; the order alternates, so that a drift of the machine falls on both."""
    for call in (theirs, ours):
        call()
    ratios = []
    for run in range(runs):
        if run % 2:
            mine, least = timed(ours), timed(theirs)
        else:
            least, mine = timed(theirs), timed(ours)
        ratios.append(mine / least)
    return ratios


def densenet3d(classes: int = 3) -> Any:
    """MONAI DenseNet121-3D with fixed weights."""
    import torch
    from monai.networks.nets import DenseNet121

    torch.manual_seed(0)
    torch.set_num_threads(2)
    return DenseNet121(spatial_dims=3, in_channels=1, out_channels=classes).eval()


def floor(network: Any, layer: str, x: Any) -> Callable[[], object]:
    """The floor of a network: its own forward, cut by a hook, nothing else."""
    import torch

    module = network.get_submodule(layer)

    def call() -> object:
        kept: list[Any] = []
        guard = torch.inference_mode()

        def cut(_module: Any, _inputs: Any, output: Any) -> Any:
            guard.__exit__(None, None, None)
            kept.append(output.clone().requires_grad_())
            return kept[0]

        handle = module.register_forward_hook(cut)
        guard.__enter__()
        try:
            logits = network(x)
        finally:
            handle.remove()
        return torch.autograd.grad(logits[:, 1].sum(), kept[0])

    return call


def maps_3d() -> list[Entry]:
    """Four methods on DenseNet121-3D, each against the floor."""
    import torch

    from medxai.explain import explain

    network, x = densenet3d(), torch.randn(1, 1, 96, 96, 96)
    least = floor(network, LAYER, x)
    entries = []
    for method in ("gradcam", "layercam", "gradcampp", "eigencam"):

        def ours(method: str = method) -> object:
            return explain(network, x, methods=method, classes=1, layers=LAYER)

        entries.append(of_runs(f"{method}_3d_over_floor", paired(ours, least, 31), "ratio", 1.05, "lower", _FLOOR_3D))
    return entries


def maps_2d() -> list[Entry]:
    """Four methods on ResNet50, each against the floor."""
    import torch
    from monai.networks.nets import resnet50

    from medxai.explain import explain

    torch.manual_seed(0)
    torch.set_num_threads(2)
    network = resnet50(spatial_dims=2, n_input_channels=3, conv1_t_stride=2, num_classes=10).eval()
    x = torch.randn(1, 3, 224, 224)
    least = floor(network, "layer4", x)
    entries = []
    for method in ("gradcam", "layercam", "gradcampp", "eigencam"):

        def ours(method: str = method) -> object:
            return explain(network, x, methods=method, classes=1, layers="layer4")

        entries.append(of_runs(f"{method}_2d_over_floor", paired(ours, least, 151), "ratio", 1.05, "lower", _FLOOR_2D))
    return entries


def eight_methods() -> list[Entry]:
    """Eight gradient methods of three classes together, over the floor of a single map."""
    import torch

    from medxai.explain import explain

    network, x = densenet3d(), torch.randn(1, 1, 96, 96, 96)

    def ours() -> object:
        return explain(network, x, methods=EIGHT, classes=[0, 1, 2], layers=LAYER)

    against = f"one floor, for 24 maps ({', '.join(EIGHT)}); {_FLOOR_3D}"
    ratios = paired(ours, floor(network, LAYER, x))
    return [of_runs("eight_methods_three_classes_over_floor", ratios, "ratio", 1.6, "lower", against)]


def sliding_window() -> list[Entry]:
    """Grad-CAM of a 192x192x192 volume by overlapping windows of 96x96x96, over as many floors."""
    import numpy as np
    import torch

    from medxai.explain.study_map import ExplainOptions, explain_study
    from medxai.predict.windows import plan_windows

    network = densenet3d(2)
    bundle, study, prepared = volume(192)
    count = len(plan_windows(prepared.pixels.shape[1:], bundle.spec.preparation))
    x = torch.from_numpy(np.ascontiguousarray(prepared.pixels[None, :, :96, :96, :96]))
    least = floor(network, LAYER, x)
    options = ExplainOptions(batch_size=1, stability=False)

    def floors() -> object:
        return [least() for _ in range(count)]

    def ours() -> object:
        return explain_study(bundle, network, study, prepared, options)

    against = f"{count} windows times the floor of one, map fused and taken back included; DenseNet121-3D"
    return [of_runs("sliding_window_over_floor", paired(ours, floors, 5), "ratio", 1.1, "lower", against)]


def volume(size: int) -> tuple[Any, Any, Any]:
    """A bundle with windows of 96x96x96 at 1 mm, and a study of noise of that size on the same grid."""
    from dataclasses import dataclass

    import numpy as np

    from medxai.predict.bundle_spec import MedxaiBlock
    from medxai.prepare.prepare import prepare
    from medxai.prepare.spec import AffineIntensity, PreparationSpec
    from medxai.study import Study, Volume

    @dataclass(frozen=True)
    class Plain:
        spec: MedxaiBlock
        name: str = "densenet"
        version: str = "1"
        sha256: str = "f" * 64

    intensity = AffineIntensity(mean=(0.0,), std=(1.0,))
    preparation = PreparationSpec(
        axes="DHW", window=(96, 96, 96), spacing_mm=(1.0, 1.0, 1.0), overlap=0.25, intensity=intensity
    )
    block = MedxaiBlock(labels=("a", "b"), modalities=("CT",), body_parts=("CHEST",), preparation=preparation,
                        target_layer=LAYER, activation="softmax", licence="CC0-1.0")  # fmt: skip
    pixels = np.random.default_rng(0).normal(size=(1, size, size, size)).astype(np.float32)
    scan = Volume(pixels, "DHW", np.diag([1.0, 1.0, 1.0, 1.0]), "CT", body_part="CHEST")
    return Plain(block), Study("bench0000000", "nifti", "0" * 64, scan), prepare(scan, preparation)


_CHILD = """
import sys, json, torch
sys.path.insert(0, '.')
from tests.bench.engine import LAYER, densenet3d, volume
from medxai.explain import explain
from medxai.explain.study_map import ExplainOptions, explain_study
network = densenet3d(2)
size = int(sys.argv[2])
x = torch.randn(1, 1, size, size, size) if sys.argv[1] != 'study' else None
def value(name):
    for line in open('/proc/self/status'):
        if line.startswith(name): return int(line.split()[1])
with torch.inference_mode(): network(torch.randn(1, 1, 32, 32, 32))
explain(network, torch.randn(1, 1, 32, 32, 32), classes=1, layers=LAYER)
if sys.argv[1] == 'study': bundle, study, prepared = volume(size)
before = value('VmRSS:')
open('/proc/self/clear_refs', 'w').write('5')
if sys.argv[1] == 'inference':
    with torch.inference_mode(): network(x)
elif sys.argv[1] == 'study':
    explain_study(bundle, network, study, prepared, ExplainOptions(batch_size=1, stability=False))
else:
    explain(network, x, methods=('gradcam',), classes=1, layers=LAYER)
print(json.dumps(value('VmHWM:') - before))
"""

#: Freed blocks go back to the system at once; otherwise what malloc happens to keep (up to 80 MB either way,
#: in inference alone as much as in Grad-CAM) hides what the two need.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def extra_memory(mode: str, size: int = 96) -> float:
    """Peak resident KiB above the loaded model in a process of its own."""
    command = [sys.executable, "-c", _CHILD, mode, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | _ALLOCATOR)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def gradcam_memory() -> list[Entry]:
    """Peak memory above the loaded model, Grad-CAM over inference; and what windows of a larger volume add."""
    ratios = [extra_memory("gradcam") / extra_memory("inference") for _ in range(5)]
    against = "peak resident memory above the loaded model, inference alone; DenseNet121-3D, 96x96x96"
    entries = [of_runs("gradcam_memory_over_inference", ratios, "ratio", 1.1, "lower", against)]
    # A volume of 192 holds 27 MiB as float32; the map is one of those, on the grid of the source and of the input.
    grown = [(extra_memory("study", 192) - extra_memory("study", 96)) / (4 * 192**3 / 1024) for _ in range(3)]
    words = "peak of 192x192x192 by windows less that of one window, in volumes of that size (27 MiB): the map is one"
    entries.append(of_runs("sliding_window_memory_volumes", grown, "volumes", 1.1, "lower", words))
    return entries


def cli_import() -> list[Entry]:
    """Seconds of ``medxai --help`` as a whole process."""
    command = [str(Path(sys.executable).parent / "medxai"), "--help"]
    runs = [timed(lambda: subprocess.run(command, capture_output=True, check=True)) for _ in range(11)]
    return [of_runs("cli_import_seconds", runs[1:], "s", 0.5, "lower", "whole process, byte code written")]
