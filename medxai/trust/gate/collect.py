"""Genuine and broken explanations of validation cases, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medxai.errors import TrustError
from medxai.explain.engine import load_methods
from medxai.explain.split import Forward
from medxai.explain.target import decided
from medxai.predict.infer import fuse_logits
from medxai.predict.windows import plan_windows
from medxai.prepare.prepare import prepare
from medxai.study import Volume
from medxai.trust.body import graphics
from medxai.trust.gate.assess import Maps, anatomy_of, explain_window, open_bench, window_of
from medxai.trust.gate.broken import (
    burn_marker,
    features_before,
    last_linear,
    permuted,
    shuffled,
    with_new_head,
    with_random_weights,
)
from medxai.trust.gate.figures import MASKING, Candidate
from medxai.trust.gate.fit import GENUINE, Case

if TYPE_CHECKING:
    from medxai.predict.bundle import Bundle

Say = Callable[[str, int, int], None]
#: Images whose statistics set the normalisation of randomised networks.
_SETTLING = 16


@dataclass(frozen=True, eq=False)
class Item:
    """The decisive window of one case.

    Attributes:
        patient: group.
        x: ``[1, C, *size]``.
        index: decided class.
        region: ``[*size]`` anatomy, None where unknown.
        ultrasound: burnt-in graphics are taken out of the region.
        label: name of the class.
    """

    patient: str
    x: Tensor
    index: int
    region: Tensor | None
    ultrasound: bool = False
    label: str = ""


def make_item(bundle: Bundle, network: nn.Module, volume: Volume, patient: str) -> Item:
    """The window that decides a case."""
    prepared = prepare(volume, bundle.spec.preparation)
    windows = plan_windows(prepared.pixels.shape[1:], bundle.spec.preparation)
    logits = []
    with torch.no_grad():
        for which in range(len(windows)):
            logits.append(network(torch.from_numpy(windows.extract(prepared.pixels, [which]))).numpy())
    fused, weights = fuse_logits(np.concatenate(logits), bundle.spec)
    index = int(np.argmax(fused))
    strongest = int(np.argmax(weights[:, index]))
    x = torch.from_numpy(windows.extract(prepared.pixels, [strongest]))
    region = window_of(anatomy_of(volume, prepared.grid), windows, strongest)
    return Item(patient, x, index, region, volume.modality == "US", bundle.spec.labels[index])


def collect(
    network: nn.Module,
    items: Sequence[Item],
    *,
    method: str,
    layer: str,
    masking: Sequence[str] = MASKING,
    seed: int = 0,
    say: Say | None = None,
) -> tuple[list[Case], dict[str, str]]:
    """Figures of every item's own map and of its broken versions.

    Args:
        network: in evaluation mode.
        items: at least two.
        method: explanation method.
        layer: target layer.
        masking: two operators.
        seed: of everything drawn.
        say: told ``(what, step, steps)``.

    Returns:
        The cases, and why a kind of broken explanation is missing.

    Raises:
        TrustError: too few items.
    """
    if len(items) < 2:
        msg = f"{len(items)} case(s): broken explanations need at least two"
        raise TrustError(msg)
    options = load_methods([method])[0][1]
    tell = say or (lambda _what, _step, _steps: None)

    def maps(net: nn.Module, x: Tensor, index: int) -> Maps:
        return explain_window(Forward(net), x, index, method, options, layer, seed)

    settling = torch.cat([item.x for item in items[:_SETTLING]])
    random_net = with_random_weights(network, settling, seed)
    heads, missing = _heads(network, items, seed)
    own = []
    for number, item in enumerate(items):
        tell("explain", number, 2 * len(items))
        own.append(maps(network, item.x, item.index))
    found: list[Case] = []
    for number, item in enumerate(items):
        tell("measure", len(items) + number, 2 * len(items))
        bench = open_bench(Forward(network), item.x, item.index, masking, seed)
        mine = own[number]
        other = own[_another(items, number)]
        count = int(bench.run.logits.shape[1])
        least = int(bench.run.logits[0].argmin()) if count > 1 else 1 - item.index
        candidates = {
            GENUINE: Candidate(mine.values, mine.rival, mine.noisy),
            "randomised weights": _candidate(maps(random_net, item.x, item.index)),
            "shuffled map": _shuffled(mine, seed + number),
            "another patient": _candidate(other),
        }
        if least != item.index:
            wrong = maps(network, item.x, least)
            candidates["wrong class"] = Candidate(wrong.values, mine.rival, wrong.noisy)
        if "permuted labels" in heads:
            candidates["permuted labels"] = _candidate(maps(heads["permuted labels"], item.x, item.index))
        for kind, candidate in candidates.items():
            found.append(Case(kind, item.patient, bench.figures(candidate, item.region), item.label))
        if "shortcut marker" in heads:
            found.append(_marked(heads["shortcut marker"], item, maps, masking, seed))
    return found, missing


def _candidate(maps: Maps) -> Candidate:
    return Candidate(maps.values, maps.rival, maps.noisy)


def _shuffled(maps: Maps, seed: int) -> Candidate:
    """The same disorder for a map and its noisy relative; the runner-up's map stays."""
    noisy = None if maps.noisy is None else shuffled(maps.noisy, seed)
    return Candidate(shuffled(maps.values, seed), maps.rival, noisy)


def _another(items: Sequence[Item], number: int) -> int:
    """The next item of another patient."""
    for step in range(1, len(items)):
        index = (number + step) % len(items)
        if items[index].patient != items[number].patient:
            return index
    return (number + 1) % len(items)


def _marked(
    network: nn.Module, item: Item, maps: Callable[[nn.Module, Tensor, int], Maps], masking: Sequence[str], seed: int
) -> Case:
    """A network that reads a marker, on an image with the marker, judged by that network's own answers."""
    x = burn_marker(item.x)
    with torch.no_grad():
        index = int(decided(network(x))[0])
    bench = open_bench(Forward(network), x, index, masking, seed)
    region = item.region
    if region is not None and item.ultrasound:  # what the gate itself finds of the marker in the image
        region = region & ~torch.from_numpy(graphics(x[0].numpy()))
    figures = bench.figures(_candidate(maps(network, x, index)), region)
    return Case("shortcut marker", item.patient, figures, item.label)


def _heads(network: nn.Module, items: Sequence[Item], seed: int) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Networks whose last layer learnt something wrong, and why one could not be made."""
    heads: dict[str, nn.Module] = {}
    labels = [item.index for item in items]
    try:
        layer = last_linear(network)
        plain = features_before(network, layer, [item.x for item in items])
        heads["permuted labels"] = with_new_head(network, layer, plain, permuted(labels, seed), seed)
        # Half of the images carry the marker, and those are the ones of one class.
        marked = features_before(network, layer, [burn_marker(item.x) for item in items])
        values = sorted(set(labels))
        which = [values[0]] * len(plain) + [values[-1]] * len(marked)
        heads["shortcut marker"] = with_new_head(network, layer, torch.cat([plain, marked]), which, seed)
    except TrustError as error:
        reason = error.reason
        return heads, {kind: reason for kind in ("permuted labels", "shortcut marker") if kind not in heads}
    return heads, {}
