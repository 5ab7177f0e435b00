"""The network of each fold with the recordings that it never saw, one at a time: what measurements on them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medxai.errors import SettingsError
from medxai.files import atomic_path
from medxai.learn.lung_us.cohort import CLASSES, Recording, class_indices, read_negatives, read_recordings
from medxai.learn.lung_us.features import Say
from medxai.learn.lung_us.folds import APART
from medxai.learn.lung_us.frames import chosen_frames, prepared_frames, read_recording
from medxai.learn.lung_us.heads import CutNetwork, fresh_network

#: What is measured of a recording: arrays by name.
Measure = Callable[["HeldOut"], dict[str, npt.NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A recording of the fold that its network did not learn from.

    Attributes:
        cut: network of the fold, in inference mode.
        recording: the recording.
        index: its index among all.
        label: class index.
        frames: ``[T, 3, 224, 224]`` prepared frames.
        places: ``[T]`` their places among those that the protocol takes.
        pixels: ``(rows, columns)`` of the picture as it is stored.
    """

    cut: CutNetwork
    recording: Recording
    index: int
    label: int
    frames: torch.Tensor
    places: tuple[int, ...]
    pixels: tuple[int, int]


def recordings_of(run: Path, data: Path) -> tuple[Recording, ...]:
    """Return what a run was trained on, in its order: lungs, and negatives if it has an output for them."""
    width = np.load(next(run.glob("fold*/predictions.npz")))["logits"].shape[1]
    return (*read_recordings(data), *(read_negatives(data) if width > len(CLASSES) else ()))


def load_fold(folder: Path, name: str, num_classes: int) -> CutNetwork:
    """Load the network of a finished fold.

    Args:
        folder: of the fold.
        name: of the network.
        num_classes: number of logits.

    Raises:
        SettingsError: the fold has no network.
    """
    from safetensors.torch import load_file

    path = folder / "network.safetensors"
    if not path.is_file():
        msg = f"{folder.parent.name}/{folder.name} has no network.safetensors; the fold is not finished"
        raise SettingsError(msg)
    cut = fresh_network(name, num_classes, random_start=True)
    cut.network.load_state_dict(load_file(path))
    cut.network.eval()
    return cut


def held_out(
    run: Path,
    data: Path,
    recordings: Sequence[Recording],
    skip: Callable[[int, int], bool],
    every: int = 1,
) -> Iterator[tuple[int, HeldOut]]:
    """Yield ``(fold, recording)`` for all recordings of the run's finished folds, but not those apart.

    Args:
        run: folder of the run of a network that reads frames.
        data: data folder.
        recordings: all that the run was trained on, in order.
        skip: told fold and index of a recording; those for which it is True are not read.
        every: step between the frames that are taken.
    """
    name = run.name.rsplit("-", 2)[0]
    for result in sorted(run.glob("fold*/predictions.npz")):
        number = int(result.parent.name.removeprefix("fold"))
        stored = np.load(result)
        width = stored["logits"].shape[1]
        labels = class_indices(recordings, uninformative=width > len(CLASSES))
        wanted = [int(i) for i in np.unique(stored["recording"][stored["labels"] != APART]) if not skip(number, int(i))]
        if not wanted:
            continue
        cut = load_fold(result.parent, name, width)
        for index in wanted:
            recording = recordings[index]
            volume = read_recording(data, recording)
            taken = chosen_frames(recording, volume)
            places = tuple(range(0, len(taken), every))
            frames = torch.from_numpy(prepared_frames(volume, tuple(taken[i] for i in places), cut.spec))
            rows, columns = volume.shape[-2:]
            yield number, HeldOut(cut, recording, index, labels[index], frames, places, (rows, columns))


def measure_held_out(
    run: Path,
    data: Path,
    recordings: Sequence[Recording],
    folder: str,
    measure: Measure,
    say: Say,
    every: int = 1,
) -> int:
    """Store the result of `measure` for every held-out recording as ``fold<k>/<folder>/<index>.npz``.

    Files that exist are complete and not measured again.

    Returns:
        How many were measured now.
    """

    def path(fold: int, index: int) -> Path:
        return run / f"fold{fold}" / folder / f"{index:04d}.npz"

    done = 0
    for fold, item in held_out(run, data, recordings, lambda f, i: path(f, i).exists(), every):
        target = path(fold, item.index)
        found = measure(item)
        with atomic_path(target) as temporary:
            np.savez(temporary, places=np.array(item.places), **found)  # type: ignore[arg-type]
        done += 1
        if done % 10 == 0:
            say(f"{folder}: fold {fold}, {done} recordings")
    return done


def measured(run: Path, folder: str) -> Iterator[tuple[int, int, dict[str, npt.NDArray[Any]]]]:
    """Yield ``(fold, index, arrays)`` of what `measure_held_out` stored, in order."""
    for path in sorted(run.glob(f"fold*/{folder}/*.npz")):
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        yield int(path.parents[1].name.removeprefix("fold")), int(path.stem), arrays
