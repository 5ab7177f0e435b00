"""Lesions of multiple sclerosis in blocks of one FLAIR volume: one hemisphere trains, the other is held out.

One patient: what is measured says how explanations behave on real MR in three dimensions, nothing about others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medxai.errors import SettingsError
from medxai.files import write_text
from medxai.ingest.nifti import read_nifti
from medxai.learn.card import Card
from medxai.learn.cohort_table import CohortRow, write_table
from medxai.learn.loop import Recipe, fit
from medxai.learn.metrics import auroc, balanced_accuracy, bootstrap
from medxai.networks.densenet3d import TARGET_LAYER, SmallDenseNet3d
from medxai.predict.augment import Augmentation, augment
from medxai.predict.bundle_spec import MedxaiBlock
from medxai.predict.write import write_bundle
from medxai.prepare.prepare import prepare
from medxai.prepare.spec import PreparationSpec, WindowIntensity
from medxai.study import Affine, FloatArray

LABELS = ("clean", "lesion")
SIDES = ("right", "left")
SPEC = PreparationSpec(
    axes="DHW",
    window=(24, 48, 48),
    spacing_mm=(1.0, 1.0, 1.0),
    intensity=WindowIntensity(low=0, high=160),
)
BLOCK = MedxaiBlock(
    labels=LABELS,
    modalities=("MR",),
    body_parts=("BRAIN",),
    preparation=SPEC,
    target_layer=TARGET_LAYER,
    activation="sigmoid",
    positive=("lesion",),
    licence="CC-BY-4.0",
)
NETWORK: dict[str, Any] = {"num_classes": 1, "growth_rate": 12, "layers": 3}
RECIPE = Recipe(epochs=14, batch_size=16, learning_rate=3e-3, weight_decay=0.01, average=0.95, seed=71)
AUGMENTATION = Augmentation(flip_axes=(2,), rotate_degrees=10, gain=0.1, offset=0.03, noise=0.02)
#: Voxels of lesion in a block that shows one; a block without any is clean, others are not used.
LEAST = 40
#: Least share of brain in a block.
BRAIN = 0.6
#: Millimetres beside the midline that belong to no side.
GAP = 4
#: Steps of the held-out blocks, and blocks drawn for training of each class.
STEP, DRAWN = (12, 24, 19), 160

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Side:
    """One hemisphere: prepared ``[D, H, W]``, lesion mask ``[D, H, W]`` and the affine (index -> LPS mm)."""

    name: str
    pixels: FloatArray
    lesion: npt.NDArray[np.bool_]
    affine: Affine

    def label(self, place: Sequence[int]) -> int | None:
        """Class of the block that begins at a place, None when it is not used."""
        box = box_at(place)
        lesion = int(self.lesion[box].sum())
        brain = float((self.pixels[box] > 0.15).mean())
        return None if brain < BRAIN else 1 if lesion >= LEAST else 0 if lesion == 0 else None


def box_at(place: Sequence[int]) -> tuple[slice, ...]:
    """The block of the network's size that begins at a place."""
    return tuple(slice(a, a + n) for a, n in zip(place, SPEC.window, strict=True))


def read_sides(data: Path) -> list[Side]:
    """Both hemispheres of ``mr_ms_nifti``.

    Raises:
        SettingsError: the folder is absent.
    """
    folder = data / "mr_ms_nifti"
    images = sorted(folder.glob("*_FLAIR.nii.gz"))
    if not images:
        msg = "no FLAIR volume found; --data must hold mr_ms_nifti/"
        raise SettingsError(msg)
    volume = read_nifti(images[0], "MR", "BRAIN")
    mask = read_nifti(images[0].with_name(images[0].name.replace("_FLAIR", "_lesion_mask")), "MR")
    prepared = prepare(volume, SPEC)
    lesion = prepared.grid.forward(mask.pixels, 0.0)[0] > 0.5
    affine = prepared.grid.affine
    middle = round(-affine[0, 3] / affine[0, 2])  # the x of LPS is 0 there
    sides = []
    for name, start, stop in (("right", 0, middle - GAP), ("left", middle + GAP, lesion.shape[2])):
        moved = affine.copy()
        moved[:3, 3] += affine[:3, 2] * start
        sides.append(Side(name, prepared.pixels[0, :, :, start:stop], lesion[:, :, start:stop], moved))
    return sides


def held_out(side: Side) -> list[tuple[tuple[int, ...], int]]:
    """Places and classes of evenly spaced blocks."""
    ranges = [range(0, size - n + 1, s) for size, n, s in zip(side.pixels.shape, SPEC.window, STEP, strict=True)]
    places = [(d, h, w) for d in ranges[0] for h in ranges[1] for w in ranges[2]]
    return [(place, label) for place in places if (label := side.label(place)) is not None]


