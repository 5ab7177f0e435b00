"""Lung ultrasound as it comes from a probe: every frame classified and explained before the next one."""

from __future__ import annotations

import time
from typing import Any

from tests.bench.engine import paired
from tests.bench.entry import Entry, of_runs

NAMES = ("lung_us_explain_over_forward", "lung_us_explain_frames_per_second")
#: Frames one after the other in a run, and runs.
FRAMES, RUNS = 40, 15


def live() -> list[Entry]:
    """Decision and Grad-CAM of single frames against the plain forward, eager PyTorch on two threads."""
    import torch

    from medxai.explain import explain
    from medxai.predict.bundle import AllowList, load_bundle

    torch.set_num_threads(2)
    bundle = load_bundle("lung_us", AllowList.shipped())
    network: Any = bundle.network()
    layer = bundle.spec.target_layer or "auto"
    frames = torch.randn(FRAMES, 1, 3, *bundle.spec.preparation.window)

    def plain() -> None:
        with torch.inference_mode():
            for frame in frames:
                network(frame).softmax(1)

    def ours() -> None:
        for frame in frames:
            explain(network, frame, methods="gradcam", layers=layer)

    ratios = paired(ours, plain, RUNS)
    rates = []
    for _ in range(RUNS):
        start = time.perf_counter()
        ours()
        rates.append(FRAMES / (time.perf_counter() - start))
    what = "the plain forward in inference mode; EfficientNet-Lite0, single frames of 3x224x224, two threads"
    return [
        of_runs(NAMES[0], ratios, "ratio", None, "lower", what),
        of_runs(NAMES[1], rates, "1/s", 25, "higher", "classification and Grad-CAM, one frame at a time, two threads"),
    ]
