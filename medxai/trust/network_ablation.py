"""What a model on brain regions owes to each functional network.

After the ablation of Wang et al. 2024, arXiv:2411.07121, who train anew without the visual network. Any model fits
that answers, for a set of regions taken out, with one row a subject: `knock_out` asks a trained model (fast, but the
input is one it never saw), `retrained` trains without the regions (information found nowhere else), and ``only`` turns
the question round (what a network suffices for). Redundant networks show in the last alone.

A larger network always looks more important: each drop is compared with those of random sets of regions as large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medxai.explain.shapley import coalitions, shapley_values
from medxai.trust.network_removal import Array, Mask, Removal

#: ``removed [P]`` -> one row a subject: correctness, log-probability, or what a metric reads.
Score = Callable[[Mask], npt.ArrayLike]
#: Rows of subjects -> one number, more is better.
Metric = Callable[[Array], float]
Mode = Literal["without", "only"]
#: Fewest random sets of a null distribution.
FEWEST = 200


def knock_out(answer: Callable[[Array], npt.ArrayLike], data: npt.ArrayLike, removal: Removal) -> Score:
    """Score of a trained model on data from which regions are taken.

    Args:
        answer: data of the test subjects -> one row each.
        data: of the test subjects.
        removal: how.
    """
    return lambda removed: answer(removal(data, removed))


def retrained(
    fit: Callable[[Array, Array], npt.ArrayLike], training: npt.ArrayLike, data: npt.ArrayLike, removal: Removal
) -> Score:
    """Score of a model that is trained without the regions.

    Args:
        fit: data of training and of test subjects, both without the regions -> one row for each test subject.
        training: of the training subjects.
        data: of the test subjects.
        removal: how.
    """
    return lambda removed: fit(removal(training, removed), removal(data, removed))


@dataclass(frozen=True, eq=False)
class NetworkEffect:
    """What one network does.

    Attributes:
        network: name.
        regions: how many.
        reference: metric with all regions; of mode ``only`` with none.
        metric: without the network; with it alone.
        effect: drop from the reference; gain over it.
        low: lower end of the 95 % interval of `effect` over resampled subjects.
        high: upper end.
        null: ``[R]`` effects of random sets as large; empty where none were drawn.
        z: `effect` in deviations of the null; NaN where that has none.
        p: share of the null, with the effect itself, that is at least as large; NaN without a null.
        p_holm: corrected for the number of networks.
    """

    network: str
    regions: int
    reference: float
    metric: float
    effect: float
    low: float
    high: float
    null: Array
    z: float
    p: float
    p_holm: float

    @property
    def null_mean(self) -> float:
        """Mean effect of the random sets; NaN where none were drawn."""
        return float(self.null.mean()) if len(self.null) else float("nan")

    def sentence(self, what: str = "accuracy") -> str:
        """The effect of taking it out in words."""
        return (
            f"Removing the {self.network} network changed {what} from {self.reference:.3f} to {self.metric:.3f} "
            f"{self.compared(self.reference - self.null_mean)}"
        )

    def compared(self, random: float) -> str:
        """The end of a sentence: corrected p, and what random sets as large changed the metric to."""
        if not len(self.null):
            return "(corrected p=n/a: no random sets were drawn)."
        return f"(corrected p={self.p_holm:.3f}); random sets of the same size changed it to {random:.3f} on average."


class NetworkAblation:
    """Ablations of one model; every set of regions is asked for once.

    Args:
        score: see `Score`.
        networks: of each region; "" for none, which stays with all coalitions and with ``only`` goes.
        metric: mean of the rows if None.

    Raises:
        ValueError: no region has a network.
    """

    def __init__(self, score: Score, networks: Sequence[str], metric: Metric | None = None) -> None:
        self.networks = tuple(sorted(set(networks) - {""}))
        if not self.networks:
            raise ValueError("no region belongs to a network")
        self._labels = np.array(networks)
        self._score, self._metric = score, metric or (lambda rows: float(rows.mean()))
        self._rows: dict[bytes, Array] = {}

    @property
    def asked(self) -> int:
        """Sets of regions the model was asked about so far."""
        return len(self._rows)

    def rows(self, removed: Mask) -> Array:
        """One row a subject, remembered."""
        key = np.packbits(removed).tobytes()
        if key not in self._rows:
            self._rows[key] = np.asarray(self._score(removed), dtype=float)
        return self._rows[key]

    def value(self, removed: Mask) -> float:
        """Metric without some regions."""
        return self._metric(self.rows(removed))

    def members(self, *networks: str) -> Mask:
        """Regions of some networks."""
        return np.isin(self._labels, networks)

    def sets(
        self, modes: Sequence[Mode], draws: int = FEWEST, seed: int = 0, *, pairs: bool = True, all_sets: bool = True
    ) -> list[Mask]:
        """What the other methods ask with the same arguments, for a score that answers many sets at a time.

        Args:
            modes: of `effects`.
            draws: see `effects`, of random sets without positions.
            seed: see `effects`.
            pairs: also those of `synergy`.
            all_sets: also those of `shapley`.
        """
        own = [self.members(name) for name in self.networks]
        found = [self.members(), *own] if pairs else []
        for mode in modes:
            start = self._start(mode)
            null = [chosen for sets in self._null(draws, seed, None).values() for chosen in sets]
            found += [start, *(chosen ^ start for chosen in (*own, *null))]
        found += [a | b for a, b in combinations(own, 2)] if pairs else []
        return found + (self._coalitions() if all_sets else [])

    def effects(
        self,
        mode: Mode = "without",
        draws: int = FEWEST,
        seed: int = 0,
        positions: npt.ArrayLike | None = None,
        resamples: int = 2000,
    ) -> tuple[NetworkEffect, ...]:
        """Effect of every network against random sets as large.

        Args:
            mode: take the network out, or leave nothing else in.
            draws: random sets; 0 for none, and then no p.
            seed: of sets and resamples.
            positions: ``[P, 3]`` mm of the regions; random sets are then a region and its nearest, as contiguous as a
                network can be, else any regions.
            resamples: of the subjects.

        Raises:
            ValueError: fewer than `FEWEST` draws.
        """
        if 0 < draws < FEWEST:
            message = f"{draws} random sets are too few for a null distribution; at least {FEWEST}"
            raise ValueError(message)
        reference, sign = self._start(mode), 1 if mode == "without" else -1
        base, found = self.value(reference), []
        nulls = {
            size: np.array([sign * (base - self.value(chosen ^ reference)) for chosen in sets])
            for size, sets in self._null(draws, seed, positions).items()
        }
        for name in self.networks:
            own = self.members(name)
            size = int(own.sum())
            metric, null = self.value(own ^ reference), nulls[size]
            effect = sign * (base - metric)
            low, high = self._interval(reference, own ^ reference, sign, resamples, seed)
            spread = float(null.std(ddof=1)) if draws else 0.0
            z = (effect - float(null.mean())) / spread if spread > 0 else float("nan")
            p = (1 + int((null >= effect).sum())) / (1 + draws) if draws else float("nan")
            found.append((name, size, base, metric, effect, low, high, null, z, p))
        corrected = holm([item[-1] for item in found])
        return tuple(NetworkEffect(*item, q) for item, q in zip(found, corrected, strict=True))

    def synergy(self) -> Array:
        """``[n, n]`` drop without two networks less the drops without each; positive where one stands in for another.

        Zero diagonal.
        """
        none = self.members()
        full = self.value(none)
        drop = {name: full - self.value(self.members(name)) for name in self.networks}
        found = np.zeros((len(self.networks),) * 2)
        for (i, a), (j, b) in combinations(enumerate(self.networks), 2):
            found[i, j] = found[j, i] = full - self.value(self.members(a, b)) - drop[a] - drop[b]
        return found

    def shapley(self) -> Mapping[str, float]:
        """Exact Shapley values; they sum to the metric with all networks less that with none. Asks 2^n times."""
        worth = [self.value(removed) for removed in self._coalitions()]
        return dict(zip(self.networks, shapley_values(worth).tolist(), strict=True))

    def _coalitions(self) -> list[Mask]:
        """Regions that are gone, in the order of `medxai.explain.shapley.coalitions`."""
        names = np.array(self.networks)
        return [self.members(*names[~present]) for present in coalitions(len(names))]

    def _start(self, mode: Mode) -> Mask:
        """Regions that are gone at the outset."""
        return np.full(len(self._labels), mode == "only")

    def _null(self, draws: int, seed: int, positions: npt.ArrayLike | None) -> dict[int, list[Mask]]:
        """Random sets by size of a network."""
        source, found = np.random.default_rng(seed), {}
        for name in self.networks:
            size = int(self.members(name).sum())
            if size not in found:
                found[size] = random_sets(len(self._labels), size, draws, source, positions)
        return found

    def _interval(self, a: Mask, b: Mask, sign: int, resamples: int, seed: int) -> tuple[float, float]:
        """Percentile interval over subjects, who bring their rows of both with them."""
        first, second = self.rows(a), self.rows(b)
        source = np.random.default_rng(seed)
        drawn = source.integers(0, len(first), (resamples, len(first)))
        effects = [sign * (self._metric(first[chosen]) - self._metric(second[chosen])) for chosen in drawn]
        low, high = np.percentile(effects, [2.5, 97.5])
        return float(low), float(high)


def random_sets(
    regions: int, size: int, draws: int, source: np.random.Generator, positions: npt.ArrayLike | None = None
) -> list[Mask]:
    """Sets of that many regions, see `NetworkAblation.effects`."""
    place: Any = None if positions is None else np.asarray(positions, dtype=float)
    sets = []
    for _ in range(draws):
        chosen = np.zeros(regions, dtype=bool)
        if place is None:
            chosen[source.choice(regions, size, replace=False)] = True
        else:
            distance = np.linalg.norm(place - place[source.integers(regions)], axis=1)
            chosen[np.argsort(distance, kind="stable")[:size]] = True
        sets.append(chosen)
    return sets


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979, Scand J Stat 6:65); p-values in any order, corrected in the same."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    corrected = np.empty_like(stepped)
    corrected[order] = stepped
    found: list[float] = corrected.tolist()
    return found
