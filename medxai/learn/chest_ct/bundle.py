"""The shipped bundle: trained on synthetic slabs, and on three real patients where that is worth something.

Leaving one patient out at a time tells. Only when the networks trained on the other two beat chance on the patient they
never saw, weights that were trained on all three are shipped; otherwise those that know synthetic slabs alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medxai.files import write_text
from medxai.identity import sha256_json
from medxai.learn.card import Card
from medxai.learn.chest_ct import synthetic
from medxai.learn.chest_ct.slabs import SHARE, STEP, Patient, Slab, cut, read_patients, slabs
from medxai.learn.chest_ct.spec import HAND_MADE, SPEC
from medxai.learn.licence import APACHE, creative_commons
from medxai.learn.loop import Recipe, fit, settle_on
from medxai.learn.metrics import Interval, auroc, balanced_accuracy, bootstrap, recall
from medxai.learn.search.report import architecture_card
from medxai.learn.search.score import predict, score
from medxai.networks.covidnet3d import FINE_LAYERS, Architecture, CovidNet3d, definition, parameters
from medxai.networks.densenet3d import TARGET_LAYER, SmallDenseNet3d
from medxai.predict.augment import Augmentation, augment
from medxai.predict.bundle_spec import ChestSpec, MedxaiBlock
from medxai.predict.write import write_bundle

LABELS, SYNTHETIC_LABELS = ("clean", "infected"), ("normal", "finding")
#: Architecture of the shipped network, as a search wrote it.
SHIPPED = Path(__file__).with_name("architecture.json")
#: Which of `candidates` is shipped: the better one on synthetic slabs (docs/chest_ct.md); none beats chance on others.
CHOSEN = "small_densenet"
#: Synthetic slabs of the pretraining, and its seed; no slab of the comparison is among them. Those of the test are
#: the ones of the comparison.
N_PRETRAIN, PRETRAIN_SEED, N_TEST = 960, 2_000_000, 240
PRETRAINING = Recipe(
    epochs=30, batch_size=16, learning_rate=4e-3, weight_decay=0.02, balance=False, average=0.95, seed=11
)
RECIPE = Recipe(epochs=8, batch_size=16, learning_rate=3e-4, weight_decay=0.05, seed=41)
AUGMENTATION = Augmentation(
    flip_axes=(2,), rotate_degrees=10, scale=0.15, shift=0.05, gain=0.1, offset=0.03, noise=0.02
)
DROPOUT = 0.2

Say = Callable[[str], None]
#: An architecture of the space, or None for the hand-made network.
Candidate = Architecture | None


def block_of(architecture: Candidate, *, patients: bool) -> MedxaiBlock:
    """What a bundle of such a network says of itself; `patients`: whether its weights were trained on them."""
    labels = LABELS if patients else SYNTHETIC_LABELS
    return MedxaiBlock(
        labels=labels,
        modalities=("CT",),
        body_parts=("CHEST", "LUNG", "THORAX"),
        preparation=SPEC,
        target_layer=TARGET_LAYER if architecture is None else FINE_LAYERS["stage3"],
        activation="sigmoid",
        fusion="lse",
        positive=labels[1:],
        licence="CC-BY-4.0" if patients else "Apache-2.0",
        organ="lungs",
        chest=ChestSpec(thickest_mm=10.0, least_mm=80.0, contrast=False),
    )


def build(candidate: Candidate, num_classes: int) -> nn.Module:
    """A network with random weights: of an architecture, or the hand-made one."""
    if candidate is None:
        return SmallDenseNet3d(num_classes, **HAND_MADE)
    return CovidNet3d.of(candidate, num_classes, dropout=DROPOUT)


def folder(candidate: Candidate, work: Path) -> Path:
    """Where a candidate's checkpoints lie."""
    name = "small_densenet" if candidate is None else sha256_json(asdict(candidate))[:12]
    return work / "chest_ct" / name


