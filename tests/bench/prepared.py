"""Prepared networks against PyTorch as it is: Grad-CAM over the eager floor, batches of the whole network."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.engine import LAYER
from tests.bench.entry import Entry, of_runs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medxai.predict.openvino_engine import Precision
    from medxai.predict.prepared import Prepared

#: Prepared once and used again by later runs; not in git.
STORE = Path(".training/prepared")
RUNS = 15
#: What the maps of the shipped bundles are compared on, below MEDXAI_DATA.
SAMPLES = {"breast_us": "us_breast_busi", "chest_ct": "ct_chest_nifti"}


def gradcam_prepared() -> list[Entry]:
    """Grad-CAM in float32 over the floor, and the error of its map."""
    ratios, errors = _gradcam("float32")
    return [
        of_runs("gradcam_3d_prepared_over_floor", ratios, "ratio", 0.6, "lower", _FLOOR),
        of_runs("gradcam_3d_prepared_map_error", errors, "1", 1e-4, "lower", "largest difference over largest value"),
    ]


def gradcam_bf16() -> list[Entry]:
    """Grad-CAM in bfloat16 over the floor, and the correlation of maps on the trained bundles."""
    from medxai.predict.openvino_engine import processor_runs

    if not processor_runs("bfloat16"):
        return []
    ratios, _ = _gradcam("bfloat16")
    entries = [of_runs("gradcam_3d_bf16_over_floor", ratios, "ratio", 0.35, "lower", _FLOOR)]
    for name in ("breast_us", "chest_ct", "phantom_ct"):
        found = _correlations(name)
        if found:
            entry = of_runs(f"bf16_map_correlation_{name}", found, "1", 0.999, "higher", _EXACT)
            entries.append(replace(entry, value=entry.low))  # the worst window decides, as in preparation
    return entries


def whole_prepared() -> list[Entry]:
    """Batches of the whole network over eager batches: what Score-CAM and occlusion consist of."""
    import torch
    from monai.networks.nets import DenseNet, DenseNet121, resnet18, resnet50

    two = {"spatial_dims": 2, "n_input_channels": 3, "conv1_t_stride": 2, "num_classes": 1000}
    cases: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], int, str]] = [
        ("scorecam_2d", lambda: resnet18(**two), (3, 96, 96), 32, "layer4"),
        (
            "scorecam_3d",
            lambda: DenseNet(3, 1, 3, init_features=16, growth_rate=16, block_config=(2, 3, 2)),
            (1, 48, 48, 48),
            8,
            "features.denseblock2",
        ),
        ("occlusion_2d", lambda: resnet50(**two), (3, 224, 224), 8, "layer4"),
        ("occlusion_3d", lambda: DenseNet121(spatial_dims=3, in_channels=1, out_channels=2), (1, 96, 96, 96), 8, LAYER),
    ]
    torch.set_num_threads(2)
    entries = []
    for name, build, shape, batch, layer in cases:
        torch.manual_seed(0)
        network = _calibrated(build(), torch.randn(2, *shape))
        x = torch.randn(batch, *shape)
        prepared = _prepared(network, x[:1], layer, "float32", batch, name)

        def eager(network: nn.Module = network, x: Tensor = x) -> object:
            with torch.inference_mode():
                return network(x)

        def ours(prepared: Prepared = prepared, x: Tensor = x) -> object:
            return prepared.whole(x)

        ratios = _paired(eager, ours, 7)
        against = f"eager forward of {batch} x {list(shape)}, float32"
        entries.append(of_runs(f"{name}_prepared_over_eager", ratios, "ratio", 0.5, "lower", against))
    return entries


_FLOOR = "layers below features.denseblock3 without graph plus autograd from there; DenseNet121-3D, 96x96x96"


_EXACT = "exact maps of the decided classes, the worst of all windows; first layers in float32 where it needs them"


def _gradcam(precision: Precision) -> tuple[list[float], list[float]]:
    """Ratios to the floor run by run, and the relative map error, on the network of `engine.gradcam_over_floor`."""
    import torch
    from monai.networks.nets import DenseNet121

    from medxai.explain.preparing import tail_map
    from medxai.explain.replay import ReplayPlan

    torch.manual_seed(0)
    torch.set_num_threads(2)
    network = DenseNet121(spatial_dims=3, in_channels=1, out_channels=2).eval()
    x = torch.randn(1, 1, 96, 96, 96)
    prepared = _prepared(network, x, LAYER, precision, 8, "densenet121_3d")
    network.requires_grad_(True)
    plan = ReplayPlan.from_json(prepared.plan)
    children = list(network.features.named_children())
    cut = [name for name, _ in children].index("denseblock3") + 1

    def floor() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            a = x
            for _, layer in children[:cut]:
                a = layer(a)
        leaf = a.clone().requires_grad_()
        b = leaf
        for _, layer in children[cut:]:
            b = layer(b)
        return torch.autograd.grad(network.class_layers(b)[:, 1].sum(), leaf)[0], leaf.detach()

    def ours() -> Tensor:
        return tail_map(network, x, plan, prepared.stem(x), 1)[0]

    gradient, activation = floor()
    exact = (gradient.flatten(2).mean(-1)[:, :, None, None, None] * activation).sum(1)
    got = ours()
    error = float((got - exact).abs().max() / exact.abs().max())
    return _paired(floor, ours, RUNS), [error]


def _correlations(name: str) -> list[float]:
    """Correlation of bfloat16 and exact maps on up to 24 windows; empty without data."""
    from medxai.explain.preparing import compare

    samples = windows_of(name)
    if samples is None:
        return []
    network, prepared = faithful(name, samples, "bfloat16")
    return [compare(network, prepared, samples[n : n + 1]).correlation for n in range(len(samples))]


def windows_of(name: str) -> Tensor | None:
    """Up to 24 windows of studies that a shipped bundle is for, or None without data."""
    import torch

    from medxai.predict.bundle import load_bundle
    from medxai.predict.samples import bundle_samples

    data = os.environ.get("MEDXAI_DATA")
    path = Path("sample_cases/generated/nifti")
    if name in SAMPLES:
        if not data:
            return None
        path = Path(data) / SAMPLES[name]
    return torch.from_numpy(bundle_samples(load_bundle(name), [path])) if path.exists() else None


def faithful(name: str, samples: Tensor, precision: Precision) -> tuple[nn.Module, Prepared]:
    """The network of a shipped bundle, and it prepared as `medxai bundle prepare` does, limits of fidelity included."""
    from medxai.predict.bundle import load_bundle

    bundle = load_bundle(name)
    network = bundle.network()
    return network, _prepared(network, samples, bundle.spec.target_layer or "", precision, 16, name, limits=True)


def _prepared(
    network: nn.Module, x: Tensor, layer: str, precision: Precision, batch: int, name: str, *, limits: bool = False
) -> Prepared:
    """Load from the store, or convert and store; without `limits` of fidelity where these are measured here."""
    from unittest.mock import patch

    from medxai.explain import preparing
    from medxai.predict.bundle import AllowList
    from medxai.predict.prepared import MANIFEST, allowed_name, load_prepared, network_sha256

    folder = STORE / name / precision
    sha256 = network_sha256(network)
    if (folder / MANIFEST).exists():
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        found = load_prepared(folder, AllowList({allowed_name(name): (digest,)}), name=name, sha256=sha256)
        if found is not None:
            return found
    guard = nullcontext() if limits else patch.object(preparing.Fidelity, "refusal", lambda *_given: None)
    with guard:
        return preparing.prepare(
            network, x[:1], layer, folder, precision=precision, batch=batch, samples=x, name=name, sha256=sha256
        )


def _calibrated(network: nn.Module, x: Tensor) -> nn.Module:
    """Give batch normalisation the statistics of `x`, so that an untrained network keeps its scale."""
    import torch

    network.train()
    for module in network.modules():
        if hasattr(module, "momentum"):
            module.momentum = None
    with torch.no_grad():
        network(x)
    return network.eval()


def _paired(least: Callable[[], object], ours: Callable[[], object], runs: int) -> list[float]:
    """Ratios of neighbouring runs, in alternating order."""

    def timed(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    least()
    ours()
    base: list[float] = []
    mine: list[float] = []
    for run in range(runs):
        if run % 2:
            mine.append(timed(ours))
            base.append(timed(least))
        else:
            base.append(timed(least))
            mine.append(timed(ours))
    return [a / b for a, b in zip(mine, base, strict=True)]
