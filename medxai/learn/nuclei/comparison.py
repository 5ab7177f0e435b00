"""Networks of nuclei learnt from points in several ways, beside one that was given the masks; in pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medxai.errors import SettingsError
from medxai.files import write_bytes
from medxai.learn.nuclei.data import PointField, read_fields
from medxai.learn.nuclei.labels import Labels, heat, make_labels
from medxai.learn.nuclei.pseudo import best_thresholds, field_cams
from medxai.learn.nuclei.scores import NAMES, middles, score_field
from medxai.learn.nuclei.settings import Arm, NucleiSettings
from medxai.learn.nuclei.train import Plan, Training, begin, fit
from medxai.learn.nuclei.truth import MaskedField, read_masked
from medxai.learn.pieces import finished, piece
from medxai.networks.nuclei_unet import NucleiUNet
from medxai.predict.nuclei import NucleiField, segment_field
from medxai.predict.nuclei_blocks import best_block

Say = Callable[[str], None]
#: Arms that begin at the network of the shared warm-up.
SHARED: tuple[Arm, ...] = ("kept", "block", "dcs", "dcs_ccl")
#: Arms whose detection branch is trained.
DETECTING: tuple[Arm, ...] = ("full", "full_jitter", "supervised")


@dataclass(frozen=True)
class Folders:
    """Where fields lie.

    Attributes:
        train: pictures and points.
        strong: the same with points that miss by more; None for fields of one's own.
        test: pictures and masks.
    """

    train: Path
    strong: Path | None
    test: Path


def folder(settings: NucleiSettings, arm: Arm, seed: int) -> Path:
    """Where a piece keeps its files."""
    return settings.output / f"seed_{seed}" / arm


def relevant(settings: NucleiSettings) -> dict[str, Any]:
    """Settings on which a piece depends; of folders their names."""
    stated = settings.model_dump(mode="json", exclude={"output", "arms", "seeds"})
    for name in ("train", "test"):
        path = getattr(settings.data, name)
        stated["data"][name] = None if path is None else path.name
    return stated


def result(settings: NucleiSettings, arm: Arm, seed: int) -> dict[str, Any] | None:
    """What a finished piece found; None before.

    Raises:
        SettingsError: it was made with other settings.
    """
    return finished(folder(settings, arm, seed), relevant(settings))


def fields_of(settings: NucleiSettings) -> Folders:
    """The folders of the settings; synthetic fields are written where they are missing.

    Raises:
        SettingsError: synthetic fields are wanted and the package `sample_cases` cannot be imported.
    """
    data = settings.data
    if data.train is not None and data.test is not None:
        return Folders(data.train, None, data.test)
    try:
        from sample_cases.synthetic_nuclei import fields, write
    except ImportError as error:
        msg = "synthetic fields come from sample_cases/; run from the source checkout, or give data.train and data.test"
        raise SettingsError(msg) from error
    root = settings.output / "fields"
    found = Folders(root / "train", root / "train_strong", root / "test")
    radius = settings.network.radius
    wanted = (
        (found.train, data.fields, data.seed, data.jitter),
        (root / "train_strong", data.fields, data.seed, data.strong_jitter),
        (found.test, data.tests, data.seed + 1, data.jitter),
    )
    for path, n, seed, jitter in wanted:
        if not (path / "points.csv").exists():  # written last
            write(fields(n, seed, data.size, jitter, radius), path)
    return found


def pieces(settings: NucleiSettings) -> list[tuple[Arm, int]]:
    """All pieces in order; own fields have no arms of stronger jitter."""
    synthetic = settings.data.train is None
    return [(a, seed) for seed in settings.seeds for a in settings.arms if synthetic or not a.endswith("_jitter")]


def work(settings: NucleiSettings, say: Say) -> None:
    """Do everything that nobody else does."""
    for arm, seed in pieces(settings):
        run(settings, arm, seed, say)


def run(settings: NucleiSettings, arm: Arm, seed: int, say: Say) -> dict[str, Any] | None:
    """Do one piece, or return what it found before; None while another process is at it."""
    return piece(folder(settings, arm, seed), relevant(settings), lambda: _piece(settings, arm, seed, say), say)


def build(settings: NucleiSettings, arm: Arm, seed: int) -> NucleiUNet:
    """The network of an arm with its random weights; the same for all arms of a seed."""
    torch.manual_seed(seed)
    chosen = settings.network
    return NucleiUNet(chosen.width, chosen.radius, chosen.mpp, chosen.tile, detects=arm in DETECTING)


def trained(settings: NucleiSettings, arm: Arm, seed: int) -> NucleiUNet:
    """The network of a finished piece, in eval mode."""
    from safetensors.torch import load

    network = build(settings, arm, seed)
    network.load_state_dict(load((folder(settings, arm, seed) / "model.safetensors").read_bytes()))
    return network.eval()


def segmented(network: NucleiUNet, field: MaskedField) -> NucleiField:
    """The nuclei of a field of the test."""
    return segment_field(network, (field.pixels.transpose(2, 0, 1) / 255).astype(np.float32))


def _piece(settings: NucleiSettings, arm: Arm, seed: int, say: Say) -> dict[str, Any]:
    from safetensors.torch import save

    folders = fields_of(settings)
    network = build(settings, arm, seed)
    if arm == "supervised":
        fields, labels = _given(folders.train, settings)
    else:
        source = folders.strong if arm.endswith("_jitter") and folders.strong is not None else folders.train
        fields, labels = _pointed(source, settings)
    training = begin(network, labels, settings)
    if arm in SHARED:
        training.load(_warm(settings, seed, fields, labels, say))
    plan = _plan(settings, arm, training, fields, labels)
    target = folder(settings, arm, seed)
    fit(
        training,
        fields,
        labels,
        plan,
        settings,
        seed,
        checkpoint=target / "state.ckpt",
        progress=_teller(say, f"seed_{seed}/{arm}"),
    )
    write_bytes(target / "model.safetensors", save({k: v.contiguous() for k, v in network.state_dict().items()}))
    scores = [_scored(network, field) for field in read_masked(folders.test)]
    (target / "state.ckpt").unlink(missing_ok=True)
    return {
        "arm": arm,
        "seed": seed,
        "fixed_block": None if plan.fixed_block is None else plan.fixed_block + 1,
        "scores": {name: [row[name] for row in scores] for name in NAMES},
        "history": training.history,
    }


def _scored(network: NucleiUNet, field: MaskedField) -> dict[str, float]:
    found = segmented(network, field)
    points = middles(found.labels, found.seeds)
    return score_field(found.labels, field.instances, points, field.centroids, network.radius)


def _plan(
    settings: NucleiSettings, arm: Arm, training: Training, fields: list[PointField], labels: list[Labels]
) -> Plan:
    epochs = settings.training.epochs
    if arm in ("fixed", "fixed_jitter"):
        return Plan(epochs, published=True)
    if arm == "kept":
        return Plan(epochs)
    if arm == "supervised":
        return Plan(epochs, detects=True, cells=False)
    if arm == "block":
        alpha = [
            best_thresholds(field_cams(training.network, one), label, settings.selection)[0]
            for one, label in zip(fields, labels, strict=True)
        ]
        return Plan(epochs, selects=True, fixed_block=best_block(np.mean(alpha, 0)))
    return Plan(epochs, selects=True, contrasts=arm != "dcs", detects=arm in DETECTING)


def _warm(settings: NucleiSettings, seed: int, fields: list[PointField], labels: list[Labels], say: Say) -> Path:
    """The state after the warm-up, which several arms share; made by the first that needs it."""
    target = settings.output / f"seed_{seed}" / "warmup"
    path = target / "state.ckpt"

    def do() -> dict[str, Any]:
        plan = Plan(settings.selection.warmup)
        training = begin(build(settings, "kept", seed), labels, settings)
        fit(training, fields, labels, plan, settings, seed, progress=_teller(say, f"seed_{seed}/warmup"))
        training.save(path)
        return {"epochs": training.epoch}

    if piece(target, relevant(settings), do, say) is None:
        msg = f"seed_{seed}: another process is at the shared warm-up; run again when it is done"
        raise SettingsError(msg, study=str(settings.output))
    return path


def _pointed(path: Path, settings: NucleiSettings) -> tuple[list[PointField], list[Labels]]:
    fields = read_fields(path, settings.training.crop)
    return fields, [make_labels(one.pixels, one.points, settings.network.radius) for one in fields]


def _given(path: Path, settings: NucleiSettings) -> tuple[list[PointField], list[Labels]]:
    """Fields and labels from masks: the upper bound alone."""
    radius = settings.network.radius
    fields, labels = [], []
    for masked in read_masked(path):
        nuclei = masked.instances > 0
        none = np.zeros_like(nuclei)
        mask = nuclei.astype(np.int8)
        fields.append(PointField(masked.name, masked.pixels, masked.centroids))
        labels.append(Labels(mask, mask, none, none, heat(mask.shape, masked.centroids, radius)))
    return fields, labels


def _teller(say: Say, name: str) -> Callable[[int, int, float], None]:
    def tell(epoch: int, epochs: int, loss: float) -> None:
        if epoch % 10 == 0 or epoch == epochs:
            say(f"{name}: {epoch}/{epochs}, loss {loss:.3f}")

    return tell
