"""Features of a frozen trunk for every frame or clip, computed once and kept on disk.

An epoch then costs the head alone. A file holds one recording; its name is the hash of the recording's bytes and
frame rate, its folder the hash of everything else that decides the features: weights, preparation, changes, seed.
What is there is complete (files are renamed into place), so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medxai.errors import SettingsError
from medxai.files import atomic_path, write_text
from medxai.identity import sha256_file, sha256_json, sha256_text
from medxai.learn.lung_us.cohort import Recording
from medxai.learn.lung_us.frames import chosen_clips, chosen_frames, prepared_clips, prepared_frames, read_recording
from medxai.predict.augment import Augmentation, augment
from medxai.predict.confidence import AUGMENTATION, prepared_fill
from medxai.prepare.spec import PreparationSpec

HalfArray = npt.NDArray[np.float16]
IntArray = npt.NDArray[np.int64]
Say = Callable[[str], None]


@dataclass(frozen=True)
class FeaturePlan:
    """What decides the features besides the trunk's weights and the file.

    Attributes:
        spec: preparation of a frame.
        copies: versions of each frame; the first is unchanged, the others are randomly changed.
        augmentation: the changes; all frames of a clip are changed alike.
        seed: of the changes.
        unit: whether the trunk reads frames or the clips of the video network.
    """

    spec: PreparationSpec
    copies: int = 1
    augmentation: Augmentation = AUGMENTATION
    seed: int = 0
    unit: Literal["frame", "clip"] = "frame"


def trunk_hash(trunk: nn.Module, plan: FeaturePlan) -> str:
    """Return the hash of the structure, weights and statistics of `trunk` and of `plan`."""
    digest = hashlib.sha256()
    for name, tensor in trunk.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    plan_hash = sha256_json(_plain(plan))
    return sha256_text(str(trunk), digest.hexdigest(), plan_hash)


def recording_features(
    data: Path, recording: Recording, trunk: nn.Module, plan: FeaturePlan, folder: Path, *, batch: int = 8
) -> HalfArray:
    """Return ``[copies, T, *F]`` features of the frames (or clips) that the protocol takes; from `folder` if there.

    Args:
        data: data folder.
        recording: still or clip.
        trunk: maps ``[N, C, H, W]`` (``[N, 1, 32, 64, 64]`` for clips) to ``[N, *F]``; used in inference mode.
        plan: preparation and copies.
        folder: of this trunk and plan, see `feature_folder`.
        batch: frames or clips at once.

    Raises:
        IngestError: the file cannot be read.
        SettingsError: features too large for float16, or fill values that differ between channels.
    """
    key = recording_key(data, recording)
    kept = folder / f"{key[:24]}.npy"
    if not kept.exists():
        volume = read_recording(data, recording)
        frames = torch.from_numpy(
            prepared_frames(volume, chosen_frames(recording, volume), plan.spec)
            if plan.unit == "frame"
            else prepared_clips(volume, chosen_clips(recording, volume))
        )
        features = np.stack([_through(trunk, inputs, batch) for inputs in changed_copies(frames, plan, key)])
        if not np.isfinite(features).all():
            msg = "the trunk's features exceed float16 or are not finite; check its weights and the preparation"
            raise SettingsError(msg, study=key[:12])
        with atomic_path(kept) as temporary:
            np.save(temporary, features)
    stored: HalfArray = np.load(kept, mmap_mode="r")
    return stored


def feature_folder(work: Path, name: str, trunk: nn.Module, plan: FeaturePlan) -> Path:
    """Return the folder below `work` for the features of `trunk` under `plan`, with a note of what they are."""
    digest = trunk_hash(trunk, plan)
    folder = work / "features" / f"{name}-{digest[:16]}"
    note = {"trunk": name, "sha256": digest, **_plain(plan)}
    if not (folder / "about.json").exists():
        write_text(folder / "about.json", json.dumps(note, indent=2) + "\n")
    return folder


def _plain(plan: FeaturePlan) -> dict[str, Any]:
    """The plan as JSON; what came later counts when it is set, so that features kept before stay valid."""
    spec = plan.spec.model_dump(mode="json")
    for name, usual in (("fit", "pad"), ("region", None)):
        if spec[name] == usual:
            del spec[name]
    return {**asdict(plan), "spec": spec}


def all_features(
    data: Path, recordings: Sequence[Recording], trunk: nn.Module, plan: FeaturePlan, folder: Path, say: Say
) -> list[HalfArray]:
    """Return `recording_features` of every recording, computing what is missing."""
    found = []
    for number, recording in enumerate(recordings, start=1):
        found.append(recording_features(data, recording, trunk, plan, folder))
        if number % 20 == 0 or number == len(recordings):
            say(f"features of {number}/{len(recordings)} recordings")
    return found


def frame_table(features: Sequence[HalfArray]) -> tuple[IntArray, IntArray]:
    """Return, for all frames of all recordings in order, the index of the recording and the place in it."""
    counts = [stored.shape[1] for stored in features]
    recording = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(count) for count in counts]) if counts else np.zeros(0, dtype=np.int64)
    return recording.astype(np.int64), place.astype(np.int64)


def recording_key(data: Path, recording: Recording) -> str:
    """Return the hash that names the features of a recording: of its bytes and frame rate."""
    return sha256_text(sha256_file(data / recording.path), str(recording.frame_rate))


def changed_copies(frames: torch.Tensor, plan: FeaturePlan, key: str) -> Iterator[torch.Tensor]:
    """Yield the copies of prepared frames (or clips), the first unchanged; the same for the same plan and key.

    What is added as a further channel of the frames moves with them and changes no draw.
    """
    # A seed of its own for each recording: the order in which they are computed does not matter.
    generator = torch.Generator().manual_seed(int(key[:12], 16) + plan.seed)
    for copy in range(plan.copies):
        yield _changed(frames, plan, generator) if copy else frames


def _changed(frames: torch.Tensor, plan: FeaturePlan, generator: torch.Generator) -> torch.Tensor:
    """Random changes in the plane; the frames of a clip are changed as channels of one picture are."""
    flat = frames[:, 0] if plan.unit == "clip" else frames
    changed = augment(flat, plan.augmentation, generator, fill=prepared_fill(plan.spec)) if len(flat) else flat
    return changed[:, None] if plan.unit == "clip" else changed


def _through(trunk: nn.Module, inputs: torch.Tensor, batch: int) -> HalfArray:
    if not len(inputs):  # a still has no clip; one of zeros tells the shape
        return _through(trunk, inputs.new_zeros((1, *inputs.shape[1:])), batch)[:0]
    trunk.eval()
    with torch.inference_mode(), np.errstate(over="ignore"):
        parts = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
        rows = [trunk(part).numpy().astype(np.float16) for part in parts]
    features: HalfArray = np.concatenate(rows)
    return features
