"""Infected or clean slabs of chest CT, on the three open volumes: a real but tiny example.

A slab is one window of the network. It counts as infected when at least `SHARE` of the source slices whose
centres lie in it carry the publisher's infection label.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medxai.errors import SettingsError
from medxai.ingest.nifti import read_nifti
from medxai.learn import phantom_ct
from medxai.learn.card import Card
from medxai.learn.licence import creative_commons
from medxai.learn.loop import Recipe, fit
from medxai.learn.metrics import Interval, auroc, balanced_accuracy, bootstrap
from medxai.networks.densenet3d import TARGET_LAYER, SmallDenseNet3d
from medxai.predict.augment import Augmentation, augment
from medxai.predict.bundle import load_bundle
from medxai.predict.bundle_spec import MedxaiBlock
from medxai.predict.write import write_bundle
from medxai.prepare.prepare import prepare
from medxai.prepare.spec import PreparationSpec, WindowIntensity

LABELS = ("clean", "infected")
SPEC = PreparationSpec(
    axes="DHW",
    window=(16, 160, 160),
    spacing_mm=(2.4, 2.4, 2.4),
    intensity=WindowIntensity(low=-1000, high=400),
    fill=-1024.0,
    overlap=0.5,
)
BLOCK = MedxaiBlock(
    labels=LABELS,
    modalities=("CT",),
    body_parts=("CHEST", "LUNG", "THORAX"),
    preparation=SPEC,
    target_layer=TARGET_LAYER,
    activation="sigmoid",
    fusion="lse",
    positive=("infected",),
    licence="CC-BY-4.0",
)
#: Arguments of the network: those of ``phantom_ct``, whose weights training starts from, with dropout.
NETWORK: dict[str, Any] = {**phantom_ct.NETWORK, "dropout": 0.1}
RECIPE = Recipe(epochs=15, batch_size=8, learning_rate=1e-3, weight_decay=0.05, average=0.9, seed=41)
AUGMENTATION = Augmentation(
    flip_axes=(2,), rotate_degrees=10, scale=0.15, shift=0.05, gain=0.1, offset=0.03, noise=0.02
)
#: Least share of infected slices in an infected slab.
SHARE = 0.2
#: Prepared voxels between the first slices of neighbouring slabs; training shifts each at random by up to half.
STEP = 4

Say = Callable[[str], None]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Patient:
    """One prepared volume ``[1, D, H, W]`` and, per prepared slice, whether the nearest source slice is infected."""

    name: str
    pixels: FloatArray
    infected: npt.NDArray[np.bool_]

    def label(self, start: int) -> int:
        """1 when the slab that begins at prepared slice `start` counts as infected."""
        return int(self.infected[start : start + SPEC.window[0]].mean() >= SHARE)


@dataclass(frozen=True)
class Slab:
    """Number of the patient and first prepared slice."""

    patient: int
    start: int


def read_patients(data: Path) -> list[Patient]:
    """Read the volumes and slice labels of ``ct_chest_nifti`` below `data`.

    Raises:
        SettingsError: the folder is absent.
    """
    folder = data / "ct_chest_nifti"
    table = folder / "slice_labels.csv"
    if not table.exists():
        msg = "slice_labels.csv not found; --data must hold ct_chest_nifti/"
        raise SettingsError(msg)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    patients = []
    for name in sorted({row["case"] for row in rows}):
        volume = read_nifti(folder / f"{name}_half.nii.gz", "CT", "CHEST")
        prepared = prepare(volume, SPEC)
        infected = np.array([row["infected"] == "1" for row in rows if row["case"] == name])
        axis = prepared.grid.axes[0]
        nearest = np.rint(axis.offset + axis.step * np.arange(axis.size)).astype(int)
        inside = (nearest >= 0) & (nearest < len(infected))
        flags = np.where(inside, infected[np.clip(nearest, 0, len(infected) - 1)], False)
        patients.append(Patient(name, prepared.pixels, flags))
    return patients


def slabs(patients: Sequence[Patient]) -> list[Slab]:
    """All slabs, `STEP` prepared slices apart."""
    depth = SPEC.window[0]
    return [Slab(p, s) for p, who in enumerate(patients) for s in range(0, who.pixels.shape[1] - depth + 1, STEP)]


def train_on(patients: Sequence[Patient], chosen: Sequence[Slab], name: str, cache: Path, say: Say) -> SmallDenseNet3d:
    """Train on slabs with random shifts that keep their label; resumable under `cache`."""
    torch.manual_seed(RECIPE.seed)
    network = SmallDenseNet3d(**NETWORK)
    network.load_state_dict(load_bundle("phantom_ct").network().state_dict())
    labels = [patients[slab.patient].label(slab.start) for slab in chosen]

    def sample(indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        jitter = torch.randint(-(STEP // 2), STEP // 2 + 1, (len(indices),), generator=generator).tolist()
        picked = zip((chosen[i] for i in indices), jitter, strict=True)
        cuts = [_cut(patients[slab.patient], slab.start, shift) for slab, shift in picked]
        return augment(torch.from_numpy(np.stack(cuts)), AUGMENTATION, generator, fill=0.0)

    fit(
        network,
        sample,
        labels,
        RECIPE,
        checkpoint=cache / f"{name}.ckpt",
        progress=lambda epoch, epochs, loss: say(f"chest_ct {name}: epoch {epoch}/{epochs} loss {loss:.3f}"),
    )
    network.eval()
    return network


def cross_validate(data: Path, work: Path, say: Say) -> Path:
    """Leave one patient out at a time; write ``chest_ct/out_of_fold.csv`` below `work` and return its path."""
    cache = work / "chest_ct"
    patients = read_patients(data)
    every = slabs(patients)
    rows = []
    for number, patient in enumerate(patients):
        training = [slab for slab in every if slab.patient != number]
        network = train_on(patients, training, f"without_{patient.name}", cache, say)
        for slab in (slab for slab in every if slab.patient == number):
            with torch.inference_mode():
                logit = float(network(torch.from_numpy(_cut(patient, slab.start, 0)[None])))
            rows.append([patient.name, slab.start, LABELS[patient.label(slab.start)], f"{logit:.5f}"])
    path = cache / "out_of_fold.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["patient", "start", "label", "logit"], *rows])
    return path


def results(path: Path) -> dict[str, Interval | str]:
    """Metrics from the out-of-fold table; intervals resample blocks of one slab's length within patients."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = np.array([LABELS.index(row["label"]) for row in rows])
    logit = np.array([float(row["logit"]) for row in rows])
    scores = np.stack([-logit, logit], axis=1)
    blocks = np.array([f"{row['patient']}/{int(row['start']) // SPEC.window[0]}" for row in rows])
    who = np.array([row["patient"] for row in rows])
    measured: dict[str, Interval | str] = {
        "auroc_pooled": bootstrap(auroc(1), labels, scores, blocks.tolist()),
        "balanced_accuracy_pooled": bootstrap(balanced_accuracy, labels, scores, blocks.tolist()),
    }
    for name in np.unique(who).tolist():
        mine = who == name
        n, positive = int(mine.sum()), int(labels[mine].sum())
        if 0 < positive < n:
            measured[f"auroc_{name}"] = bootstrap(auroc(1), labels[mine], scores[mine], blocks[mine].tolist())
        else:
            called = int((logit[mine] > 0).sum())
            measured[f"called_infected_{name}"] = f"{called} of {n} slabs; {positive} are infected, AUROC undefined"
    return measured