def drawn(side: Side) -> list[tuple[tuple[int, ...], int]]:
    """Random places, as many of either class."""
    source = np.random.default_rng(RECIPE.seed)
    room = np.array(side.pixels.shape) - SPEC.window + 1
    found: dict[int, list[tuple[int, ...]]] = {0: [], 1: []}
    for _ in range(40_000):
        place = tuple((source.random(3) * room).astype(int).tolist())
        label = side.label(place)
        if label is not None and len(found[label]) < DRAWN:
            found[label].append(place)
        if min(map(len, found.values())) == DRAWN:
            break
    return [(place, label) for label, places in found.items() for place in places]


def train_on(side: Side, checkpoint: Path, say: Say) -> SmallDenseNet3d:
    """Train on random blocks of one hemisphere; resumable."""
    torch.manual_seed(RECIPE.seed)
    network = SmallDenseNet3d(**NETWORK)
    chosen = drawn(side)

    def sample(indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        batch = np.stack([side.pixels[box_at(chosen[i][0])][None] for i in indices])
        return augment(torch.from_numpy(batch), AUGMENTATION, generator, fill=0.0)

    fit(
        network,
        sample,
        [label for _, label in chosen],
        RECIPE,
        checkpoint=checkpoint,
        progress=lambda epoch, epochs, loss: say(f"ms_lesions: epoch {epoch}/{epochs} loss {loss:.3f}"),
    )
    network.eval()
    return network


def train(data: Path, work: Path, say: Say) -> list[Path]:
    """Train on each hemisphere and store the blocks of the other with a lesion as cases; returns the folders."""
    folder = work / "ms_lesions"
    sides = read_sides(data)
    labels: list[int] = []
    scores: list[float] = []
    groups: list[str] = []
    for number, side in enumerate(sides):
        mine = folder / f"fold{number}"
        network = train_on(sides[1 - number], mine / "checkpoint.ckpt", say)
        places = held_out(side)
        with torch.inference_mode():
            scores += [float(network(torch.from_numpy(side.pixels[box_at(p)])[None, None])) for p, _ in places]
        labels += [label for _, label in places]
        groups += [_slab(side, place) for place, _ in places]
        rows = [_store(side, place, mine / "cases") for place, label in places if label]
        write_table(mine / "labels.csv", rows)
        card = _card(number)
        write_bundle(
            mine / f"ms_lesions_fold{number}",
            network_def={"_target_": "medxai.networks.densenet3d.SmallDenseNet3d", **NETWORK},
            network=network,
            metadata=card.metadata(BLOCK, task="Blocks with or without lesion"),
            card=card.markdown(BLOCK),
            licence="CC-BY-4.0\n",
        )
        say(f"ms_lesions: {side.name} held out, {len(places)} blocks, {len(rows)} with lesion")
    logits = np.stack([-np.array(scores), np.array(scores)], 1)
    measured = {
        name: bootstrap(metric, np.array(labels), logits, groups).as_dict()
        for name, metric in (("auroc", auroc(1)), ("balanced_accuracy", balanced_accuracy))
    }
    write_text(folder / "metrics.json", json.dumps(measured, indent=2) + "\n")
    say(f"ms_lesions: {measured}")
    return [folder / f"fold{number}" for number in range(2)]


def _slab(side: Side, place: Sequence[int]) -> str:
    """Blocks of 48 mm from foot to head of one hemisphere count as one group."""
    return f"{side.name}_{place[0] // 48}"


def _store(side: Side, place: Sequence[int], folder: Path) -> CohortRow:
    """Write a block and its mask as NIfTI, in grey values of the volume and at their place in the patient."""
    import nibabel

    folder.mkdir(parents=True, exist_ok=True)
    affine = side.affine.copy()
    affine[:3, 3] += side.affine[:3, :3] @ np.array(place, dtype=np.float64)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    name = f"{side.name}_{'_'.join(map(str, place))}"
    box = box_at(place)
    limits = SPEC.intensity
    assert isinstance(limits, WindowIntensity)  # noqa: S101
    grey = side.pixels[box] * (limits.high - limits.low) + limits.low
    for suffix, values in (("", grey.astype(np.float32)), ("_mask", side.lesion[box].astype(np.float32))):
        nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), ras), folder / f"{name}{suffix}.nii.gz")
    return CohortRow(f"{name}.nii.gz", LABELS[1], f"{name}_mask.nii.gz", _slab(side, place))


def _card(number: int) -> Card:
    return Card(
        name=f"ms_lesions_fold{number}",
        version="0.1.0",
        summary="Block of a FLAIR volume with or without lesion; a fold, for the validation of explanations.",
        data="One FLAIR volume with a consensus mask of lesions, open_ms_data (CC BY).",
        split=f"The {SIDES[1 - number]} hemisphere trains, the {SIDES[number]} one is held out; {2 * GAP} mm between.",
        training=f"SmallDenseNet3d on random blocks. {RECIPE}",
        results={},
        evaluation="See metrics.json beside the folds.",
        limits=("One patient.", "Not shipped."),
        reproduce="python -m medxai.learn.cohorts ms_lesions --data $MEDXAI_DATA --work .training/cohorts",
        licence="CC-BY-4.0",
    )
