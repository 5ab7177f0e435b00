"""Measures of explanations side by side with Quantus, in one process of the environment that has both."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.engine import paired
from tests.bench.entry import Entry, of_runs

HERE = Path(__file__).parent
RUNS = 9
SIZE, STEPS = 96, 16
#: Images at once: one, as a study is judged, and a batch, which hides that Quantus sends its steps one after the other.
BATCHES = {1: "", 4: "_batch_of_four"}
#: Measure -> what is the same on both sides.
MEASURES = {
    "region_perturbation": f"{STEPS} patches of 24 x 24 to zero, every score within 1e-5",
    "pixel_flipping": f"{STEPS} steps of 576 pixels to zero, every score within 1e-5",
    "irof": "36 given segments to zero, every value within 1e-4",
    "faithfulness_correlation": "100 random subsets of 224 pixels to zero, other draws",
    "max_sensitivity": "Grad-CAM of 10 noisy images, of LayerGradCam of Captum there; other draws",
}
_CASE = f"[1, {SIZE}, {SIZE}], ResNet18, logits of one class"


@dataclass(frozen=True, eq=False)
class Pair:
    """One measure, here and there.

    Attributes:
        ours: a call with the network as it is, and with the prepared one.
        theirs: the same of Quantus.
        difference: largest difference of the results; None where draws differ.
        limit: of the difference.
    """

    ours: Callable[[Any], Any]
    theirs: Callable[[], Any]
    difference: Callable[[Any, Any], float] | None = None
    limit: float = 1e-5


def over_quantus() -> list[Entry]:
    """Seconds of Quantus over ours for each measure; empty without `make parity`."""
    python = Path(".venv-parity/bin/python")
    if not python.exists():
        return []
    path = os.pathsep.join([str(HERE / "shim"), str(Path.cwd())])
    done = subprocess.run(
        [str(python), "-m", "tests.bench.quantus"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    measured: dict[str, dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
    entries = []
    for batch, found in measured.items():
        suffix, case = BATCHES[int(batch)], f"{batch} x {_CASE}"
        # No measure is chosen: the geometric mean of all of them, run by run.
        prepared = zip(*(ratios for key, ratios in found.items() if key.endswith(":prepared")), strict=True)
        means = [math.exp(sum(map(math.log, run)) / len(run)) for run in prepared]
        words = f"geometric mean of {', '.join(name.replace('_', ' ') for name in MEASURES)}, prepared; {case}"
        target = None if suffix else 3
        entries.append(of_runs(f"metrics_2d_speedup_over_quantus{suffix}", means, "ratio", target, "higher", words))
        for key, ratios in found.items():
            name, form = key.split(":")
            words = f"{name.replace('_', ' ')}, {form}: {MEASURES[name]}; {case}"
            entries.append(of_runs(f"quantus_{name}_over_ours_{form}{suffix}", ratios, "ratio", None, "higher", words))
    return entries


def names() -> tuple[str, ...]:
    """All entries."""
    found = []
    for suffix in BATCHES.values():
        found.append(f"metrics_2d_speedup_over_quantus{suffix}")
        found += [f"quantus_{name}_over_ours_{form}{suffix}" for name in MEASURES for form in ("eager", "prepared")]
    return tuple(found)


def side_by_side(wanted: list[str], batch: int) -> dict[str, list[float]]:
    """Seconds of Quantus over ours by measure and form of the network, run by run, for so many images at once."""
    import torch
    from monai.networks.nets import resnet18

    from tests.bench.peer_engine import _prepared

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(2)
    x, maps = torch.rand(batch, 1, SIZE, SIZE) + 0.5, torch.rand(batch, SIZE, SIZE)
    network = resnet18(spatial_dims=2, n_input_channels=1, conv1_t_stride=2, num_classes=10).eval()
    compiled = _prepared(network, x[:1], "layer4")
    found = {}
    for name in wanted:
        pair: Pair = globals()[f"_{name}"](network, x, maps)
        for form, prepared in (("eager", None), ("prepared", compiled)):
            if pair.difference is not None:
                error = pair.difference(pair.ours(prepared), pair.theirs())
                if error > pair.limit:
                    raise RuntimeError(f"{name}, {form}: results differ by {error}")
            ratios = paired(lambda pair=pair, prepared=prepared: pair.ours(prepared), pair.theirs, RUNS)
            found[f"{name}:{form}"] = [1 / ratio for ratio in ratios]
    return found


def _probe(network: Any, x: Any, prepared: Any, masking: str = "zero", score: str = "logit") -> Any:
    from medxai.explain.split import Forward
    from medxai.trust.probe import Probe, open_run

    return Probe(open_run(Forward(network, prepared=prepared), x, 1), masking, score)


def _given(network: Any, x: Any, maps: Any) -> dict[str, Any]:
    import numpy as np

    return {"model": network, "x_batch": x.numpy(), "y_batch": np.ones(len(x), int), "a_batch": maps[:, None].numpy(),
            "softmax": False, "channel_first": True}  # fmt: skip


def _largest(one: Any, other: Any) -> float:
    import numpy as np

    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def _region_perturbation(network: Any, x: Any, maps: Any) -> Pair:
    import quantus

    from medxai.trust.curves import deletion
    from medxai.trust.units import blocks

    units = blocks((SIZE, SIZE), 24)  # a quarter of each axis: as many patches as steps
    metric = quantus.RegionPerturbation(
        patch_size=24, regions_evaluation=STEPS, perturb_baseline=0.0, disable_warnings=True
    )

    def ours(prepared: Any) -> Any:
        return deletion(_probe(network, x, prepared), maps, units, STEPS).scores

    return Pair(ours, lambda: metric(**_given(network, x, maps)), lambda a, b: _largest(a[:, :1] - a[:, 1:], b))


def _pixel_flipping(network: Any, x: Any, maps: Any) -> Pair:
    import quantus

    from medxai.trust.curves import deletion
    from medxai.trust.units import blocks

    units = blocks((SIZE, SIZE), 1)
    metric = quantus.PixelFlipping(
        features_in_step=units.count // STEPS, perturb_baseline=0.0, return_auc_per_sample=False, disable_warnings=True
    )

    def ours(prepared: Any) -> Any:
        return deletion(_probe(network, x, prepared), maps, units, STEPS).scores

    return Pair(ours, lambda: metric(**_given(network, x, maps)), lambda a, b: _largest(a[:, 1:], b))


def _irof(network: Any, x: Any, maps: Any) -> Pair:
    import numpy as np
    import quantus
    import quantus.helpers.utils

    from medxai.trust.curves import deletion
    from medxai.trust.units import blocks

    np.trapz = np.trapezoid  # type: ignore[attr-defined]  # what Quantus integrates with, gone from NumPy 2.4
    units = blocks((SIZE, SIZE), 16)
    labels = units.labels.numpy()
    quantus.helpers.utils.get_superpixel_segments = lambda **_: labels
    metric = quantus.IROF(return_aggregate=False, perturb_baseline=0.0, disable_warnings=True)

    def ours(prepared: Any) -> Any:
        probe = _probe(network, x, prepared, score="prob")
        scores = deletion(probe, maps, units, units.count).scores[:, 1:] / probe.clean[:, None]
        return units.count - np.trapezoid(scores.numpy(), axis=1)

    given = _given(network, x, maps) | {"softmax": True}
    return Pair(ours, lambda: metric(**given), _largest, 1e-4)


def _faithfulness_correlation(network: Any, x: Any, maps: Any) -> Pair:
    import quantus

    from medxai.trust.additive import faithfulness_correlation
    from medxai.trust.units import blocks

    units = blocks((SIZE, SIZE), 1)
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=100, subset_size=224, perturb_baseline=0.0, return_aggregate=False, disable_warnings=True
    )

    def ours(prepared: Any) -> Any:
        return faithfulness_correlation(_probe(network, x, prepared), maps, units, runs=100, share=224 / units.count)

    return Pair(ours, lambda: metric(**_given(network, x, maps)))


def _max_sensitivity(network: Any, x: Any, maps: Any) -> Pair:
    import quantus

    from medxai.explain import explain
    from medxai.trust.robustness import max_sensitivity

    metric = quantus.MaxSensitivity(nr_samples=10, disable_warnings=True)
    given = _given(network, x, maps) | {
        "a_batch": None, "explain_func": quantus.explain,
        "explain_func_kwargs": {"method": "LayerGradCam", "gc_layer": network.layer4, "interpolate": (SIZE, SIZE)},
    }  # fmt: skip

    def ours(prepared: Any) -> Any:
        return max_sensitivity(
            lambda images: explain(network, images, classes=1, layers="layer4", prepared=prepared)[0].map, x, samples=10
        )

    return Pair(ours, lambda: metric(**given))


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(MEASURES)
    sys.stdout.write(json.dumps({batch: side_by_side(chosen, batch) for batch in BATCHES}) + "\n")