def train(data: Path, work: Path, out: Path, n_folds: int, say: Say) -> Path:
    """Cross-validate by patient, train on all three, write the bundle ``out/chest_ct``; `n_folds` is not used."""
    path = work / "chest_ct" / "out_of_fold.csv"
    measured = results(path if path.exists() else cross_validate(data, work, say))
    for name, value in measured.items():
        say(f"chest_ct: {name} {value}")
    patients = read_patients(data)
    network = train_on(patients, slabs(patients), "final", work / "chest_ct", say)
    source = (
        "Afshar et al., COVID-CT-MD, COVID-19 computed tomography scan dataset applicable in machine learning and "
        "deep learning, Scientific Data 8:121 (2021), CC BY 4.0"
    )
    card = Card(
        name="chest_ct",
        version="1.0.0",
        summary="Infected or clean slab of chest CT, learned from three patients: an example on real images, no more.",
        data=f"Three volumes (COVID-19, community-acquired pneumonia, normal), averaged 2 x 2 x 2. {source}.",
        split="Leave one patient out for the results; the shipped weights were trained on all three.",
        training=f"SmallDenseNet3d on slabs of 16 x 160 x 160 voxels of 2.4 mm; a slab is infected when at least "
        f"{SHARE:.0%} of its slices are labelled so. Training starts from the weights of the shipped phantom_ct; "
        f"a first attempt from random weights (10 epochs, 5 layers) had a pooled AUROC of 0.29. {RECIPE}",
        results=measured,
        evaluation="Slabs 9.6 mm apart of the patient that was left out. Intervals resample blocks of one slab's "
        "length within the patients; they say nothing about the spread between patients, which three cannot show.",
        limits=(
            *_against_chance(measured["auroc_pooled"]),
            "Three patients are far too few for any claim about other patients; the disease, the scanner and the "
            "patient cannot be told apart.",
            "One patient has no infected slab, so AUROC is defined for two of them.",
            "The labels are per slice, not per voxel; there are no lesion masks to measure localisation with.",
            "The trust gate has no thresholds for it: they need 20 explanations of at least 5 patients whom the "
            "network never saw, and there are three patients, all of them in the training. Its maps are at most "
            "*limited*.",
            "Overlapping slabs of one patient are not independent samples.",
        ),
        reproduce="python -m medxai.learn.train chest_ct --data $MEDXAI_DATA --out medxai/bundles --work .training",
        licence="CC-BY-4.0, as the data",
        references=(source,),
    )
    return write_bundle(
        out / "chest_ct",
        network_def={"_target_": "medxai.networks.densenet3d.SmallDenseNet3d", **NETWORK},
        network=network,
        metadata=card.metadata(BLOCK, task="Infection on chest CT slabs"),
        card=card.markdown(BLOCK),
        licence=creative_commons(source, "weights of a classifier trained on the images; no image is included."),
    )


def _against_chance(pooled: Interval | str) -> tuple[str, ...]:
    """Say it plainly when the interval of the pooled AUROC includes one half."""
    if not isinstance(pooled, Interval) or pooled.low > 0.5:
        return ()
    return (
        f"On a patient it has not seen it is not distinguishable from chance: pooled AUROC {pooled}. Its maps show how "
        "explanations of a weak model look on real CT, nothing about disease.",
    )


def _cut(patient: Patient, start: int, shift: int) -> FloatArray:
    """Window ``[1, *window]`` from the middle of the plane; a shift that would change the label is not used."""
    depth, height, width = SPEC.window
    moved = min(max(0, start + shift), patient.pixels.shape[1] - depth)
    if patient.label(moved) != patient.label(start):
        moved = start
    h, w = (patient.pixels.shape[2] - height) // 2, (patient.pixels.shape[3] - width) // 2
    return np.ascontiguousarray(patient.pixels[:, moved : moved + depth, h : h + height, w : w + width])
