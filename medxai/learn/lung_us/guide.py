"""Guidance of a fold's training by the pleural line: priors of every frame and every changed copy of it.

The line is looked for in the unchanged frame; its prior then is changed together with the frame, as a further channel
of it, so that copy and prior always fit. Priors are kept on disk like the features that they go with. They are read in
training alone: nothing of them reaches validation, prediction or the stored network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medxai.errors import SettingsError
from medxai.files import atomic_path
from medxai.identity import sha256_json
from medxai.learn.breast_us import Tail
from medxai.learn.loop import Batch
from medxai.learn.lung_us import pleura, pleura_priors
from medxai.learn.lung_us.cohort import Recording
from medxai.learn.lung_us.features import FeaturePlan, Say, changed_copies, recording_key
from medxai.learn.lung_us.frames import VGG_SPEC, chosen_frames, prepared_frames, read_recording
from medxai.learn.lung_us.heads import CutNetwork
from medxai.learn.lung_us.pleura import find_pleura
from medxai.learn.lung_us.pleura_priors import Prior, lung_region, prior_of
from medxai.learn.prior_guided import Mode, PriorGuidedLoss, to_grid
from medxai.networks.vgg_us import TARGET_LAYER, VggBase, VggCam
from medxai.predict.confidence import prepared_fill
from medxai.study import FloatArray

HalfArray = npt.NDArray[np.float16]
BoolArray = npt.NDArray[np.bool_]

#: Side of the grid on which priors are kept; the layers that are guided have 7 x 7 or 14 x 14 places.
SIDE = 28
#: What decides the priors besides the recordings: part of the hash of a guided run.
GUIDE_VERSIONS = (pleura.VERSION, pleura_priors.VERSION, SIDE)


@dataclass(frozen=True)
class Guidance:
    """How a training is guided.

    Attributes:
        mode: of `PriorGuidedLoss`. With ``outside`` the prior of every lung is all from the pleural line downwards,
            else it is that of its class.
        weight: of the term.
    """

    mode: Mode
    weight: float


@dataclass(frozen=True, eq=False)
class RecordingPriors:
    """Priors of the frames of one recording.

    Attributes:
        values: ``[copies, T, SIDE, SIDE]`` in 0..1, NaN in frames without one.
        only_where: ``[T]``, see `medxai.learn.lung_us.pleura_priors.Prior`.
    """

    values: HalfArray
    only_where: BoolArray

    def of(self, copy: int, place: int) -> torch.Tensor | None:
        """Prior ``[SIDE, SIDE]`` of a frame, or None."""
        values = self.values[copy, place]
        return torch.from_numpy(values.astype(np.float32)) if np.isfinite(values).all() else None


def all_priors(
    data: Path, recordings: Sequence[Recording], plan: FeaturePlan, mode: Mode, work: Path, say: Say
) -> list[RecordingPriors]:
    """Return the priors of every recording, from ``work/priors`` if they are there.

    Args:
        data: data folder.
        recordings: lungs, and negatives, which have none.
        plan: of the features that the priors go with.
        mode: see `Guidance`.
        work: of the training.
        say: told how many frames have one.

    Raises:
        SettingsError: the network reads clips.
    """
    if plan.unit != "frame":
        msg = "the video network has no guidance: its input repeats frames in depth; guide a network of frames"
        raise SettingsError(msg)
    # What a copy looks like does not depend on intensities, so networks share the priors.
    made_by = [*GUIDE_VERSIONS, mode == "outside", plan.copies, plan.seed, asdict(plan.augmentation)]
    folder = work / "priors" / sha256_json(made_by)[:16]
    found = [_recording_priors(data, recording, plan, mode, folder) for recording in recordings]
    known = [np.isfinite(priors.values[0]).all((1, 2)) for priors in found]
    say(f"{sum(int(k.sum()) for k in known)}/{sum(len(k) for k in known)} frames have a prior")
    return found


def guided_part(cut: CutNetwork) -> tuple[nn.Module, nn.Linear | None]:
    """Return the layer of the tail that is guided and the linear layer behind the mean over its positions.

    The layer is the last feature map. `VggBase` has no such linear layer: hidden units stand between.

    Raises:
        SettingsError: the network has no guided layer.
    """
    network = cut.network
    if isinstance(cut.tail, Tail):
        return cut.tail.head[2], network._fc  # type: ignore[return-value]
    if isinstance(network, VggCam | VggBase):
        return network.get_submodule(TARGET_LAYER), network.classifier if isinstance(network, VggCam) else None
    msg = "guidance is for the networks of frames: efficientnet_lite0, vgg_cam and vgg_base"
    raise SettingsError(msg)


@dataclass(eq=False)
class FoldGuide:
    """Priors of the frames that a step has drawn, for `PriorGuidedLoss`.

    Attributes:
        priors: per recording.
        recording: ``[N]`` recording of each frame.
        place: ``[N]`` place of each frame in it.
        drawn: frames and copies of the last step, set by its sampler.
    """

    priors: Sequence[RecordingPriors]
    recording: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    drawn: tuple[Sequence[int], Sequence[int]] = ((), ())

    def values(self, _batch: Batch) -> list[torch.Tensor | None]:
        """Priors of the drawn copies."""
        return [
            self.priors[int(self.recording[i])].of(copy, int(self.place[i]))
            for i, copy in zip(*self.drawn, strict=True)
        ]

    def only_where(self, _batch: Batch) -> list[bool]:
        """Which of them say nothing of shape."""
        return [bool(self.priors[int(self.recording[i])].only_where[int(self.place[i])]) for i in self.drawn[0]]

    def coverage(self, frames: Sequence[int]) -> dict[str, int]:
        """Count the frames, those with a prior, and those whose prior says nothing of shape."""
        pairs = [(self.priors[int(self.recording[i])], int(self.place[i])) for i in frames]
        known = [place for priors, place in pairs if priors.of(0, place) is not None]
        return {
            "frames": len(pairs),
            "with_prior": len(known),
            "only_where": sum(bool(priors.only_where[place]) for priors, place in pairs),
        }

    def loss(self, cut: CutNetwork, guidance: Guidance) -> PriorGuidedLoss:
        """Return the term for the tail of `cut`.

        Raises:
            SettingsError: the network cannot be guided in this mode.
        """
        layer, head = guided_part(cut)
        return PriorGuidedLoss(
            layer, guidance.mode, guidance.weight, self.values, head=head, outside_only=self.only_where
        )


def frame_priors(frames: FloatArray, label: str, mode: Mode) -> list[Prior | None]:
    """Return the prior of each grey frame ``[T, H, W]`` of a lung; None where no pleural line was found."""
    found: list[Prior | None] = []
    for frame in frames:
        line = find_pleura(frame)
        if mode != "outside" or line is None:
            found.append(prior_of(label, frame, line))
        else:
            known = prior_of(label, frame, line) is not None  # classes without a prior have no lung to point at
            found.append(Prior(lung_region(line, frame.shape), True) if known else None)
    return found


def _recording_priors(data: Path, recording: Recording, plan: FeaturePlan, mode: Mode, folder: Path) -> RecordingPriors:
    # The class belongs to the key: another table gives another prior.
    key = recording_key(data, recording)
    kept = folder / f"{key[:24]}-{recording.label}.npz"
    if not kept.exists():
        volume = read_recording(data, recording)
        grey = prepared_frames(volume, chosen_frames(recording, volume), VGG_SPEC).mean(1)
        priors = frame_priors(grey, recording.label, mode)
        only_where = np.array([prior is not None and prior.only_where for prior in priors])
        values = moved_copies(priors, grey.shape[1:], plan, key)
        with atomic_path(kept) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, values=values, only_where=only_where)
    stored = np.load(kept)
    return RecordingPriors(stored["values"], stored["only_where"])


def moved_copies(priors: Sequence[Prior | None], shape: tuple[int, ...], plan: FeaturePlan, key: str) -> HalfArray:
    """Return priors ``[copies, T, SIDE, SIDE]``, moved as the frames of the features are; NaN where there is none.

    Args:
        priors: of each unchanged frame.
        shape: ``(H, W)`` of the prepared frames.
        plan: of the features.
        key: of the recording, see `recording_key`.

    Raises:
        SettingsError: the plan adds noise.
    """
    if plan.augmentation.noise:
        msg = "noise draws by the number of channels, so that a prior cannot follow; guide without it"
        raise SettingsError(msg)
    plan = replace(plan, augmentation=replace(plan.augmentation, gain=0.0, offset=0.0))
    known = torch.tensor([prior is not None for prior in priors])
    stack = np.stack([np.zeros(shape) if prior is None else prior.values for prior in priors])
    fill = prepared_fill(plan.spec)
    # Black is what comes in from outside: a prior of 0 there.
    channels = torch.from_numpy(stack.astype(np.float32))[:, None] + fill
    found = []
    for copy in changed_copies(channels, plan, key):
        small = torch.stack([to_grid(values - fill, (SIDE, SIDE)) for values in copy[:, 0]]).clamp(0, 1)
        small[~known] = torch.nan
        found.append(small.numpy().astype(np.float16))
    values: HalfArray = np.stack(found)
    return values
