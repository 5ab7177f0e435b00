"""Controls of guided training where the truth is known: does a prior help, how much of it, and does a wrong one show?

Pictures of noise with a lesion, whose stripes run down or across and decide the class, and a marker in a corner that
agrees with the class in 95 % of the training and is random in the test. The right prior lies around the lesion, the
wrong one is its mirror image, where nothing ever is.

``python -m medxai.learn.guided_controls --work .training`` trains a small network for each seed, mode and weight,
keeps the figures of every test picture and writes ``docs/evidence/guided_training.md``, its table and its picture. It
resumes where it was stopped. With ``--data`` the guided folds of lung ultrasound that are there are measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
import typer
from torch import nn

from medxai.files import atomic_path
from medxai.identity import sha256_json
from medxai.learn.agreement import Outcome, agreement
from medxai.learn.loop import Batch, Recipe, fit
from medxai.learn.prior_guided import MODES, Mode, PriorGuidedLoss, class_map
from medxai.trust.curves import deletion
from medxai.trust.probe import Probe, open_run
from medxai.trust.units import blocks

Say = Callable[[str], None]
FloatArray = npt.NDArray[np.float32]

PriorKind = Literal["right", "mirrored"]
PRIORS: tuple[PriorKind, ...] = ("right", "mirrored")

#: Modes that ask for the prior's shape, which a wrong prior can impose.
SHAPED: tuple[Mode, ...] = ("attention", "cam")

SIDE = 32
#: Share of the training pictures whose marker agrees with the class.
AGREES = 0.95
SEEDS = (0, 1, 2)
#: Weights of the sweep.
SWEEP = (0.01, 0.3, 1.0, 4.0, 20.0)
#: Weight of the comparison of modes and priors.
WEIGHT = 4.0
RECIPE = Recipe(epochs=10, batch_size=32, learning_rate=3e-3, weight_decay=0.01, balance=False)
TRAINING, TEST = 600, 200
#: Part of the hash of a run; to be raised when pictures, network or figures change.
VERSION = 1
#: Amplitude of the stripes of a lesion; the noise has a standard deviation of 0.5, the marker a step of 1.5.
CONTRAST = 0.55
_LESION, _RADIUS = 7, 6.0


@dataclass(frozen=True)
class Control:
    """One training.

    Attributes:
        mode: of the guidance; None for none.
        weight: of the guidance.
        prior: around the lesion, or its mirror image.
        seed: of pictures, start and order.
        training: pictures to learn from.
        epochs: of the training.
    """

    mode: Mode | None
    weight: float
    prior: PriorKind
    seed: int
    training: int = TRAINING
    epochs: int = RECIPE.epochs


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with known truth.

    Attributes:
        images: ``[N, 1, SIDE, SIDE]``.
        labels: ``[N]``: stripes across (0) or down (1).
        marked: ``[N]`` whether the marker is there.
        priors: ``[N, SIDE, SIDE]``, 1 around the lesion.
    """

    images: torch.Tensor
    labels: torch.Tensor
    marked: torch.Tensor
    priors: torch.Tensor

    def mirrored(self) -> torch.Tensor:
        """Priors on the wrong side."""
        return self.priors.flip(2)


@dataclass(frozen=True, eq=False)
class Found:
    """Figures of the test pictures of one run, ``[N]`` each; maps are of the class that was decided.

    Attributes:
        control: what was trained.
        correct: decided right.
        follows_marker: decided as the marker would have it.
        cosine: of the map with the prior around the lesion.
        uniform: the same of a uniform map.
        inside: share of the evidence inside that prior.
        pointing: share of the map's maxima there.
        cosine_mirrored: with the prior's mirror image.
        deletion: area under the deletion curve over the clean score.
        mean_map: ``[h, w]`` mean of the maps, each over its sum.
        parameters: of the network.
    """

    control: Control
    correct: npt.NDArray[np.bool_]
    follows_marker: npt.NDArray[np.bool_]
    cosine: FloatArray
    uniform: FloatArray
    inside: FloatArray
    pointing: FloatArray
    cosine_mirrored: FloatArray
    deletion: FloatArray
    mean_map: FloatArray
    parameters: int

    def outcome(self, *, mirrored: bool = False) -> Outcome:
        """What `medxai.learn.agreement.suspicions` compares."""
        return Outcome(self.cosine_mirrored if mirrored else self.cosine, self.correct, self.deletion)


class SmallNetwork(nn.Module):
    """Three convolutions, a map of 16 x 16 places that see 12 pixels around them, mean over places, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(16, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits ``[N, 2]``."""
        logits: torch.Tensor = self.classifier(self.features(inputs).mean((2, 3)))
        return logits


