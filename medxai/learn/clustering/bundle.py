"""A finished clustering as a bundle, so that `medxai run` grades the tiles of whole slides by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medxai.errors import SettingsError
from medxai.learn.card import Card
from medxai.learn.clustering.comparison import Ints, result, trained
from medxai.learn.clustering.settings import DceacSettings
from medxai.learn.licence import APACHE
from medxai.networks.graded_tiles import TARGET_LAYER, GradedTiles, named
from medxai.predict.bundle_spec import MedxaiBlock, SlideSpec
from medxai.predict.write import write_bundle
from medxai.prepare.spec import AffineIntensity, PreparationSpec

VERSION = "1.0.0"


def write_dceac(settings: DceacSettings, classes: tuple[str, ...], seed: int, mpp: float, out: Path) -> Path:
    """Write the network with attention of one seed as the bundle ``out/dceac``.

    Clusters are called by the classes that the naming tiles gave them, in the order of the classes; without labels, or
    when two clusters have one class, by numbers as well.

    Args:
        settings: of the finished comparison.
        classes: names of the labels; none for tiles without.
        seed: whose network.
        mpp: micrometres per pixel of the training tiles, at which slides are read.
        out: folder of bundles.

    Raises:
        SettingsError: that piece is not finished, or collapsed.
    """
    found = result(settings, "attention", seed)
    if found is None or "refined" not in found:
        why = "is not trained yet" if found is None else f"collapsed: {found['collapsed']}"
        raise SettingsError(f"seed_{seed}/attention {why}", study=str(settings.output))
    refined, chosen = found["refined"], settings.network
    labels, order = names_of(np.array(refined["names"]) if classes else None, classes, chosen.clusters)
    even = settings.data.stain == "tile"
    graded = GradedTiles(chosen.clusters, chosen.widths, chosen.attention, chosen.embedding, even)
    named(trained(settings, "attention", seed), order, graded)
    size = settings.data.size
    spec = MedxaiBlock(
        labels=labels,
        modalities=("SM",),
        body_parts=("BLADDER",),
        preparation=PreparationSpec(
            axes="HW",
            window=(size, size),
            channels=3,
            intensity=AffineIntensity(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
            fill=255.0,
        ),
        target_layer=TARGET_LAYER,
        activation="softmax",
        fusion="probability",
        slide=SlideSpec(mpp=mpp, tile=size, least_tissue=settings.data.tissue),
        licence="Apache-2.0",
    )
    card = _card(settings, spec, found, classes, seed)
    return write_bundle(
        out / "dceac",
        network_def={
            "_target_": "medxai.networks.graded_tiles.GradedTiles",
            "clusters": chosen.clusters,
            "widths": list(chosen.widths),
            "attention": chosen.attention,
            "embedding": chosen.embedding,
            "even": even,
        },
        network=graded,
        metadata=card.metadata(spec, task="Tiles of slides by clusters that were found without labels"),
        card=card.markdown(spec),
        licence=APACHE,
    )


def names_of(names: Ints | None, classes: tuple[str, ...], clusters: int) -> tuple[tuple[str, ...], list[int]]:
    """Labels of the clusters in the order they are given to the network, and which cluster each is.

    Args:
        names: class ``[K]`` of each cluster; None without labels.
        classes: names.
        clusters: K.
    """
    if names is None:
        return tuple(f"cluster_{number}" for number in range(clusters)), list(range(clusters))
    order = np.argsort(names, kind="stable").tolist()
    said = [classes[int(names[cluster])] for cluster in order]
    labels = [
        name if said.count(name) == 1 else f"{name}_{said[: place + 1].count(name)}" for place, name in enumerate(said)
    ]
    return tuple(labels), order


def _card(
    settings: DceacSettings, spec: MedxaiBlock, found: dict[str, object], classes: tuple[str, ...], seed: int
) -> Card:
    refined, tiles = found["refined"], found["tiles"]
    assert isinstance(refined, dict)  # noqa: S101
    assert isinstance(tiles, dict)  # noqa: S101
    where = ", ".join(path.name for path in settings.data.folders) or "synthetic textures (sample_cases)"
    results = {name: f"{refined[name]:.3f} (n = {refined['n']})" for name in ("accuracy", "nmi") if classes}
    return Card(
        name="dceac",
        version=VERSION,
        summary="Grades tiles of slides by clusters that were found without labels (DCEAC).",
        data=f"{sum(tiles.values())} tiles of {settings.data.size} pixels: {where}.",
        split=f"By patient or picture, fold {seed}: {tiles['train']} tiles learnt from without labels, "
        f"{tiles['naming']} that name the clusters, {tiles['test']} scored.",
        training="Convolutional autoencoder with attention, then clustering refinement (García et al. 2021).",
        results=results or {"scores": "none: the tiles have no labels"},
        evaluation="Tiles of the scored fold; one seed. docs/dceac.md has all seeds and what they are compared with.",
        limits=(
            "Clusters are what the data fall into; that they are grades is said by the labels that named them.",
            "The number of clusters was given. A tile of anything gets a cluster; what is unlike training is flagged.",
            f"Slides are read at {spec.slide.mpp if spec.slide else 0:g} um per pixel, as whoever trained it stated.",
            "Cells of its maps look at every sixteenth pixel from the first on: a map lies half a cell right and down.",
        ),
        reproduce=f"medxai train dceac --out bundles --mpp {spec.slide.mpp if spec.slide else 0:g} --seed {seed}",
        licence="Apache-2.0",
        references=("García et al. 2021, arXiv:2106.13559",),
    )
