"""Clustering of tiles with and without attention, before and after refinement, beside colours and labels; in pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.errors import CollapseError
from medxai.files import write_bytes
from medxai.learn.clustering.data import Split, TileSet, as_input, read_tiles, split
from medxai.learn.clustering.naming import chance, class_shares, name_clusters, scores
from medxai.learn.clustering.settings import CLUSTERED, Arm, DceacSettings
from medxai.learn.pieces import finished, piece

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.networks.dceac import Dceac

Say = Callable[[str], None]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


def folder(settings: DceacSettings, arm: Arm, seed: int) -> Path:
    """Where a piece keeps its files."""
    return settings.output / f"seed_{seed}" / arm


def relevant(settings: DceacSettings) -> dict[str, Any]:
    """Settings on which a piece depends; of folders their names."""
    stated = settings.model_dump(mode="json", exclude={"output", "arms", "seeds", "name"})
    stated["data"]["folders"] = [path.name for path in settings.data.folders]
    return stated


def result(settings: DceacSettings, arm: Arm, seed: int) -> dict[str, Any] | None:
    """What a finished piece found; None before.

    Raises:
        SettingsError: it was made with other settings.
    """
    return finished(folder(settings, arm, seed), relevant(settings))


def work(settings: DceacSettings, say: Say) -> TileSet:
    """Do everything that nobody else does; returns the tiles."""
    tiles = read_tiles(settings.data)
    known = f"{len(tiles.classes)} classes" if tiles.labelled else "no labels"
    say(f"{len(tiles.labels)} tiles of {len(set(tiles.groups))} patients or pictures, {known}")
    for arm, seed in pieces(settings, tiles):
        run(settings, arm, seed, tiles, say)
    return tiles


def pieces(settings: DceacSettings, tiles: TileSet) -> list[tuple[Arm, int]]:
    """All pieces in order; without labels only those that cluster by a network."""
    return [(a, seed) for seed in settings.seeds for a in settings.arms if a in CLUSTERED or tiles.labelled]


def run(settings: DceacSettings, arm: Arm, seed: int, tiles: TileSet, say: Say) -> dict[str, Any] | None:
    """Do one piece, or return what it found before; None while another process is at it."""
    return piece(folder(settings, arm, seed), relevant(settings), lambda: _piece(settings, arm, seed, tiles, say), say)


def build(settings: DceacSettings, arm: Arm, seed: int) -> Dceac:
    """The network of an arm with its random weights."""
    import torch

    from medxai.networks.dceac import Dceac

    chosen = settings.network
    torch.manual_seed(seed)
    attention = "none" if arm == "no_attention" else chosen.attention
    return Dceac(chosen.clusters, chosen.widths, attention, chosen.embedding)


def trained(settings: DceacSettings, arm: Arm, seed: int) -> Dceac:
    """The refined network of a finished piece, in eval mode."""
    from safetensors.torch import load

    network = build(settings, arm, seed)
    network.load_state_dict(load((folder(settings, arm, seed) / "model.safetensors").read_bytes()))
    return network.eval()


def _piece(settings: DceacSettings, arm: Arm, seed: int, tiles: TileSet, say: Say) -> dict[str, Any]:
    parts = split(tiles, settings.data, seed)
    x = as_input(tiles.pixels, settings.data.stain)
    found: dict[str, Any]
    if arm == "rgb":
        found = {"kmeans": _by_colours(settings, tiles, parts, x, seed)}
    elif arm == "supervised":
        found = {"network": _supervised(settings, tiles, parts, x, seed, say)}
    else:
        found = _clustered(settings, arm, seed, tiles, parts, x, say)
    return found | {"arm": arm, "seed": seed, "tiles": {name: len(rows) for name, rows in vars(parts).items()}}


def _clustered(
    settings: DceacSettings, arm: Arm, seed: int, tiles: TileSet, parts: Split, x: Tensor, say: Say
) -> dict[str, Any]:
    from safetensors.torch import save

    from medxai.learn.clustering.autoencoder import AutoencoderRecipe, fit_autoencoder
    from medxai.learn.clustering.localise import localise
    from medxai.learn.clustering.refine import RefinementRecipe, refine, start_centroids

    target = folder(settings, arm, seed)
    network = build(settings, arm, seed)
    fit_autoencoder(
        network,
        x[parts.train],
        AutoencoderRecipe(**settings.autoencoder.model_dump(), seed=seed),
        checkpoint=target / "step1.ckpt",
        progress=lambda epoch, epochs, loss: say(f"seed_{seed}/{arm}: step 1, {epoch}/{epochs}, error {loss:.5f}"),
    )
    start_centroids(network, x[parts.train], seed)
    found = {"kmeans": assess(settings, network, tiles, parts, x, seed)}
    recipe = RefinementRecipe(**settings.refinement.model_dump(), seed=seed)
    try:
        how = refine(
            network,
            x[parts.train],
            recipe,
            checkpoint=target / "step2.ckpt",
            progress=lambda n, most, changed, least: say(
                f"seed_{seed}/{arm}: step 2, {n}/{most}, {changed:.2%} changed, smallest cluster {least:.1%}"
            ),
        )
    except CollapseError as error:
        say(f"seed_{seed}/{arm}: {error.reason}")
        return found | {"collapsed": error.reason}
    write_bytes(target / "model.safetensors", save({k: v.contiguous() for k, v in network.state_dict().items()}))
    found["refined"] = assess(settings, network, tiles, parts, x, seed)
    if tiles.masks is not None:
        names = np.array(found["refined"]["names"])
        found["refined"]["maps"] = localise(network, tiles, parts.test, x, names)
    found["refinement"] = {
        "updates": len(how.changed),
        "changed": how.changed,
        "errors": how.errors,
        "pulls": how.pulls,
        "stopped_by_tolerance": how.stopped,
        "revived": how.revived,
    }
    for name in ("step1.ckpt", "step2.ckpt"):
        (target / name).unlink(missing_ok=True)
    return found


def assess(
    settings: DceacSettings, network: Dceac, tiles: TileSet, parts: Split, x: Tensor, seed: int
) -> dict[str, Any]:
    """Shares and colours of the clusters on the scored tiles; with labels the scores."""
    from medxai.learn.clustering.localise import colours

    q = _shares(network, x)
    found: dict[str, Any] = {
        "shares": np.bincount(q[parts.test].argmax(1), minlength=q.shape[1]).tolist(),
        "colours": colours(tiles.pixels[parts.test], q[parts.test].argmax(1), q.shape[1]),
        "confidence": float(q[parts.test].max(1).mean()),
    }
    if not tiles.labelled:
        return found
    named, names = _named(settings, tiles, parts, q, seed)
    return found | named | {"names": names.tolist()}


def _shares(network: Dceac, x: Tensor) -> Floats:
    from medxai.learn.clustering.autoencoder import embed
    from medxai.networks.soft_assignment import log_assignment

    return np.asarray(log_assignment(embed(network, x), network.centroids.detach()).exp().numpy())


def _named(settings: DceacSettings, tiles: TileSet, parts: Split, q: Floats, seed: int) -> tuple[dict[str, Any], Ints]:
    """Scores under names from the naming tiles, with the chance level; and the names."""
    clusters, k, classes = q.argmax(1), q.shape[1], len(tiles.classes)
    naming = (clusters[parts.naming], tiles.labels[parts.naming])
    names = name_clusters(*naming, k, classes)
    test = (clusters[parts.test], tiles.labels[parts.test])
    shares = class_shares(q[parts.test], names, classes)
    found = scores(test[1], names[test[0]], shares, test[0], tiles.classes)
    found["chance"] = chance(naming, test, k, classes, settings.permutations, seed)
    found["decided"] = names[test[0]].tolist()
    return found, names


def _by_colours(settings: DceacSettings, tiles: TileSet, parts: Split, x: Tensor, seed: int) -> dict[str, Any]:
    """k-means on mean and standard deviation of each colour, standardised, after the same evening of stains."""
    import torch
    from sklearn.cluster import KMeans

    raw = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1).numpy()
    raw = (raw - raw[parts.train].mean(0)) / raw[parts.train].std(0)
    model = KMeans(settings.network.clusters, n_init=20, random_state=seed).fit(raw[parts.train])
    distance = model.transform(raw) ** 2
    q = 1 / (1 + distance)
    return _named(settings, tiles, parts, q / q.sum(1, keepdims=True), seed)[0]


def _supervised(
    settings: DceacSettings, tiles: TileSet, parts: Split, x: Tensor, seed: int, say: Say
) -> dict[str, Any]:
    """The same encoder and attention with a linear layer, given the labels of the training tiles: an upper bound."""
    import torch
    from torch import nn

    from medxai.learn.clustering.autoencoder import turned
    from medxai.learn.loop import Recipe, fit

    dceac = build(settings, "supervised", seed)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dceac = dceac
            self.head = nn.Linear(dceac.centroids.shape[1], len(tiles.classes))

        def forward(self, batch: Tensor) -> Tensor:
            logits: Tensor = self.head(self.dceac.encode(batch).embedding)
            return logits

    train = x[parts.train]
    network = fit(
        Classifier(),
        lambda rows, generator: turned(train[list(rows)], generator),
        tiles.labels[parts.train].tolist(),
        Recipe(settings.supervised_epochs, settings.autoencoder.batch_size, settings.autoencoder.rate, seed=seed),
        checkpoint=folder(settings, "supervised", seed) / "supervised.ckpt",
        progress=lambda epoch, epochs, loss: say(f"seed_{seed}/supervised: {epoch}/{epochs}, loss {loss:.3f}"),
    )
    with torch.inference_mode():
        shares = torch.cat([network(part).softmax(1) for part in torch.split(x[parts.test], 32)]).numpy()
    decided = shares.argmax(1)
    found = scores(tiles.labels[parts.test], decided, shares, decided, tiles.classes)
    (folder(settings, "supervised", seed) / "supervised.ckpt").unlink(missing_ok=True)
    return found | {"decided": decided.tolist()}