def make_pictures(n: int, agrees: float, seed: int) -> Pictures:
    """Draw pictures whose marker agrees with the class with a probability.

    Lesions lie in the lower left, the marker is in the upper right corner.
    """
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    marked = np.where(random.random(n) < agrees, labels, 1 - labels).astype(bool)
    images = random.normal(0, 0.5, (n, SIDE, SIDE))
    stripes = np.cos(2 * np.pi * np.arange(_LESION) / 3.5)[:, None].repeat(_LESION, 1)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    priors = np.empty((n, SIDE, SIDE), np.float32)
    for i in range(n):
        top, left = int(random.integers(12, SIDE - _LESION)), int(random.integers(1, 8))
        pattern = stripes.T if labels[i] else stripes
        images[i, top : top + _LESION, left : left + _LESION] += CONTRAST * pattern
        middle = np.array([top, left]) + (_LESION - 1) / 2
        priors[i] = np.hypot(rows - middle[0], columns - middle[1]) <= _RADIUS
    images[marked, 2:6, SIDE - 6 : SIDE - 2] += 1.5
    return Pictures(
        torch.from_numpy(images.astype(np.float32))[:, None], torch.from_numpy(labels),
        torch.from_numpy(marked), torch.from_numpy(priors),
    )  # fmt: skip


def train_control(control: Control) -> tuple[SmallNetwork, dict[int, float]]:
    """Train the network of a control; also R by epoch."""
    pictures = make_pictures(control.training, AGREES, 10 * control.seed)
    priors = pictures.mirrored() if control.prior == "mirrored" else pictures.priors
    torch.manual_seed(control.seed)
    network = SmallNetwork()

    def sample(positions: Sequence[int], _generator: torch.Generator) -> torch.Tensor:
        return pictures.images[list(positions)]

    def of_batch(batch: Batch) -> list[torch.Tensor | None]:
        return list(priors[list(batch.positions)])

    recipe = Recipe(**{**asdict(RECIPE), "seed": control.seed, "epochs": control.epochs})
    labels = pictures.labels.tolist()
    if control.mode is None:
        fit(network, sample, labels, recipe)
        return network, {}
    with PriorGuidedLoss(network.features, control.mode, control.weight, of_batch, head=network.classifier) as loss:
        fit(network, sample, labels, recipe, extra=loss)
    return network, loss.means()


def measure_control(control: Control, test: int = TEST) -> Found:
    """Train a control and measure it on test pictures whose marker says nothing."""
    network, _ = train_control(control)
    pictures = make_pictures(test, 0.5, 10 * control.seed + 1)
    with torch.no_grad():
        features = network.features(pictures.images)
        decided = network(pictures.images).argmax(1)
        maps = class_map(features, network.classifier.weight, decided)
    figures = [agreement(m, a) for m, a in zip(maps.numpy(), pictures.priors.numpy(), strict=True)]
    wrong = [agreement(m, a) for m, a in zip(maps.numpy(), pictures.mirrored().numpy(), strict=True)]
    large = nn.functional.interpolate(maps[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    probe = Probe(open_run(network, pictures.images, decided.tolist(), masking="zero", chunk=256))
    curve = deletion(probe, large, blocks((SIDE, SIDE), 2), steps=8)
    total = maps.sum((1, 2), keepdim=True).clamp(min=1e-9)
    columns = {
        name: np.array([getattr(figure, name) for figure in figures], np.float32)
        for name in ("cosine", "uniform", "inside", "pointing")
    }
    return Found(
        control=control,
        correct=(decided == pictures.labels).numpy(),
        follows_marker=(decided == pictures.marked).numpy(),
        **columns,
        cosine_mirrored=np.array([figure.cosine for figure in wrong], np.float32),
        deletion=(curve.area / probe.clean).numpy().astype(np.float32),
        mean_map=(maps / total).mean(0).numpy(),
        parameters=sum(p.numel() for p in network.parameters()),
    )


def kept_control(control: Control, work: Path, say: Say) -> Found:
    """Return the figures of a control from ``work/guided_controls``, trained when they are not there."""
    path = work / "guided_controls" / f"{sha256_json([VERSION, asdict(control), asdict(RECIPE), TEST])[:16]}.npz"
    if not path.exists():
        found = measure_control(control)
        arrays = {name: value for name, value in vars(found).items() if name != "control"}
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)
        say(f"{control}: accuracy {found.correct.mean():.3f}, inside {np.nanmean(found.inside):.3f}")
    stored = np.load(path)
    return Found(control, **{name: stored[name] for name in stored.files if name != "parameters"},
                 parameters=int(stored["parameters"]))  # fmt: skip


def all_controls() -> list[Control]:
    """Every training of the page."""
    found = [Control(None, 0.0, "right", seed) for seed in SEEDS]
    found += [Control(mode, WEIGHT, "right", seed) for mode in MODES for seed in SEEDS]
    found += [Control(mode, WEIGHT, "mirrored", seed) for mode in SHAPED for seed in SEEDS]
    return found + [Control("attention", weight, "right", s) for weight in SWEEP if weight != WEIGHT for s in SEEDS]


def main(
    work: Annotated[Path, typer.Option(help="Caches and figures.")] = Path(".training"),
    data: Annotated[Path | None, typer.Option(help="Folder of the open data sets, for lung ultrasound.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train, measure and write the page."""
    from medxai.learn.guided_page import write_evidence
    from medxai.learn.lung_us.guided_evidence import lines_found, measure_folds

    torch.set_num_threads(threads)
    found = [kept_control(control, work, typer.echo) for control in all_controls()]
    folds = measure_folds(data, work / "lung_us", typer.echo) if data is not None else []
    write_evidence(found, folds, lines_found(work / "lung_us"))


if __name__ == "__main__":
    typer.run(main)
