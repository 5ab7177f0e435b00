"""Tables and page of a network ablation: what was asked, how to read it, every effect with its interval and p."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.export.ablation_chart import effect_chart, synergy_picture
from medxai.files import write_text

if TYPE_CHECKING:
    from medxai.trust.network_ablation import NetworkEffect

#: Metrics in words.
METRICS = {"log_probability": "log-probability of the true class", "auroc": "AUROC"}
#: How the networks were asked about.
KINDS = {
    "trained": "The trained network, regions taken from its input",
    "linear": "A linear model of the edges, trained anew in folds",
    "network": "The bundle's architecture, trained anew in folds",
}
_UNITS = {"log_probability": "log-probability of the true class (nats)", "auroc": "AUROC"}
_MODES = {"without": ("Drop", "Without a network"), "only": ("Gain", "With a network alone")}
#: Schaefer et al. 2018 (Cereb Cortex 28:3095), after Yeo et al. 2011.
_LONG = {
    "Vis": "visual", "SomMot": "somatomotor", "DorsAttn": "dorsal attention",
    "SalVentAttn": "salience and ventral attention", "Limbic": "limbic", "Cont": "frontoparietal control",
    "Default": "default mode",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Findings:
    """One metric of one kind of ablation.

    Attributes:
        kind: key of `KINDS`.
        metric: key of `METRICS`.
        networks: names, in the order of `synergy`.
        effects: by mode, ``without`` and maybe ``only``.
        synergy: ``[n, n]``; None where pairs were not asked about.
        shapley: by network; None where not all sets were asked about.
    """

    kind: str
    metric: str
    networks: tuple[str, ...]
    effects: Mapping[str, Sequence[NetworkEffect]]
    synergy: npt.NDArray[np.float64] | None
    shapley: Mapping[str, float] | None

    def name(self, what: str) -> str:
        """Name of a picture."""
        return f"{'' if self.kind == 'trained' else 'retrained_'}{self.metric}_{what}.png"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        pairs = None if self.synergy is None else {"networks": self.networks, "matrix": self.synergy.tolist()}
        return {
            "effects": {
                mode: [{**_row(e), "sentence": sentence(e, mode, METRICS[self.metric])} for e in effects]
                for mode, effects in self.effects.items()
            },
            "shapley": None if self.shapley is None else dict(self.shapley),
            "synergy": pairs,
        }


def sentence(effect: NetworkEffect, mode: str, what: str = "the score") -> str:
    """An effect in words: the sentence of `NetworkEffect`, turned round for a network alone."""
    if mode == "without":
        return effect.sentence(what)
    return (
        f"The {effect.network} network alone changed {what} from {effect.reference:.3f} (nothing) to "
        f"{effect.metric:.3f} {effect.compared(effect.reference + effect.null_mean)}"
    )


def write_pictures(out: Path, found: Sequence[Findings], subjects: int) -> list[Path]:
    """Charts of effects and of pairs; their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for item in found:
        for mode, effects in item.effects.items():
            verb, title = _MODES[mode]
            paths.append(out / item.name(mode))
            about = f"{title}. {KINDS[item.kind]}; {subjects} subjects"
            effect_chart(effects, paths[-1], _UNITS[item.metric], verb, about)
        if item.synergy is not None:
            paths.append(out / item.name("synergy"))
            synergy_picture(item.synergy, item.networks, paths[-1], _UNITS[item.metric])
    return paths


def write_table(path: Path, found: Sequence[Findings]) -> Path:
    """One row for each kind, metric, mode and network."""
    heads = ("kind", "metric", "mode", "network", "regions", "reference", "value", "effect", "low", "high", "null_mean",
             "z", "p", "p_holm", "shapley")  # fmt: skip
    rows = []
    for item in found:
        for mode, effects in item.effects.items():
            for e in effects:
                worth = float("nan") if item.shapley is None else item.shapley[e.network]
                numbers = (e.reference, e.metric, e.effect, e.low, e.high, e.null_mean, e.z, e.p, e.p_holm, worth)
                rows.append((item.kind, item.metric, mode, e.network, e.regions, *(number(v) for v in numbers)))
    return write_tsv(path, heads, rows)


def write_page(path: Path, about: Mapping[str, Any], found: Sequence[Findings]) -> Path:
    """``ablation.md``: how to read it, tables, sentences and pictures.

    Args:
        path: to write.
        about: ``model``, ``classes`` (label to number of subjects), ``positive``, ``taken_from``, ``left_in``,
            ``operator``, ``draws``, ``fa_left_in``, and ``retrained``: None or ``folds``, ``group_by``, ``draws``.
        found: in the order of the page.
    """
    lines = ["# Ablation of functional networks", "", *_how(about, found), *_reading(about, found)]
    kind = ""
    for item in found:
        if item.kind != kind:
            kind = item.kind
            lines += [f"## {KINDS[kind]}", "", *_kind(about, item)]
        lines += [f"### {METRICS[item.metric][0].upper()}{METRICS[item.metric][1:]}", ""]
        for mode, effects in item.effects.items():
            lines += [*_effects(item, mode, effects), f"![{_MODES[mode][1]}]({item.name(mode)})", ""]
        if item.synergy is not None:
            lines += [f"![Joint drop of two networks less their single drops]({item.name('synergy')})", ""]
    return write_text(path, "\n".join(lines))


