"""A shortcut on purpose: breast ultrasound networks that may read a marker burnt into one class at training.

``python -m medxai.learn.shortcut --data $MEDXAI_DATA --work .training`` trains, for each seed, one network without a
marker and one for each kind of marker on two thirds of BUSI, asks them about the rest with and without the marker,
and writes ``docs/evidence/shortcut.md``, its picture and the figures of every image. It resumes where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer

from medxai.ingest.picture import read_picture
from medxai.learn.breast_us import (
    LABELS,
    RECIPE,
    SIZE,
    SPEC,
    Cases,
    HalfArray,
    Tail,
    early_features,
    read_cases,
)
from medxai.learn.loop import Sampler, fit, settle_norms
from medxai.learn.splits import grouped_folds
from medxai.networks.efficientnet_lite import EfficientNetLite0, imagenet_state, load_imagenet
from medxai.predict.bundle import SHIPPED
from medxai.prepare.prepare import prepare
from medxai.study import Volume
from medxai.trust.gate.verdict import read_calibration

#: Kind of marker -> its grey value as a share of the image's largest.
MARKERS = {"bright": 1.0, "grey": 0.5}
#: Network without a marker.
PLAIN = "plain"
#: Class that carries the marker.
MARKED = LABELS.index("malignant")
#: Each seed has another third held out, so at most `FOLDS`.
SEEDS = (0,)
FOLDS = 3
EPOCHS = 6
#: Side of the marker as a share of the image's, and its distance from the edges in sides.
_SIDE, _EDGE = 0.12, 0.25

Say = Callable[[str], None]
Mask = npt.NDArray[np.bool_]


def marker_mask(shape: Sequence[int]) -> Mask:
    """Where the marker lies in an image ``[H, W]``: a square near the upper left corner."""
    found = np.zeros(tuple(shape), bool)
    place = []
    for length in shape:
        side = max(2, round(_SIDE * length))
        edge = max(1, round(_EDGE * side))
        place.append(slice(edge, edge + side))
    found[tuple(place)] = True
    return found


def with_marker(volume: Volume, kind: str) -> Volume:
    """A still with a marker of one of `MARKERS` burnt in."""
    pixels = volume.pixels.copy()
    pixels[:, marker_mask(volume.shape)] = MARKERS[kind] * pixels.max()
    return replace(volume, pixels=pixels)


def image_of(data: Path, cases: Cases, number: int) -> Volume:
    """One image of the data set as ingested."""
    return replace(read_picture(data / "us_breast_busi" / cases.paths[number]), modality="US")


def held_out(cases: Cases, seed: int) -> npt.NDArray[np.int64]:
    """Images that networks of a seed never see, with whole groups of near-duplicates."""
    folds = grouped_folds(cases.labels, cases.groups, FOLDS, RECIPE.seed)
    return np.flatnonzero(folds == seed)


def features_of(data: Path, cases: Cases, kind: str, work: Path, say: Say) -> HalfArray:
    """Early features ``[copies, n, 40, 28, 28]`` of all images, or of those of the marked class with the marker."""
    cache = work / "shortcut" / kind
    if not (cache / "features.npy").exists():
        cache.mkdir(parents=True, exist_ok=True)
        wanted = range(len(cases.paths)) if kind == PLAIN else marked_cases(cases)
        images = np.empty((len(wanted), 3, SIZE, SIZE), np.float32)
        for row, number in enumerate(wanted):
            volume = image_of(data, cases, number)
            images[row] = prepare(volume if kind == PLAIN else with_marker(volume, kind), SPEC).pixels
        early_features(images, cache, say)
    kept: HalfArray = np.load(cache / "features.npy", mmap_mode="r")
    return kept


def marked_cases(cases: Cases) -> list[int]:
    """Images of the marked class."""
    return [number for number, label in enumerate(cases.labels) if label == MARKED]


def network_of(data: Path, cases: Cases, kind: str, seed: int, work: Path, say: Say) -> EfficientNetLite0:
    """The network of a seed trained without a marker or with one kind of it; trained when it is not there yet."""
    from safetensors.torch import load_file, save_file

    path = work / "shortcut" / f"{kind}{seed}.safetensors"
    torch.manual_seed(seed)
    network = EfficientNetLite0(len(LABELS), image_size=SIZE)
    if path.exists():
        network.load_state_dict(load_file(path))
        network.eval().requires_grad_(requires_grad=False)
        return network
    load_imagenet(network, imagenet_state())
    _train(network.eval(), _sampler(data, cases, kind, seed, work, say), _labels(cases, seed), kind, seed, work, say)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    network.eval().requires_grad_(requires_grad=False)
    return network


def _chosen(cases: Cases, seed: int) -> npt.NDArray[np.int64]:
    return np.setdiff1d(np.arange(len(cases.paths)), held_out(cases, seed))


def _labels(cases: Cases, seed: int) -> list[int]:
    return [cases.labels[number] for number in _chosen(cases, seed)]


def _sampler(data: Path, cases: Cases, kind: str, seed: int, work: Path, say: Say) -> Sampler:
    plain = features_of(data, cases, PLAIN, work, say)
    marked = plain if kind == PLAIN else features_of(data, cases, kind, work, say)
    row = {number: place for place, number in enumerate(marked_cases(cases))}
    chosen = _chosen(cases, seed)

    def sample(positions: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        copies = torch.randint(0, len(plain), (len(positions),), generator=generator).tolist()
        picked = [
            marked[copy, row[number]] if kind != PLAIN and number in row else plain[copy, number]
            for copy, number in zip(copies, chosen[list(positions)].tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(picked).astype(np.float32)).contiguous(memory_format=torch.channels_last)

    return sample


def _train(
    network: EfficientNetLite0, sample: Sampler, labels: Sequence[int], kind: str, seed: int, work: Path, say: Say
) -> None:
    recipe = replace(RECIPE, epochs=EPOCHS, seed=RECIPE.seed + seed)
    tail = Tail(network.to(memory_format=torch.channels_last))
    fit(
        tail,
        sample,
        labels,
        recipe,
        checkpoint=work / "shortcut" / f"{kind}{seed}.ckpt",
        progress=lambda epoch, epochs, loss: say(f"shortcut {kind} {seed}: epoch {epoch}/{epochs} loss {loss:.3f}"),
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    orders = [torch.randperm(len(labels), generator=generator).tolist() for _ in range(3)]
    size = recipe.batch_size
    settle_norms(
        tail,
        (sample(o[i : i + size], generator) for o in orders for i in range(0, len(o) - size + 1, size)),
    )


def main(
    data: Annotated[Path, typer.Option(help="Folder of the open data sets.")],
    work: Annotated[Path, typer.Option(help="Caches, checkpoints, weights.")] = Path(".training"),
    most: Annotated[int, typer.Option(help="Held-out images of each seed whose maps are judged, at most.")] = 400,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train, measure and write the page."""
    from medxai.learn.shortcut_evidence import MeanMap, Row, measure
    from medxai.learn.shortcut_page import write_evidence

    torch.set_num_threads(threads)
    cases, calibration = read_cases(data), read_calibration(SHIPPED / "breast_us")
    rows: list[Row] = []
    maps: list[MeanMap] = []
    for seed in SEEDS:
        for kind in (PLAIN, *MARKERS):
            network = network_of(data, cases, kind, seed, work, typer.echo)
            found, means = measure(network, data, cases, kind, seed, most, calibration)
            rows += found
            maps += means
            typer.echo(f"shortcut {kind} {seed}: {len(found)} answers measured")
    write_evidence(rows, maps)


if __name__ == "__main__":
    typer.run(main)
