"""The pieces of a comparison: searches and trainings, each done once, in any number of processes.

Each is a piece of `medxai.learn.pieces`; one that is killed starts from its own checkpoint.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai.files import atomic_path, write_bytes
from medxai.learn.pieces import finished, piece
from medxai.learn.search.settings import SearchSettings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from medxai.learn.chest_ct.synthetic import Slabs
    from medxai.networks.covidnet3d import Architecture

Say = Callable[[str], None]
#: Arms whose architecture is that of the searched network in some way.
_AFTER_SEARCH = ("searched", "random", "published_strides")


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        kind: ``search`` or ``train``.
        arm: what is trained, see `medxai.learn.search.settings.ARMS`; ``front_W`` is searched with cost weight W.
        seed: of everything random.
    """

    kind: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Folder below the output."""
        return f"seed_{self.seed}/{self.kind}_{self.arm}"

    @property
    def needs(self) -> Job | None:
        """The job that comes before."""
        if self.kind == "search":
            return None
        if self.arm in _AFTER_SEARCH:
            return Job("search", "searched", self.seed)
        searched = self.arm == "shared_random" or self.arm.startswith("front_")
        return Job("search", self.arm, self.seed) if searched else None


def jobs(settings: SearchSettings) -> list[Job]:
    """All jobs, one seed after the other, each after what it needs."""
    found: list[Job] = []
    fronts = [Job("train", f"front_{weight:g}", settings.seeds[0]) for weight in settings.cost.front]
    for job in (*(Job("train", arm, seed) for seed in settings.seeds for arm in settings.arms), *fronts):
        found += [new for new in (job.needs, job) if new is not None and new not in found]
    return found


def folder(settings: SearchSettings, job: Job) -> Path:
    """Where a job keeps its files."""
    return settings.output / job.name


def result(settings: SearchSettings, job: Job) -> dict[str, Any] | None:
    """What a finished job found; None before.

    Raises:
        SettingsError: it was made with other settings.
    """
    return finished(folder(settings, job), relevant(settings, job))


def relevant(settings: SearchSettings, job: Job) -> dict[str, Any]:
    """The settings a job depends on."""
    stated = settings.model_dump(mode="json")
    names = ["data", "space"]
    if job.kind == "search" or job.needs is not None:
        names += ["search", "cost"]
    if job.kind == "train":
        names += ["training", *({"ranked": ["ranking"], "hand_made": ["hand_made"]}.get(job.arm, []))]
    if not (job.kind == "search" or job.needs is not None or job.arm == "ranked"):
        stated["data"].pop("search_window")
    cost = stated["cost"]
    cost.pop("front")
    if job.arm.startswith("front_"):
        cost["weight"] = float(job.arm.removeprefix("front_"))
    return {name: stated[name] for name in names}


def work(settings: SearchSettings, say: Say) -> None:
    """Do all jobs that nobody else does; returns when there is nothing left to begin."""
    todo = jobs(settings)
    while True:
        left = [job for job in todo if result(settings, job) is None]
        ready = [job for job in left if job.needs is None or result(settings, job.needs) is not None]
        if any(run(settings, job, say) is not None for job in ready):
            continue
        if all(job in ready for job in left):
            return
        time.sleep(2)


def run(settings: SearchSettings, job: Job, say: Say) -> dict[str, Any] | None:
    """Do one job, or return what it found before; None while another process is at it."""

    def do() -> dict[str, Any]:
        found = _search(settings, job, say) if job.kind == "search" else _train(settings, job, say)
        return found | {"job": asdict(job)}

    return piece(folder(settings, job), relevant(settings, job), do, say)


def data(settings: SearchSettings, part: str, say: Say) -> Slabs:
    """The training or the test cases; one process draws them while others wait."""
    from medxai.learn.chest_ct import synthetic

    n, seed = {"train": (settings.data.train, synthetic.TRAIN_SEED), "test": (settings.data.test, synthetic.TEST_SEED)}[
        part
    ]
    cache = settings.output / "data"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{part}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        return synthetic.slabs(n, seed, settings.data.window, settings.data.spacing_mm, cache, say)


def _frame(settings: SearchSettings) -> Architecture:
    from medxai.networks.covidnet3d import SKIP, Architecture

    space = settings.space
    return Architecture.uniform(SKIP, space.size, space.depth, space.placement)


def _search(settings: SearchSettings, job: Job, say: Say) -> dict[str, Any]:
    import torch

    from medxai.learn.chest_ct.synthetic import LABELS
    from medxai.learn.search.cost import table
    from medxai.learn.search.log import Epoch
    from medxai.learn.search.report import draw_search
    from medxai.learn.search.search import SearchRecipe, best_of_random, search
    from medxai.learn.search.supernet import Supernet3d, indices

    options = settings.search.model_dump()
    control = job.arm == "shared_random"
    weight = relevant(settings, job)["cost"]["weight"]
    recipe = SearchRecipe(**options, cost=weight, draws="uniform" if control else "weights", seed=job.seed)
    train = data(settings, "train", say)
    torch.manual_seed(job.seed)
    supernet = Supernet3d(len(LABELS), **settings.space.model_dump(), dropout=settings.training.dropout)
    sample = train.sampler(changed=True, shape=settings.data.search_window)
    costs = table(settings.cost.kind, supernet.frame, settings.data.window, len(LABELS))
    target = folder(settings, job)

    def progress(epoch: int, epochs: int, row: Epoch) -> None:
        say(f"{job.name}: epoch {epoch}/{epochs} loss {row.train_loss:.3f} entropy {row.entropy:.3f}")

    found = search(supernet, sample, train.labels.tolist(), recipe, target, cost=costs, progress=progress)
    architecture, loss = found.architecture, found.rows[-1].validation_loss
    if control:
        # Twice as many paths as epochs cost as much as the other search's updates of its second half: forwards alone.
        plain = train.sampler(changed=False, shape=settings.data.search_window)
        paths = 2 * recipe.epochs
        architecture, loss = best_of_random(found, plain, train.labels.tolist(), paths, recipe.batch_size, job.seed)
    architecture.write(target / "architecture.json")
    draw_search(found.rows, found.history, target / "search.png", architecture)
    (target / "search.ckpt").unlink(missing_ok=True)
    return {
        "architecture": architecture.stated(),
        "validation_loss": loss,
        "entropy": found.rows[-1].entropy,
        "cost": costs.of(indices(architecture)),
    }


def _train(settings: SearchSettings, job: Job, say: Say) -> dict[str, Any]:
    import torch

    from medxai.learn.chest_ct.synthetic import LABELS
    from medxai.learn.loop import Recipe, fit, settle_on
    from medxai.learn.search.cost import macs
    from medxai.learn.search.score import predict, score
    from medxai.networks.covidnet3d import parameters

    train, test = data(settings, "train", say), data(settings, "test", say)
    options = settings.training
    recipe = Recipe(
        options.epochs, options.batch_size, options.rate, weight_decay=options.decay, balance=False, seed=job.seed
    )
    torch.manual_seed(1000 + job.seed)
    network, architecture = build(settings, job, train)
    sample = train.sampler(changed=True)
    fit(
        network,
        sample,
        train.labels.tolist(),
        recipe,
        checkpoint=folder(settings, job) / "train.ckpt",
        progress=lambda epoch, epochs, loss: say(f"{job.name}: epoch {epoch}/{epochs} loss {loss:.3f}"),
    )
    settle_on(network, train.sampler(changed=False), len(train.labels), job.seed)
    logits = predict(network, test)
    _keep(folder(settings, job), network, logits)
    (folder(settings, job) / "train.ckpt").unlink(missing_ok=True)
    return {
        "architecture": None if architecture is None else architecture.stated(),
        "parameters": parameters(network),
        "macs": macs(network, settings.data.window),
        **score(logits, test.labels),
        "labels": list(LABELS),
    }


def build(settings: SearchSettings, job: Job, train: Slabs) -> tuple[nn.Module, Architecture | None]:
    """The untrained network of a job, and its architecture where it has one of the space."""
    from medxai.learn.chest_ct.spec import HAND_MADE
    from medxai.learn.chest_ct.synthetic import LABELS
    from medxai.learn.search.candidates import like
    from medxai.networks.covidnet3d import Architecture, CovidNet3d
    from medxai.networks.densenet3d import SmallDenseNet3d
    from medxai.networks.published3d import Mc3x18, densenet3d121, resnet3d101

    n = len(LABELS)
    drawn_by_hand: dict[str, Callable[[], nn.Module]] = {
        "small_densenet": lambda: SmallDenseNet3d(n, **HAND_MADE),
        "densenet3d121": lambda: _deep_enough(densenet3d121(n), settings),
        "resnet3d101": lambda: resnet3d101(n),
        "mc3_18": lambda: Mc3x18(n),
    }
    if job.arm in drawn_by_hand:
        return drawn_by_hand[job.arm](), None
    frame = _frame(settings)
    if job.needs is not None:
        found = result(settings, job.needs)
        assert found is not None  # noqa: S101
        architecture = Architecture.of(found["architecture"])
    if job.arm == "random":
        architecture = like(architecture, job.seed)
    elif job.arm == "published_strides":
        architecture = Architecture(frame.size, architecture.operations, "published", "published")
    elif job.arm == "hand_made":
        architecture = Architecture.uniform(settings.hand_made, frame.size, frame.depth, frame.placement)
    elif job.arm == "ranked":
        architecture = _ranked(settings, job, train)
    return CovidNet3d.of(architecture, n, dropout=settings.training.dropout), architecture


def _deep_enough(network: nn.Module, settings: SearchSettings) -> nn.Module:
    """DenseNet halves its input five times."""
    from medxai.networks.published3d import DoubledDepth

    return DoubledDepth(network) if settings.data.window[0] < 32 else network


def _ranked(settings: SearchSettings, job: Job, train: Slabs) -> Architecture:
    """The best of random architectures by the training-free score; the teacher is the largest of the space."""
    import numpy as np
    import torch

    from medxai.learn.chest_ct.synthetic import LABELS
    from medxai.learn.search.candidates import random_architecture
    from medxai.learn.search.training_free import rank
    from medxai.networks.covidnet3d import Architecture

    frame, options = _frame(settings), settings.ranking
    random = np.random.default_rng([job.seed, 37])
    candidates = [random_architecture(random, frame) for _ in range(options.candidates)]
    inputs, labels = ranking_batch(settings, train)
    teacher = Architecture.uniform("k3e6", frame.size, frame.depth, frame.placement)
    scores = rank(candidates, teacher, inputs, torch.from_numpy(labels), len(LABELS), range(options.seeds))
    return candidates[int(np.argmax(scores))]


def ranking_batch(settings: SearchSettings, train: Slabs) -> tuple[torch.Tensor, Any]:
    """Inputs and labels of the training-free score: the first cases, smaller as in the search."""
    import torch

    chosen = list(range(min(settings.ranking.cases, len(train.labels))))
    sample = train.sampler(changed=False, shape=settings.data.search_window)
    return sample(chosen, torch.Generator()), train.labels[chosen]


def _keep(path: Path, network: nn.Module, logits: Any) -> None:
    import numpy as np
    from safetensors.torch import save

    weights = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(path / "model.safetensors", save(weights))
    with atomic_path(path / "logits.npy") as temporary:
        np.save(temporary, logits)
