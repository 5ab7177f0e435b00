"""Curves of trust against the forwards they consist of, and against the same curve of Quantus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from tests.bench.engine import densenet3d, paired
from tests.bench.entry import Entry, of_runs

HERE = Path(__file__).parent
STEPS = 16
#: Runs of the curve in three dimensions, each some twenty seconds.
RUNS_3D = 3
#: Runs of the curves in two dimensions, each less than a second.
RUNS_2D = 15
_SAME = "region perturbation, equal to our deletion curve within 1e-6; 16 steps of 4 x [3, 96, 96], ResNet18"


def insertion_deletion() -> list[Entry]:
    """Deletion and insertion of a volume with all that belongs to them, over their forwards alone."""
    import torch

    from medxai.trust.curves import deletion, insertion
    from medxai.trust.probe import Probe, open_run
    from medxai.trust.units import blocks

    network, x = densenet3d(), torch.randn(1, 1, 96, 96, 96)
    maps, units = torch.rand(1, 96, 96, 96), blocks((96, 96, 96))
    size = open_run(network, x).samples_at_once

    def ours() -> None:
        run = open_run(network, x)
        falling, rising = Probe(run, "zero"), Probe(run, "blur")
        deletion(falling, maps, units, STEPS)
        insertion(rising, maps, units, STEPS)
        if (found := falling.forwards + rising.forwards) != 2 * STEPS:
            raise RuntimeError(f"{found} forwards in place of {2 * STEPS}")

    def least() -> None:
        with torch.inference_mode():
            for _ in range(2):
                for start in range(0, STEPS, size):
                    network(x.expand(min(size, STEPS - start), -1, -1, -1, -1))

    against = f"{2 * STEPS} forwards, at most {size} samples at once; the clean forward and the choice of that size are"
    words = f"{against} ours; DenseNet121-3D, 96x96x96"
    return [of_runs("insertion_deletion_3d_over_forwards", paired(ours, least, RUNS_3D), "ratio", 1.1, "lower", words)]


def over_quantus() -> list[Entry]:
    """Seconds of Quantus over ours for one measure; empty without `make parity`."""
    python = Path(".venv-parity/bin/python")
    if not python.exists():
        return []
    path = os.pathsep.join([str(HERE / "shim"), str(Path.cwd())])
    done = subprocess.run(
        [str(python), "-m", "tests.bench.trust"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    ratios: list[float] = json.loads(done.stdout.splitlines()[-1])
    return [of_runs("metrics_2d_speedup_over_quantus", ratios, "ratio", 3, "higher", _SAME)]


def _side_by_side() -> list[float]:
    """Seconds of Quantus over ours, run by run."""
    import numpy as np
    import quantus
    import torch
    from monai.networks.nets import resnet18

    from medxai.trust.curves import Curve, deletion
    from medxai.trust.probe import Probe, open_run
    from medxai.trust.units import blocks

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(2)
    x, maps, classes = torch.randn(4, 3, 96, 96), torch.rand(4, 96, 96), [0, 1, 2, 3]
    network = resnet18(spatial_dims=2, n_input_channels=3, conv1_t_stride=2, num_classes=10).eval()
    given: dict[str, Any] = {"x_batch": x.numpy(), "y_batch": np.asarray(classes), "a_batch": maps[:, None].numpy()}
    # A patch is a quarter of each axis, so that there are as many patches as steps.
    metric = quantus.RegionPerturbation(
        patch_size=24, regions_evaluation=STEPS, perturb_baseline=0.0, disable_warnings=True
    )
    units = blocks((96, 96), 24)

    def theirs() -> Any:
        return np.asarray(metric(model=network, softmax=True, channel_first=True, **given))

    def ours() -> Curve:
        return deletion(Probe(open_run(network, x, classes)), maps, units, STEPS)

    scores = ours().scores
    error = float(np.abs((scores[:, :1] - scores[:, 1:]).numpy() - theirs()).max())
    if error > 1e-6:
        raise RuntimeError(f"drops of the score differ by {error}")
    return [1 / ratio for ratio in paired(ours, theirs, RUNS_2D)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_side_by_side()) + "\n")