def write_tsv(path: Path, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """Tab-separated, one line a row."""
    return write_text(path, "\n".join(["\t".join(heads), *("\t".join(map(str, row)) for row in rows)]) + "\n")


def number(value: float) -> str:
    """Six digits, ``n/a`` for NaN."""
    return "n/a" if math.isnan(value) else f"{value:.6g}"


def _row(effect: NetworkEffect) -> dict[str, Any]:
    names = ("network", "regions", "reference", "metric", "effect", "low", "high", "null_mean", "z", "p", "p_holm")
    values = {name: getattr(effect, name) for name in names}
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in values.items()}


def _how(about: Mapping[str, Any], found: Sequence[Findings]) -> list[str]:
    counts = ", ".join(f"{count} {label}" for label, count in about["classes"].items())
    lines = [
        f"{about['model']}; {sum(about['classes'].values())} subjects ({counts}). Regions are taken from "
        f"{_listed(about['taken_from'])}: in each, the rows and columns of the network's regions, in all windows. "
        f"Left as they are: {_listed(about['left_in']) or 'nothing'}.",
        "", "Research marker, not a diagnosis.", "",
    ]  # fmt: skip
    if about["fa_left_in"]:
        lines += ["FA is over other regions than functional connectivity, so that networks stay in it.", ""]
    known = [f"{name} is {_LONG[name]}" for name in found[0].networks if name in _LONG]
    return [*lines, f"Names of networks: {'; '.join(known)}.", ""] if known else lines


def _reading(about: Mapping[str, Any], found: Sequence[Findings]) -> list[str]:
    count = len(found[0].networks)
    least = min(1.0, count / (1 + about["draws"]))
    lines = [
        "## How to read it", "",
        "- **Drop**: metric with all regions less that without the network. Positive: the score was better with it. "
        "Negative: it misled. **Gain**: metric with this network alone less that with none.",
        "- **Log-probability of the true class**: mean over subjects, natural logarithm; 0 is certain and right, -0.69 "
        f"undecided between two classes. **AUROC** of {about['positive']}: 0.5 is chance, 1 perfect.",
        "- **Interval**: 95 % over resampled subjects, the model being as it is. It speaks of other subjects, not of "
        "the network's size.",
        f"- **Random sets** (the null): {about['draws']} sets of as many regions, drawn from all whatever their "
        "network; the orange band holds 95 % of their effects. A large network changes more because it is large; "
        "p is the share of random sets whose drop (or gain) is at least as large.",
        f"- **p** is one-sided (a network that misled is near 1) and corrected after Holm over {count} networks; "
        f"{about['draws']} sets cannot give less than {least:.3f}. Over 0.05 does not mean that the "
        "network is not used: another may stand in for it.",
        "- **Shapley value**: the network's share of the whole between all networks and none, averaged over all orders "
        "of taking them out; no size is taken into account.",
        "- **Synergy** of two networks: drop without both less the two single drops. Positive where these are "
        "small: one stands in for the other. Negative: the two drops overlap, as where both are needed for the same. "
        "Synergy and Shapley values have no interval and no null here: do not read small ones.",
    ]  # fmt: skip
    if len({item.kind for item in found}) > 1:
        lines += [
            "- **Taken from a trained model** asks what this model uses, with inputs it never saw in training. "
            "**Trained anew without** asks whether the information is found nowhere else; it is learnt from these "
            "subjects alone, so that its level says little of the bundle.",
        ]
    return [*lines, ""]


def _kind(about: Mapping[str, Any], item: Findings) -> list[str]:
    if item.kind == "trained":
        stand = {"mean": "the mean of the bundle's controls", "permute": "another subject's values",
                 "noise": "noise with their mean and the subjects' deviation"}  # fmt: skip
        return [f"In place of a region stands {stand[about['operator']]}.", ""]
    again = about["retrained"]
    kept = f"subjects of one {again['group_by']} in one fold" if again["group_by"] else "every subject by itself"
    lines = [f"{again['folds']} folds, {kept}; everybody is scored by a model that has not learnt from them."]
    if item.kind == "linear":
        lines += [
            f"Logistic regression with a square penalty (C = {again['strength']:g}) on the edges of "
            f"{_listed(about['taken_from'])}; of DFC mean and standard deviation over windows. ALFF is not read."
        ]
    else:
        lines += [f"{again['epochs']} epochs from the same random weights; what is not taken out is read as before."]
    if not again["draws"]:
        lines += ["No random sets were trained without: there is no null distribution and no p (n/a)."]
    return [" ".join(lines), ""]


def _effects(item: Findings, mode: str, effects: Sequence[NetworkEffect]) -> list[str]:
    verb, title = _MODES[mode]
    first = effects[0]
    start = "all regions" if mode == "without" else "no region"
    lines = [
        f"**{title}** (with {start}: {first.reference:.3f})", "",
        f"| network | regions | {METRICS[item.metric]} | {verb.lower()} | 95 % interval | random sets (mean) | "
        "p (Holm) | Shapley |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for e in effects:
        worth = "n/a" if item.shapley is None else f"{item.shapley[e.network]:+.3f}"
        cells = (e.network, e.regions, f"{e.metric:.3f}", f"{e.effect:+.3f}", f"{e.low:+.3f} to {e.high:+.3f}",
                 _or(e.null_mean, "+.3f"), _or(e.p_holm, ".3f"), worth)  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, "", *(f"- {sentence(e, mode, METRICS[item.metric])}" for e in effects), ""]


def _or(value: float, form: str) -> str:
    return "n/a" if math.isnan(value) else format(value, form)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.upper() for name in names)
