"""Train one fold's head on kept features, choose its epoch and temperature on the inner validation set.

``python -m medxai.learn.lung_us.train_fold NETWORK --fold K --data DIR`` is resumable: features, the state after each
epoch and the best weights so far lie below ``--work``, and a fold whose ``predictions.npz`` exists is done.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medxai.errors import SettingsError
from medxai.files import atomic_path, write_text
from medxai.identity import sha256_json, sha256_text
from medxai.learn.loop import Extra, Recipe, fit
from medxai.learn.lung_us.calibration import fit_temperature, negative_log_likelihood
from medxai.learn.lung_us.cohort import (
    CLASSES,
    UNINFORMATIVE,
    Recording,
    class_indices,
    read_negatives,
    read_recordings,
)
from medxai.learn.lung_us.features import FeaturePlan, HalfArray, Say, all_features, feature_folder, frame_table
from medxai.learn.lung_us.folds import APART, inner_validation, leaking_frame_folds, patient_folds
from medxai.learn.lung_us.frames import CLIPS_IN_TRAINING
from medxai.learn.lung_us.guide import GUIDE_VERSIONS, FoldGuide, Guidance, all_priors
from medxai.learn.lung_us.heads import NETWORKS, fresh_network
from medxai.learn.prior_guided import MODES

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

#: The publication's batch size, rate and unweighted loss; AdamW with a cosine in place of Adam with plateaus.
RECIPE = Recipe(epochs=20, batch_size=16, learning_rate=1e-4, weight_decay=0.0, balance=False)


@dataclass(frozen=True, eq=False)
class FrameSet:
    """Frames of all recordings with their features.

    Attributes:
        features: ``[copies, T, *F]`` per recording.
        recording: ``[N]`` index of the recording of each frame.
        place: ``[N]`` index of the frame among those taken of its recording.
        labels: ``[N]`` class index; -1 is reported apart.
    """

    features: Sequence[HalfArray]
    recording: IntArray
    place: IntArray
    labels: IntArray

    def take(self, frames: Sequence[int], copies: Sequence[int]) -> torch.Tensor:
        """Return ``[len(frames), *F]`` float32 features of the given copies."""
        pairs = zip(frames, copies, strict=True)
        rows = [self.features[int(self.recording[i])][copy, int(self.place[i])] for i, copy in pairs]
        return torch.from_numpy(np.stack(rows).astype(np.float32))


def frame_set(features: Sequence[HalfArray], recording_labels: Sequence[int]) -> FrameSet:
    """Line up the frames of all recordings."""
    recording, place = frame_table(features)
    return FrameSet(features, recording, place, np.asarray(recording_labels, dtype=np.int64)[recording])


def logits_of(tail: nn.Module, frames: FrameSet, chosen: Sequence[int], batch: int = 32) -> FloatArray:
    """Return logits ``[len(chosen), K]`` of unchanged frames; the tail ends in the mode that it had."""
    training = tail.training
    tail.eval()
    rows = []
    with torch.inference_mode():
        for start in range(0, len(chosen), batch):
            part = chosen[start : start + batch]
            rows.append(tail(frames.take(part, [0] * len(part))).numpy())
    tail.train(training)
    logits: FloatArray = np.concatenate(rows)
    return logits


def train_head(
    tail: nn.Module,
    frames: FrameSet,
    training: Sequence[int],
    validation: Sequence[int],
    folder: Path,
    say: Say,
    recipe: Recipe = RECIPE,
    guide: FoldGuide | None = None,
    extra: Extra | None = None,
) -> float:
    """Train `tail` in place, leave it with the weights of its best epoch, and return its temperature.

    The best epoch has the smallest negative log-likelihood on the validation frames.

    Args:
        tail: features to logits.
        frames: all frames.
        training: frames to learn from, in random copies.
        validation: frames of other patients, unchanged.
        folder: keeps ``epoch.ckpt``, ``best.pt`` and ``epochs.json``; a run that was interrupted goes on from them.
        say: told of every epoch.
        recipe: of the training.
        guide: told which frames and copies a step has drawn.
        extra: a further term of the loss, see `medxai.learn.loop.fit`.

    Raises:
        SettingsError: no epoch had a finite likelihood.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best, history = folder / "best.pt", folder / "epochs.json"
    losses: dict[str, float] = json.loads(history.read_text()) if history.exists() else {}
    chosen = np.asarray(training)
    copies = frames.features[0].shape[0]

    def sample(positions: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        # The unchanged copy is for validation; without others it serves both.
        drawn = torch.randint(min(1, copies - 1), copies, (len(positions),), generator=generator).tolist()
        taken = chosen[list(positions)].tolist()
        if guide is not None:
            guide.drawn = (taken, drawn)
        return frames.take(taken, drawn)

    def judge(epoch: int, epochs: int, loss: float) -> None:
        nll = negative_log_likelihood(logits_of(tail, frames, validation), frames.labels[list(validation)])
        if nll < min(losses.values(), default=float("inf")):
            with atomic_path(best) as temporary:
                torch.save(tail.state_dict(), temporary)
        losses[str(epoch)] = nll
        write_text(history, json.dumps(losses) + "\n")
        say(f"epoch {epoch}/{epochs}: loss {loss:.3f}, validation {nll:.3f}")

    checkpoint = folder / "epoch.ckpt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if str(state["epoch"]) not in losses:  # ended between the epoch and its judgement
            tail.load_state_dict(state["network"])
            judge(state["epoch"], recipe.epochs, float("nan"))
    fit(tail, sample, frames.labels[chosen].tolist(), recipe, checkpoint=checkpoint, progress=judge, extra=extra)
    if not best.exists():
        msg = f"no epoch had a finite likelihood on the validation frames; lower the learning rate and empty {folder}"
        raise SettingsError(msg)
    tail.load_state_dict(torch.load(best, map_location="cpu", weights_only=True))
    tail.eval()
    return fit_temperature(logits_of(tail, frames, validation), frames.labels[list(validation)])


def train_fold(
    name: str,
    data: Path,
    recordings: Sequence[Recording],
    fold: int,
    work: Path,
    say: Say,
    *,
    n_folds: int = 5,
    plan_copies: int = 4,
    recipe: Recipe = RECIPE,
    weights: Path | None = None,
    random_start: bool = False,
    leak: bool = False,
    bfloat16: bool = False,
    guidance: Guidance | None = None,
) -> Path:
    """Train the head of network `name` without fold `fold` and predict the frames of that fold and those apart.

    Args:
        name: key of `NETWORKS`.
        data: data folder.
        recordings: lungs, and negatives if the network shall know them.
        fold: held out.
        work: features, checkpoints and results.
        say: told how far it is.
        n_folds: number of folds.
        plan_copies: copies of every frame, see `FeaturePlan`.
        recipe: of the training.
        weights: of ImageNet for VGG-16, of Models Genesis for the video network.
        random_start: without them, see `fresh_network`.
        leak: deal out single frames instead of patients, for the documented experiment.
        bfloat16: compute the tail so, where PyTorch holds it safe; stored weights are float32.
        guidance: by the pleural line; the result then has ``guidance.json`` beside it.

    Returns:
        ``predictions.npz`` with ``logits`` ``[N, K]``, ``labels`` (-1 is apart), ``recording`` and ``place`` of the
        frames that were predicted, and ``temperature``. Beside it ``network.safetensors`` with the whole network, and
        ``training.npy`` with recording and place of the frames it learnt from.
    """
    from safetensors.torch import save_file

    negatives = any(recording.label == UNINFORMATIVE for recording in recordings)
    labels = class_indices(recordings, uninformative=negatives)
    # What was trained otherwise or on others is another run, never a checkpoint of this one.
    files = sha256_text(*(recording.path for recording in recordings))
    decides = [files, n_folds, plan_copies, asdict(recipe), str(weights), random_start, leak, *["bf16"] * bfloat16]
    run = sha256_json(decides if guidance is None else [*decides, asdict(guidance), *GUIDE_VERSIONS])[:8]
    kind = "leaking" if leak else "patients" if guidance is None else f"guided_{guidance.mode}"
    folder = work / f"{name}-{kind}-{run}" / f"fold{fold}"
    result = folder / "predictions.npz"
    if result.exists():
        return result
    cut = fresh_network(name, len(CLASSES) + negatives, weights=weights, random_start=random_start, seed=recipe.seed)
    if bfloat16:
        _in_bfloat16(cut.tail)
    plan = FeaturePlan(cut.spec, copies=plan_copies, seed=recipe.seed, unit=cut.unit)
    features = all_features(data, recordings, cut.trunk, plan, feature_folder(work, name, cut.trunk, plan), say)
    frames = frame_set(features, labels)
    fold_of, validation_of = _sides(recordings, labels, frames, fold, n_folds, recipe.seed, leak=leak)
    inside = (fold_of != fold) & (fold_of != APART) & ~validation_of
    if cut.unit == "clip":  # the publication's limit per training video, which evens out the classes
        most = np.array([CLIPS_IN_TRAINING.get(recordings[i].label, 0) for i in frames.recording.tolist()])
        inside &= frames.place < most
    training = np.flatnonzero(inside).tolist()
    validation = np.flatnonzero(validation_of).tolist()
    guide = loss = None
    if guidance is not None:
        priors = all_priors(data, recordings, plan, guidance.mode, work, say)
        guide = FoldGuide(priors, frames.recording, frames.place)
        loss = guide.loss(cut, guidance)
    with loss or nullcontext():
        temperature = train_head(
            cut.tail,
            frames,
            training,
            validation,
            folder,
            lambda line: say(f"{name} fold {fold}, {line}"),
            recipe,
            guide,
            loss,
        )
    if guide is not None and loss is not None and guidance is not None:
        about = {**asdict(guidance), **guide.coverage(training), "misalignment": loss.means()}
        write_text(folder / "guidance.json", json.dumps(about, indent=2) + "\n")
    with atomic_path(folder / "training.npy") as temporary:
        np.save(temporary, np.stack([frames.recording[training], frames.place[training]], axis=1))
    predicted = np.flatnonzero((fold_of == fold) | (fold_of == APART)).tolist()
    cut.network.eval()
    save_file({k: v.contiguous() for k, v in cut.network.state_dict().items()}, folder / "network.safetensors")
    with atomic_path(result) as temporary:
        np.savez(
            temporary,
            logits=logits_of(cut.tail, frames, predicted),
            labels=frames.labels[predicted],
            recording=frames.recording[predicted],
            place=frames.place[predicted],
            temperature=np.array(temperature),
        )
    return result


def _in_bfloat16(tail: nn.Module) -> None:
    """Let a module compute in bfloat16 under autocast, in place; what it returns is float32."""
    plain = tail.forward

    def forward(features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, torch.bfloat16):
            logits: torch.Tensor = plain(features)
        return logits.float()

    tail.forward = forward


def _sides(
    recordings: Sequence[Recording],
    labels: Sequence[int],
    frames: FrameSet,
    fold: int,
    n_folds: int,
    seed: int,
    *,
    leak: bool,
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Fold and membership of the inner validation set for every frame."""
    if leak:
        fold_of = leaking_frame_folds(frames.labels.tolist(), n_folds, seed)
        # The mistake in full: the frames for stopping are dealt out like the others.
        training = np.flatnonzero((fold_of != fold) & (fold_of != APART))
        validation = np.zeros(len(fold_of), dtype=bool)
        inner = leaking_frame_folds(frames.labels[training].tolist(), n_folds, seed + 1)
        validation[training[inner == 0]] = True
        return fold_of, validation
    by_recording = patient_folds(recordings, labels, n_folds, seed)
    inside = np.flatnonzero((by_recording != fold) & (by_recording != APART)).tolist()
    validation = inner_validation(recordings, labels, inside, seed=seed + fold)
    return by_recording[frames.recording], validation[frames.recording]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one fold and print where its predictions are."""
    parser = argparse.ArgumentParser(prog="python -m medxai.learn.lung_us.train_fold", description=__doc__)
    parser.add_argument("network", choices=tuple(NETWORKS))
    parser.add_argument("--fold", type=int, required=True, help="the fold that is held out, from 0")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--data", type=Path, required=True, help="folder of the open data sets")
    parser.add_argument("--work", type=Path, default=Path(".training/lung_us"), help="features, checkpoints, results")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--rate", type=float, default=RECIPE.learning_rate, help="peak learning rate")
    parser.add_argument("--copies", type=int, default=4, help="versions of every frame, the first unchanged")
    parser.add_argument("--weights", type=Path, help="vgg16-397923af.pth, or Genesis_Chest_CT.pt")
    parser.add_argument("--random-start", action="store_true", help="without pretrained weights")
    parser.add_argument("--uninformative", action="store_true", help="a fourth class for what is no lung ultrasound")
    parser.add_argument("--bfloat16", action="store_true", help="train the tail in bfloat16 autocast")
    parser.add_argument("--guide", choices=MODES, help="guide the maps by the pleural line, in training only")
    parser.add_argument("--guide-weight", type=float, default=4.0, help="weight of the guidance")
    parser.add_argument("--leak", action="store_true", help="deal out frames instead of patients, to show the error")
    options = parser.parse_args(arguments)
    if not 0 <= options.fold < options.folds:
        parser.error(f"--fold must be between 0 and {options.folds - 1}")
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {line}", flush=True)

    recordings = read_recordings(options.data)
    if options.uninformative:
        recordings = (*recordings, *read_negatives(options.data))
    recipe = replace(RECIPE, epochs=options.epochs, learning_rate=options.rate)
    result = train_fold(
        options.network,
        options.data,
        recordings,
        options.fold,
        options.work,
        say,
        n_folds=options.folds,
        plan_copies=options.copies,
        recipe=recipe,
        weights=options.weights,
        random_start=options.random_start,
        leak=options.leak,
        bfloat16=options.bfloat16,
        guidance=Guidance(options.guide, options.guide_weight) if options.guide else None,
    )
    print(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
