"""Do synergistic maps point at what was planted, and do modalities and networks get their share?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.explain.connectivity_map import symmetric
from medxai.files import atomic_path
from medxai.learn.brain.settings import MapSettings

if TYPE_CHECKING:
    import torch

    from medxai.explain.synergistic import SynergisticMaps
    from medxai.learn.brain.comparison import Cohort
    from medxai.learn.brain.train import Cases
    from medxai.networks.hierarchical_fusion import HierarchicalFusion

Say = Callable[[str], None]
#: Modalities in which something was planted.
PLANTED = ("alff", "dfc", "sfc")


#: Kinds of map that are compared: markers added to all inputs, channels of the last layer (published), the same of a
#: finer layer, and what channels of that layer cover of the patient inserted into the mean control.
KINDS: dict[str, dict[str, Any]] = {
    "published": {"marker": "relative"},
    "added": {"marker": "relative"},
    "inserted": {"marker": "insert", "weights": "single"},
}


def explain(
    network: HierarchicalFusion,
    inputs: dict[str, torch.Tensor],
    target: int,
    settings: MapSettings,
    kind: str,
    reference: dict[str, torch.Tensor],
) -> SynergisticMaps:
    """Synergistic maps of one subject with the layers of the settings.

    Args:
        network: trained.
        inputs: ``[1, 1, ...]`` by modality.
        target: class.
        settings: layers and strength.
        kind: one of `KINDS`.
        reference: what channels are inserted into, see `mean_controls`.
    """
    from medxai.explain.synergistic import SynergisticOptions, synergistic_maps
    from medxai.networks.resnet10_3d import TARGET_LAYER

    options = SynergisticOptions(gamma=settings.gamma, chunk=settings.chunk, **KINDS[kind])
    encoder = TARGET_LAYER if kind == "published" else settings.encoder
    calls = network.target_calls(tuple(inputs), encoder, settings.pyramid)
    return synergistic_maps(network, inputs, target, options, calls, reference)


def measure(
    network: HierarchicalFusion, drawn: Cohort, settings: MapSettings, folder: Path, say: Say
) -> dict[str, Any]:
    """Maps of test patients against the truth; group means go to ``group_maps.npz``.

    Returns:
        By kind of map and modality: ``hits``, share of maps whose largest value lies in the planted place, ``near``,
        within a cell of the layer's grid of it, ``lift``, share of evidence there over share of the array, each over
        the patients that show the effect, with ``chance``, the place's share of the array; ``shares`` of the evidence
        and ``synergy``, over all patients explained.
    """
    from medxai.explain.evidence_share import evidence_share
    from medxai.explain.group_map import GroupMean

    truth = drawn.planted.truth(len(drawn.subjects[0].features.regions))
    patients = [i for i in drawn.rows["test"] if drawn.subjects[i].label == 1][: settings.subjects]
    groups = {kind: {name: GroupMean() for name in network.modalities} for kind in KINDS}
    rows: dict[str, dict[str, list[tuple[float, float, float]]]] = {
        kind: {name: [] for name in PLANTED} for kind in KINDS
    }
    shares: list[list[float]] = []
    synergy: list[npt.NDArray[np.float64]] = []
    unseen, healthy = mean_embeddings(network, drawn), mean_controls(network, drawn)
    for number, index in enumerate(patients):
        subject = drawn.subjects[index]
        inputs, _ = drawn.scaling.inputs([subject.features])
        inputs = {name: array for name, array in inputs.items() if name in network.modalities}
        for kind in KINDS:
            if kind == "published" and number >= settings.published:
                continue
            found = explain(network, inputs, 1, settings, kind, healthy)
            maps = {name: _readable(name, value.numpy()) for name, value in found.maps.items()}
            for name, group in groups[kind].items():
                group.add(maps[name])
            for name in PLANTED:
                if name in subject.shown and name in maps:
                    rows[kind][name].append(_place(maps[name], truth[name], tuple(found.raw[name].shape)))
        evidence = evidence_share(network, inputs, 1, unseen)
        shares.append([evidence.shares[name] for name in network.modalities])
        synergy.append(evidence.synergy)
        if number % 5 == 4:
            say(f"{folder.parent.name}/{folder.name}: maps of {number + 1} of {len(patients)} patients")
    with atomic_path(folder / "group_maps.npz") as temporary:
        save: Any = np.savez_compressed
        means = {f"{kind}: {name}": group.mean for kind, every in groups.items() for name, group in every.items()}
        save(temporary, **{name: mean.astype(np.float32) for name, mean in means.items()})
    return {
        "patients": len(patients),
        "places": {
            kind: {
                name: {
                    "n": len(values),
                    **dict(zip(("hits", "near", "lift"), np.mean(values, axis=0).tolist(), strict=True)),
                    "chance": float(truth[name].mean()),
                    "group_hit": bool(truth[name].flat[int(groups[kind][name].mean.argmax())]),
                }
                for name, values in every.items()
                if values
            }
            for kind, every in rows.items()
        },
        "shares": dict(zip(network.modalities, np.mean(shares, axis=0).tolist(), strict=True)),
        "synergy": np.mean(synergy, axis=0).tolist(),
    }


def evidence_by_effect(network: HierarchicalFusion, drawn: Cohort) -> dict[str, dict[str, Any]]:
    """Does a modality speak for the class in those test patients who show its effect, and in no others?

    Returns:
        By modality and ``with`` or ``without`` the effect: Shapley values in logits, mean and 5th and 95th percentile,
        number, and the share whose map would be shown (`medxai.explain.brain_evidence.LEAST_EVIDENCE`).
    """
    from medxai.explain.brain_evidence import LEAST_EVIDENCE
    from medxai.explain.evidence_share import evidence_share

    unseen = mean_embeddings(network, drawn)
    rows: dict[str, dict[str, list[float]]] = {name: {"with": [], "without": []} for name in network.modalities}
    for index in drawn.rows["test"]:
        subject = drawn.subjects[index]
        if subject.label != 1:
            continue
        inputs, _ = drawn.scaling.inputs([subject.features])
        found = evidence_share(network, {name: inputs[name] for name in network.modalities}, 1, unseen)
        for name, value in zip(found.modalities, found.values.tolist(), strict=True):
            rows[name]["with" if name in subject.shown else "without"].append(value)
    return {
        name: {
            kind: {
                "n": len(values),
                "mean": float(np.mean(values)),
                "low": float(np.percentile(values, 5)),
                "high": float(np.percentile(values, 95)),
                "shown": float(np.mean(np.array(values) >= LEAST_EVIDENCE)),
            }
            for kind, values in kinds.items()
            if values
        }
        for name, kinds in rows.items()
    }


def mean_controls(network: HierarchicalFusion, drawn: Cohort) -> dict[str, torch.Tensor]:
    """Mean input ``[1, 1, ...]`` by modality of the controls that were learnt from, as the network sees it."""
    healthy = _controls(drawn)
    return {name: healthy.inputs[name].mean(0, keepdim=True) for name in network.modalities}


def mean_embeddings(network: HierarchicalFusion, drawn: Cohort) -> dict[str, torch.Tensor]:
    """Mean embedding of the controls that were learnt from: what stands for not seeing a modality."""
    import torch

    healthy = _controls(drawn)
    total: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(healthy), 16):
            part = healthy.some(range(start, min(start + 16, len(healthy))))
            inputs = {name: array for name, array in part.inputs.items() if name in network.modalities}
            for name, value in network.embed(inputs).items():
                total[name] = total.get(name, torch.zeros(())) + value.sum(0, keepdim=True)
    return {name: value / len(healthy) for name, value in total.items()}


def _controls(drawn: Cohort) -> Cases:
    cases = drawn.cases("train")
    return cases.some(np.flatnonzero(cases.labels.numpy() == 0).tolist())


def _readable(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Matrices without the axis of one, symmetric."""
    if name == "alff":
        return values.astype(np.float64)
    return symmetric(values[..., 0] if name != "dfc" else values)


def _place(
    values: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_], cells: tuple[int, ...]
) -> tuple[float, float, float]:
    """Whether the peak hits, whether it is near, and the lift."""
    peak = np.array(np.unravel_index(int(values.argmax()), values.shape))
    places = np.argwhere(truth)
    reach = np.array([size / cell for size, cell in zip(values.shape, cells, strict=False)])
    near = bool((np.abs(places - peak) <= reach).all(axis=1).any())
    total = float(values.sum())
    lift = float(values[truth].sum()) / total / float(truth.mean()) if total else float("nan")
    return float(truth[tuple(peak)]), float(near), lift
