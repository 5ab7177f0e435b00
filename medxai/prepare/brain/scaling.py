"""Features of subjects as inputs of a fusion network, in standard deviations of the training subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from medxai.errors import MedxaiError, MismatchError
from medxai.files import write_bytes
from medxai.prepare.brain.subject import MODALITIES, SubjectFeatures

#: Share of the median standard deviation below which an element is not divided by its own: it hardly varies.
_LEAST = 0.1
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and standard deviation of every element, or of all of them, over training subjects.

    Attributes:
        mean: by modality, in the shape of the feature; of ``dfc`` over windows as well, ``[N, N, 1]``; a single number
            where the whole array has one scale.
        sd: likewise, positive.
        shapes: of the features.
    """

    mean: Mapping[str, Array]
    sd: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def fit(cls, subjects: Sequence[SubjectFeatures], by: Literal["element", "array"] = "element") -> Scaling:
        """Measure training subjects; those without a modality are left out of it.

        A convolution knows where it is from the pattern that all subjects share. Scaling every element by itself takes
        that pattern away and leaves deviations; one scale for the array keeps it.

        Raises:
            MedxaiError: shapes differ between subjects, or a modality has fewer than two.
        """
        mean, sd, shapes = {}, {}, {}
        for name in MODALITIES:
            arrays = [array for s in subjects if (array := getattr(s, name)) is not None]
            if not arrays:
                continue
            different = {array.shape for array in arrays}
            if len(different) > 1 or len(arrays) < 2:
                raise MedxaiError(f"{name}: {len(arrays)} training subjects with shapes {sorted(different)}")
            shapes[name] = arrays[0].shape
            total = np.zeros(arrays[0].shape, np.float64)
            squares = np.zeros(arrays[0].shape, np.float64)
            for array in arrays:
                total += array
                squares += array.astype(np.float64) ** 2
            total, squares = total / len(arrays), squares / len(arrays)
            if name == "dfc":
                total, squares = total.mean(-1, keepdims=True), squares.mean(-1, keepdims=True)
            spread = np.sqrt(np.clip(squares - total**2, 0, None))
            varies = spread[spread > 0]
            if not len(varies):
                raise MedxaiError(f"{name} is the same in all training subjects")
            if by == "array":
                total, squares = total.mean(keepdims=True), squares.mean(keepdims=True)
                spread = varies = np.sqrt(squares - total**2)
            mean[name] = total.astype(np.float32)
            sd[name] = np.maximum(spread, _LEAST * np.median(varies)).astype(np.float32)
        return cls(mean, sd, shapes)

    def scaled(self, subject: SubjectFeatures) -> dict[str, Array]:
        """Features in standard deviations, those that there are.

        Raises:
            MismatchError: another shape than the training subjects had, with both, or no modality at all.
        """
        found = {}
        for name in subject.present:
            if name not in self.mean:
                continue
            array = getattr(subject, name)
            has, wants = array.shape, self.shapes[name]
            if name != "alff" and has[0] != wants[0]:
                message = f"{name} has {has[0]} regions and the network was trained on {wants[0]}: another atlas"
                raise MismatchError(message, study=subject.subject)
            if has != wants:
                message = f"{name} is {_stated(has)} and the network was trained on {_stated(wants)}"
                raise MismatchError(message, study=subject.subject)
            found[name] = ((array - self.mean[name]) / self.sd[name]).astype(np.float32)
        if not found:
            message = f"none of the modalities of the network ({', '.join(self.mean)}) is there"
            raise MismatchError(message, study=subject.subject)
        return found

    def inputs(self, subjects: Sequence[SubjectFeatures]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """A batch: ``[B, 1, ...]`` by modality, zero where missing, and ``present [B, 4]`` in `MODALITIES`' order."""
        rows = [self.scaled(subject) for subject in subjects]
        batch = {}
        for name in self.mean:
            empty = np.zeros(self.shapes[name], np.float32)
            stacked = torch.from_numpy(np.stack([row.get(name, empty) for row in rows]))
            batch[name] = spatial(name, stacked)
        present = torch.tensor([[name in row for name in MODALITIES] for row in rows])
        return batch, present

    def write(self, path: Path) -> None:
        """Keep it as safetensors."""
        from safetensors.numpy import save

        arrays = {
            f"{kind}.{name}": np.ascontiguousarray(array)
            for kind in ("mean", "sd")
            for name, array in getattr(self, kind).items()
        }
        shapes = {f"shape.{name}": np.array(shape, np.int64) for name, shape in self.shapes.items()}
        write_bytes(path, save(arrays | shapes))

    @classmethod
    def read(cls, path: Path) -> Scaling:
        """The inverse of `write`."""
        from safetensors.numpy import load_file

        stored: dict[str, Any] = load_file(path)
        names = [name for name in MODALITIES if f"mean.{name}" in stored]
        return cls(
            {name: stored[f"mean.{name}"] for name in names},
            {name: stored[f"sd.{name}"] for name in names},
            {name: tuple(int(v) for v in stored[f"shape.{name}"]) for name in names},
        )


def spatial(name: str, stacked: torch.Tensor) -> torch.Tensor:
    """``[B, ...]`` -> ``[B, 1, x, y, z]``: matrices get a last axis of one."""
    stacked = stacked[:, None]
    return stacked if name in ("alff", "dfc") else stacked[..., None]


def _stated(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
