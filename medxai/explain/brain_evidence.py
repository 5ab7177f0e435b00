"""All that a fusion network says of one subject: probability, shares of modalities, synergy, maps and their check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.explain.connectivity_map import agreement
from medxai.files import write_bytes, write_text
from medxai.identity import sha256_file
from medxai.prepare.brain.onto import computed
from medxai.prepare.brain.subject import MODALITIES, SubjectFeatures

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.predict.fusion_bundle import FusionBundle
    from medxai.prepare.brain.scaling import Scaling

#: Matrices, whose maps may depend on the order of the nodes.
MATRICES = ("sfc", "dfc", "fa")
#: Correlation of a map with that of another order of the nodes, below which a sentence says that the order matters.
LEAST_AGREEMENT = 0.5
#: Shapley value of a modality in logits below which its map says nothing for the class: odds changed by less than 1.65.
#: Networks trained on shuffled labels stay below it (docs/brain_fusion_results.md).
LEAST_EVIDENCE = 0.5
#: Share of the ALFF map outside the brain above which a sentence says so.
MOST_OUTSIDE = 0.1
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BrainEvidence:
    """One subject.

    Attributes:
        subject: pseudonym.
        labels: classes.
        positive: explained class.
        logits: ``[K]``.
        probabilities: ``[K]``.
        missing: modalities of the network that the subject lacks.
        values: Shapley value of the logit by modality that there is.
        shares: share of the sum of their magnitudes.
        whole: logit with all modalities.
        nothing: logit with none.
        modalities: those that there are, the order of `pairs`.
        pairs: ``[n, n]`` gain of two modalities less that of each alone.
        map_synergy: mean over the channels of what marking all inputs together gains beyond marking each alone.
        single: mean gain of each modality's channels alone; `joint` of all.
        joint: see `single`.
        empty: modalities whose map is zero everywhere.
        outside: share of the sum of the ALFF map that lay where no ALFF was computed, and was taken out; 0 without.
        order: correlation of a matrix's map with that of shuffled nodes; NaN where a map is the same everywhere.
        maps: ``[D, H, W]`` of ``alff``, ``[N, N]`` of ``sfc`` and ``fa``, ``[N, N, T]`` of ``dfc``; 0 to 1, float32.
        cells: shape of the layer's own grid by modality.
    """

    subject: str
    labels: tuple[str, ...]
    positive: int
    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    missing: tuple[str, ...]
    values: Mapping[str, float]
    shares: Mapping[str, float]
    whole: float
    nothing: float
    modalities: tuple[str, ...]
    pairs: npt.NDArray[np.float64]
    map_synergy: float
    single: Mapping[str, float]
    joint: float
    empty: tuple[str, ...]
    outside: float
    order: Mapping[str, float]
    maps: Mapping[str, Array]
    cells: Mapping[str, tuple[int, ...]]

    @property
    def decided(self) -> int:
        """Most probable class."""
        return int(np.argmax(self.probabilities))

    @property
    def probability(self) -> float:
        """Of the explained class."""
        return self.probabilities[self.positive]

    @property
    def unsupported(self) -> tuple[str, ...]:
        """Modalities that hardly speak for the class, or against it: their maps are no evidence and are withheld."""
        return tuple(name for name in self.maps if self.values.get(name, 0.0) < LEAST_EVIDENCE)

    @property
    def unordered(self) -> tuple[str, ...]:
        """Matrices whose map depends on the order of the nodes."""
        return tuple(name for name, value in self.order.items() if value < LEAST_AGREEMENT)


def brain_evidence(model: FusionBundle, subject: SubjectFeatures, *, seed: int = 0, chunk: int = 16) -> BrainEvidence:
    """Explain one subject.

    Args:
        model: bundle of a fusion network.
        subject: its features.
        seed: of the other order of the nodes.
        chunk: marked inputs that exist at once.

    Raises:
        MismatchError: another shape than the network was trained on, or none of its modalities.
    """
    import torch

    from medxai.explain.evidence_share import evidence_share
    from medxai.explain.synergistic import SynergisticOptions, synergistic_maps

    network, scaling = model.network(), model.scaling()
    inputs = _inputs(scaling, network.modalities, subject)
    options = SynergisticOptions(**model.marking, chunk=chunk)
    calls = network.target_calls(tuple(inputs), **model.layers)
    with torch.inference_mode():
        logits = network(inputs)[0].double()
    healthy = {name: value for name, value in model.reference().items() if name in inputs}
    found = synergistic_maps(network, inputs, model.positive, options, calls, healthy)
    share = evidence_share(network, inputs, model.positive, model.baseline())
    maps = {name: _plain(name, value) for name, value in found.maps.items()}
    outside = 0.0
    if "alff" in maps and subject.alff is not None:
        maps["alff"], outside = _within(maps["alff"], computed(subject.alff))
    orders = _orders(subject, inputs, seed)
    order: dict[str, float] = {}
    if orders:
        shuffled, healthy = (
            {name: _reordered(value, orders.get(name)) for name, value in arrays.items()}
            for arrays in (inputs, healthy)
        )
        other = synergistic_maps(network, shuffled, model.positive, options, calls, healthy)
        back = {name: np.argsort(chosen) for name, chosen in orders.items()}
        order = {
            name: agreement(maps[name], _plain(name, other.maps[name])[back[name]][:, back[name]]) for name in orders
        }
    return BrainEvidence(
        subject=subject.subject,
        labels=tuple(model.labels),
        positive=model.positive,
        logits=tuple(logits.tolist()),
        probabilities=tuple(logits.softmax(0).tolist()),
        missing=tuple(name for name in network.modalities if name not in inputs),
        values=dict(zip(share.modalities, share.values.tolist(), strict=True)),
        shares=share.shares,
        whole=share.whole,
        nothing=share.nothing,
        modalities=share.modalities,
        pairs=share.synergy,
        map_synergy=float(found.synergy.double().mean()),
        single={name: float(value.double().mean()) for name, value in found.single.items()},
        joint=float(found.increments.double().mean()),
        empty=tuple(name for name, values in maps.items() if not values.any()),
        outside=outside,
        order=order,
        maps=maps,
        cells={name: tuple(value.shape) for name, value in found.raw.items()},
    )


def write_evidence(folder: Path, found: BrainEvidence, key: str = "") -> list[Path]:
    """Keep it as ``evidence.json`` and ``maps.safetensors``, the same bytes each time; the paths.

    Args:
        folder: where to.
        found: of one subject.
        key: of what it was made from, see `is_current`.
    """
    from safetensors.numpy import save

    kept = save({name: np.ascontiguousarray(values) for name, values in found.maps.items()})
    maps = write_bytes(folder / "maps.safetensors", kept)
    content = {**plain(found), "key": key, "maps_sha256": sha256_file(maps)}
    return [write_text(folder / "evidence.json", json.dumps(content, indent=1, sort_keys=True) + "\n"), maps]


def is_current(folder: Path, key: str) -> bool:
    """Whether evidence of that key lies there, whole."""
    try:
        known = json.loads((folder / "evidence.json").read_text())
        return bool(known["key"] == key and known["maps_sha256"] == sha256_file(folder / "maps.safetensors"))
    except (OSError, ValueError, KeyError):
        return False


def read_evidence(folder: Path) -> BrainEvidence:
    """The inverse of `write_evidence`.

    Raises:
        IngestError: unreadable.
    """
    from safetensors.numpy import load_file

    try:
        known = json.loads((folder / "evidence.json").read_text())
        maps = load_file(folder / "maps.safetensors")
        tuples = ("labels", "logits", "probabilities", "missing", "modalities", "empty")
        whole = (
            "subject",
            "positive",
            "values",
            "shares",
            "whole",
            "nothing",
            "map_synergy",
            "single",
            "joint",
            "outside",
        )
        fields: dict[str, Any] = {name: tuple(known[name]) for name in tuples} | {name: known[name] for name in whole}
        return BrainEvidence(
            **fields,
            pairs=np.array(known["pairs"], dtype=float).reshape(len(known["modalities"]), -1),
            order={name: float("nan") if value is None else value for name, value in known["order_dependence"].items()},
            maps={name: maps[name] for name in MODALITIES if name in maps},
            cells={name: tuple(value) for name, value in known["cells"].items()},
        )  # fmt: skip
    except Exception as error:
        raise IngestError("evidence.json or maps.safetensors cannot be read; run again", study=folder.name) from error


def plain(found: BrainEvidence) -> dict[str, Any]:
    """All but the maps, for JSON."""
    return {
        "subject": found.subject, "labels": found.labels, "positive": found.positive, "decided": found.decided,
        "logits": found.logits, "probabilities": found.probabilities, "missing": found.missing, "values": found.values,
        "shares": found.shares, "whole": found.whole, "nothing": found.nothing, "modalities": found.modalities,
        "pairs": found.pairs.tolist(), "map_synergy": found.map_synergy, "single": found.single, "joint": found.joint,
        "empty": found.empty, "outside": found.outside, "cells": found.cells,
        "order_dependence": {name: None if value != value else value for name, value in found.order.items()},
    }  # fmt: skip


def sentences(found: BrainEvidence) -> tuple[str, ...]:
    """What has to be known of the evidence, in plain words; nothing where nothing is amiss."""
    said = []
    if found.missing:
        listed = ", ".join(name.upper() for name in found.missing)
        said.append(f"MISSING: {listed}. The network stood in for it with a learned embedding; it has no map.")
    for name in found.unsupported:
        label, moved = found.labels[found.positive], found.values.get(name, 0.0)
        words = f"{name.upper()} moves the logit of {label} by {moved:+.2f}, less than {LEAST_EVIDENCE:g}."
        said.append(f"The {name.upper()} map is no evidence: {words}")
    for name in found.unordered:
        if name in found.unsupported:
            continue
        said.append(
            f"The {name.upper()} map depends on the order of the nodes in the atlas (correlation with the map of "
            f"shuffled nodes {found.order[name]:.2f}): read its share and the ablation of networks, not its edges."
        )
    if found.outside > MOST_OUTSIDE:
        said.append(
            f"{found.outside:.0%} of the ALFF map lay outside the brain, where nothing was measured, and was taken "
            "out: the grid of the network is coarse, or it reacts to the outline of the brain."
        )
    unknown = [name for name, value in found.order.items() if value != value]
    if unknown:
        said.append(f"No order check of {', '.join(name.upper() for name in unknown)}: the map is the same everywhere.")
    empty = [name for name in found.empty if name not in unknown]
    if empty:
        said.append(f"No positive evidence in {', '.join(name.upper() for name in empty)}.")
    return tuple(said)


def _inputs(scaling: Scaling, modalities: tuple[str, ...], subject: SubjectFeatures) -> dict[str, Tensor]:
    batch, present = scaling.inputs([subject])
    there = [name for name, on in zip(MODALITIES, present[0].tolist(), strict=True) if on]
    return {name: batch[name] for name in modalities if name in there}


def _within(values: Array, mask: npt.NDArray[np.bool_]) -> tuple[Array, float]:
    """A map without what lies outside a mask, and which share of its sum that was."""
    kept = np.where(mask, values, np.float32(0))
    total = float(values.sum(dtype=np.float64))
    return kept, 1.0 - float(kept.sum(dtype=np.float64)) / total if total > 0 else 0.0


def _orders(subject: SubjectFeatures, given: Mapping[str, Tensor], seed: int) -> dict[str, npt.NDArray[np.intp]]:
    """Another order of the nodes: one for an atlas, whichever matrices are over it."""
    functional = np.random.default_rng(seed).permutation(len(subject.regions))
    same = subject.fa_regions == subject.regions
    structural = functional if same else np.random.default_rng([seed, 1]).permutation(len(subject.fa_regions))
    return {name: structural if name == "fa" else functional for name in MATRICES if name in given}


def _reordered(values: Tensor, order: npt.NDArray[np.intp] | None) -> Tensor:
    """``[1, 1, N, N, T]`` with other rows and columns."""
    import torch

    if order is None:
        return values
    chosen = torch.as_tensor(order)
    return values[:, :, chosen][:, :, :, chosen]


def _plain(name: str, values: Tensor) -> Array:
    """A map as the feature has its axes; matrices lose their last."""
    array = values.float().cpu().numpy()
    return array if name in ("alff", "dfc") else array.reshape(array.shape[:2])
