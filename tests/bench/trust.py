"""Curves of trust against the forwards they consist of."""

from __future__ import annotations

from tests.bench.engine import densenet3d, paired
from tests.bench.entry import Entry, of_runs

STEPS = 16
#: Runs of the curve in three dimensions, each some twenty seconds.
RUNS_3D = 3


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

    against = (
        f"{2 * STEPS} forwards, at most {size} samples at once; the clean forward, which chooses that size, is ours"
    )
    words = f"{against}; DenseNet121-3D, 96x96x96"
    return [of_runs("insertion_deletion_3d_over_forwards", paired(ours, least, RUNS_3D), "ratio", 1.1, "lower", words)]