def pretrain(candidate: Candidate, work: Path, say: Say) -> nn.Module:
    """Train on synthetic slabs of three classes; resumable below `work`, slabs are kept beside it."""
    train = synthetic.slabs(N_PRETRAIN, PRETRAIN_SEED, SPEC.window, SPEC.spacing_mm or (), work.parent / "data", say)
    torch.manual_seed(PRETRAINING.seed)
    network = build(candidate, len(synthetic.LABELS))
    sample = train.sampler(changed=True)
    fit(
        network,
        sample,
        train.labels.tolist(),
        PRETRAINING,
        checkpoint=work / "pretrained.ckpt",
        progress=lambda epoch, epochs, loss: say(f"chest_ct pretraining: epoch {epoch}/{epochs} loss {loss:.3f}"),
    )
    settle_on(network, train.sampler(changed=False), len(train.labels))
    return network


def for_patients(pretrained: nn.Module) -> nn.Module:
    """The network with one logit, infected, in place of three: of any finding against none."""
    candidate = pretrained.architecture if isinstance(pretrained, CovidNet3d) else None
    head = "class_layers.score" if candidate is None else "classifier"
    network = build(candidate, 1)
    state = pretrained.state_dict()
    for name in (f"{head}.weight", f"{head}.bias"):
        state[name] = state[name][1:].mean(0, keepdim=True) - state[name][:1]
    network.load_state_dict(state)
    return network.eval()


