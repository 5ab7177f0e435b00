"""Seconds from a functional scan of usual size to its features."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.bench.entry import Entry, of_runs

#: Voxels x, y, z and volumes; 3.5 mm, 2 s.
SHAPE = (64, 64, 30, 200)
RUNS = 3


def scan(root: Path) -> tuple[Path, Path]:
    """A data set of one subject without a confounds table or mask: a head that varies and moves; and its atlas."""
    import nibabel

    generator = np.random.default_rng(0)
    x, y, z, volumes = SHAPE
    affine = np.diag([-3.5, 3.5, 3.5, 1.0])
    affine[:3, 3] = [110, -110, -50]
    place = np.stack(np.meshgrid(np.linspace(-1, 1, x), np.linspace(-1, 1, y), np.linspace(-1, 1, z), indexing="ij"))
    radius = np.sqrt(((place / np.array([0.65, 0.8, 0.9])[:, None, None, None]) ** 2).sum(0))
    inside = radius < 1
    cells = [np.digitize(axis, np.linspace(-0.8, 0.8, 5)[1:-1]) for axis in place]
    labels = np.where(inside, 1 + cells[0] * 16 + cells[1] * 4 + cells[2], 0).astype(np.int16)
    still = 1000 / (1 + np.exp((radius - 1) * 25)) * (1 + 0.2 * np.cos(9 * place[0]) * np.cos(7 * place[1]))
    courses = np.cumsum(generator.normal(size=(labels.max() + 1, volumes)), 1)
    courses -= courses.mean(1, keepdims=True)
    data = np.empty(SHAPE, np.float32)
    slopes = np.gradient(still)[0]
    drift = np.cumsum(generator.normal(0, 0.02, volumes))  # voxels along x
    for t in range(volumes):
        noise = generator.normal(0, 5, still.shape)
        data[..., t] = still + slopes * drift[t] + inside * courses[labels, t] + noise
    folder = root / "sub-01" / "func"
    folder.mkdir(parents=True)
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.0
    image.to_filename(folder / "sub-01_task-rest_bold.nii")
    nibabel.Nifti1Image(labels, affine).to_filename(root / "atlas.nii.gz")
    return root, root / "atlas.nii.gz"


def features() -> list[Entry]:
    """The whole subject, motion and brain mask included, from file to files."""
    from medxai.prepare.brain.cohort import run_dataset
    from medxai.prepare.brain.settings import AtlasOptions, FeatureSettings

    totals, steps = [], []
    with tempfile.TemporaryDirectory() as made:
        root, atlas = scan(Path(made) / "in")
        # Cells at the corners of the head hold few voxels, which the mask leaves out.
        regions = AtlasOptions(image=atlas, allow_missing=True, most_missing=0.2)
        for run in range(RUNS):
            settings = FeatureSettings(input=root, output=Path(made) / str(run), atlas=regions)
            outcome = run_dataset(settings)[0]
            if outcome.state != "done":
                raise RuntimeError(outcome.reason)
            steps.append(json.loads((settings.output / "timings.json").read_text())["sub-01"])
            totals.append(sum(steps[-1].values()))
    middle = {name: float(np.median([step[name] for step in steps])) for name in steps[0]}
    words = ", ".join(f"{name} {seconds:.1f}" for name, seconds in sorted(middle.items(), key=lambda item: -item[1]))
    against = f"{SHAPE[0]} x {SHAPE[1]} x {SHAPE[2]} voxels of 3.5 mm, one thread; s by step: {words}"
    return [of_runs("features_200_volumes_seconds", totals, "s", None, "lower", against)]