def train_on(
    pretrained: nn.Module, patients: Sequence[Patient], chosen: Sequence[Slab], name: str, work: Path, say: Say
) -> nn.Module:
    """Train on slabs with random shifts that keep their label; resumable below `work`."""
    network = for_patients(pretrained)
    labels = [patients[slab.patient].label(slab.start) for slab in chosen]

    def sample(indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        jitter = torch.randint(-(STEP // 2), STEP // 2 + 1, (len(indices),), generator=generator).tolist()
        picked = zip((chosen[i] for i in indices), jitter, strict=True)
        cuts = [cut(patients[slab.patient], slab.start, shift) for slab, shift in picked]
        return augment(torch.from_numpy(np.stack(cuts)), AUGMENTATION, generator, fill=0.0)

    fit(
        network,
        sample,
        labels,
        RECIPE,
        checkpoint=work / f"{name}.ckpt",
        progress=lambda epoch, epochs, loss: say(f"chest_ct {name}: epoch {epoch}/{epochs} loss {loss:.3f}"),
    )
    plain = [cut(patients[slab.patient], slab.start, 0) for slab in chosen]
    settle_on(network, lambda indices, _: torch.from_numpy(np.stack([plain[i] for i in indices])), len(plain))
    return network


def out_of_fold(pretrained: nn.Module, patients: Sequence[Patient], work: Path, say: Say) -> Path:
    """Leave one patient out at a time; ``out_of_fold.csv`` has the logits before and after training on the others."""
    every = slabs(patients)
    before = for_patients(pretrained)
    rows: list[list[Any]] = []
    for number, patient in enumerate(patients):
        training = [slab for slab in every if slab.patient != number]
        network = train_on(pretrained, patients, training, f"without_{patient.name}", work, say)
        for slab in (slab for slab in every if slab.patient == number):
            x = torch.from_numpy(cut(patient, slab.start, 0)[None])
            with torch.inference_mode():
                logit, plain = float(network(x)), float(before(x))
            rows.append([patient.name, slab.start, LABELS[patient.label(slab.start)], f"{logit:.5f}", f"{plain:.5f}"])
    stream = io.StringIO()
    head = ["patient", "start", "label", "logit", "logit_pretrained"]
    csv.writer(stream, lineterminator="\n").writerows([head, *rows])
    return write_text(work / "out_of_fold.csv", stream.getvalue())


def results(path: Path, column: str = "logit") -> dict[str, Interval | str]:
    """Metrics from the out-of-fold table; intervals resample blocks of one slab's length within patients."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = np.array([LABELS.index(row["label"]) for row in rows])
    logit = np.array([float(row[column]) for row in rows])
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


def candidates() -> dict[str, Candidate]:
    """What may be shipped: the architecture beside this file, and the hand-made network."""
    return {"covidnet3d": Architecture.read(SHIPPED), "small_densenet": None}


def train(data: Path, work: Path, out: Path, n_folds: int, say: Say, *, candidate: Candidate | str = "shipped") -> Path:
    """Pretrain, leave each patient out once, train on all three, write ``out/chest_ct``; `n_folds` is not used.

    Args:
        data: folder with ``ct_chest_nifti``.
        work: checkpoints and predictions; what is there is not made again.
        out: folder that receives the bundle.
        n_folds: not used.
        say: told how far it is.
        candidate: architecture of the network, None for the hand-made one, or ``shipped``.
    """
    chosen: Candidate = candidates()[CHOSEN] if isinstance(candidate, str) else candidate
    work = folder(chosen, work)
    pretrained = pretrain(chosen, work, say)
    patients = read_patients(data)
    table = out_of_fold(pretrained, patients, work, say)
    return store(pretrained, patients, table, work, out, say)


def beats_chance(table: Path) -> bool:
    """Whether training on two patients helps on the third: the interval of the pooled AUROC lies above one half."""
    pooled = results(table)["auroc_pooled"]
    return isinstance(pooled, Interval) and pooled.low > 0.5


def on_synthetic(pretrained: nn.Module, work: Path, say: Say) -> dict[str, Interval | str]:
    """Figures on the test slabs of the comparison: of three classes, and of the one logit for any finding."""
    cases = synthetic.slabs(N_TEST, synthetic.TEST_SEED, SPEC.window, SPEC.spacing_mm or (), work.parent / "data", say)
    found = score(predict(pretrained, cases), cases.labels)
    logit = predict(for_patients(pretrained), cases)[:, 0]
    ill, groups = (cases.labels != 0).astype(np.int64), [str(i) for i in range(len(cases.labels))]
    scores = np.stack([-logit, logit], axis=1)
    return {
        "synthetic_auroc_any_finding": bootstrap(auroc(1), ill, scores, groups),
        "synthetic_balanced_accuracy": bootstrap(balanced_accuracy, ill, scores, groups),
        "synthetic_sensitivity": bootstrap(recall(1), ill, scores, groups),
        "synthetic_specificity": bootstrap(recall(0), ill, scores, groups),
        "synthetic_three_classes": f"with the head of three classes: AUROC {found['auroc_mean']:.3f} (mean of one "
        f"against the rest), F1 {found['f1']:.3f}",
    }


def store(pretrained: nn.Module, patients: Sequence[Patient], table: Path, work: Path, out: Path, say: Say) -> Path:
    """Write the bundle with its card; with weights trained on all patients if `beats_chance`."""
    architecture = pretrained.architecture if isinstance(pretrained, CovidNet3d) else None
    real = beats_chance(table)
    network = train_on(pretrained, patients, slabs(patients), "final", work, say) if real else for_patients(pretrained)
    say(f"chest_ct: weights {'trained on all patients' if real else 'of synthetic slabs alone'} are stored")
    after = {f"left_out_patient_{name}": value for name, value in results(table).items()}
    before = {f"patients_{name}": value for name, value in results(table, "logit_pretrained").items()}
    measured = on_synthetic(pretrained, work, say) | before | after
    for name, value in measured.items():
        say(f"chest_ct: {name} {value}")
    kind = "a SmallDenseNet3d" if architecture is None else f"a CovidNet3D of size {architecture.size}"
    block = block_of(architecture, patients=real)
    card = _card(kind, parameters(network), measured, real=real)
    if architecture is None:
        stated = {"_target_": "medxai.networks.densenet3d.SmallDenseNet3d", "num_classes": 1, **HAND_MADE}
        cells = ""
    else:
        stated = definition(architecture, 1, dropout=DROPOUT)
        cells = "\n" + architecture_card(architecture, SPEC.window, SPEC.spacing_mm or ())
    weights = "weights of a classifier trained on the images; no image is included."
    return write_bundle(
        out / "chest_ct",
        network_def=stated,
        network=network,
        metadata=card.metadata(block, task="Findings on chest CT slabs"),
        card=card.markdown(block) + cells,
        licence=creative_commons(_SOURCE, weights) if real else APACHE,
    )


_SOURCE = (
    "Afshar et al., COVID-CT-MD, COVID-19 computed tomography scan dataset applicable in machine learning and "
    "deep learning, Scientific Data 8:121 (2021), CC BY 4.0"
)


def _card(kind: str, count: int, measured: dict[str, Interval | str], *, real: bool) -> Card:
    both = "pretrained on synthetic CT and trained on three patients" if real else "trained on synthetic CT alone"
    three = f"three volumes (COVID-19, community-acquired pneumonia, normal), averaged 2 x 2 x 2. {_SOURCE}."
    slabs_text = f"{N_PRETRAIN} synthetic slabs (sample_cases/synthetic_ct.py: normal, ground glass, consolidation)"
    pooled = measured["left_out_patient_auroc_pooled"]
    return Card(
        name="chest_ct",
        version="2.0.0",
        summary=f"A finding in the lungs on chest CT, or none: {kind}, {both}. To test explanations, no more.",
        data=f"{slabs_text}; then {three}" if real else f"{slabs_text}. Measured besides on {three}",
        split="Synthetic: by patient, test slabs of seeds that training never draws. Patients: leave one out for "
        "`left_out_patient_*`; `patients_*` is the network that saw none of them.",
        training=f"{kind[2:]}, {count / 1e6:.2f} million parameters, on slabs of 80 mm of the lungs alone. Synthetic, "
        f"three classes: {PRETRAINING}; the one logit is the mean of the two findings less normal. "
        + (f"Patients, a slab is infected when at least {SHARE:.0%} of its slices are: {RECIPE}" if real else ""),
        results=measured,
        evaluation=f"{N_TEST} synthetic slabs; slabs {STEP * 5} mm apart of the patients. Their intervals resample "
        "blocks of one slab's length within the patients; they say nothing about the spread between patients, which "
        "three cannot show.",
        limits=(
            *_against_chance(pooled),
            *(
                ()
                if real
                else (
                    "The shipped weights know synthetic chests alone. Training on patients was tried and measured, and "
                    "is left out because on the patient left out it does not beat chance.",
                )
            ),
            "Three patients are far too few for any claim about others; disease, scanner and patient cannot be told "
            "apart.",
            "What the lung mask leaves out the network does not see: ground glass is nearly always inside, dense "
            "consolidations at the mediastinum may not be; bowel under a high diaphragm may be taken for lung and for "
            "a finding (docs/chest_ct_maps.md).",
            "Where maps lie was measured on synthetic slabs: docs/chest_ct.md. For patients there are no masks.",
            "The trust gate has no thresholds for it: they would need explanations of patients whom it never saw. Its "
            "maps are at most *limited*.",
            "Overlapping slabs of one patient are not independent samples.",
        ),
        reproduce="medxai train chest_ct --data $MEDXAI_DATA --out medxai/bundles",
        licence="CC-BY-4.0, as the data" if real else "Apache-2.0",
        references=(_SOURCE, "He et al., AAAI 2021, arXiv:2101.05442 (search space)"),
    )


def _against_chance(pooled: Interval | str) -> tuple[str, ...]:
    """Say it plainly when the interval of the pooled AUROC includes one half."""
    if not isinstance(pooled, Interval) or pooled.low > 0.5:
        return ()
    return (
        f"On real patients it is not distinguishable from chance: pooled AUROC {pooled} on the patient left out. Its "
        "maps show how explanations of a weak model look on real CT, nothing about disease.",
    )
