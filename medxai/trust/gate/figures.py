"""What the gate measures of one map, in at most ten forwards of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from medxai.explain.resize import resize
from medxai.explain.run import Run
from medxai.explain.target import Target
from medxai.trust.controls import centred_gaussian, random_map
from medxai.trust.likeness import spearman
from medxai.trust.probe import Probe
from medxai.trust.units import Units, blocks

#: Share of the image that is removed or kept.
SHARE = 0.2
#: Operators that remove, unless a calibration names others.
MASKING = ("blur", "mean")
#: Noise of the stability figure, as a share of the image's standard deviation.
NOISE = 0.02


@dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes:
        name: key in reports.
        title: for people.
        better: direction of a good map.
        low: what a bad value means, in words.
    """

    name: str
    title: str
    better: Literal["higher", "lower"]
    low: str


FIGURES = (
    Figure("drop", "Removing the map's region lowers the score (log-odds)", "higher",
           "removing what the map shows hardly lowers the score"),
    Figure("drop_second", "The same with a second way of removing", "higher",
           "with a second way of removing, what the map shows hardly matters either"),
    Figure("deletion", "Removing the map's region lowers the score more than removing a random one", "higher",
           "removing what the map shows lowers the score no more than removing a random region"),
    Figure("deletion_centre", "Removing the map's region lowers the score more than removing the centre", "higher",
           "removing what the map shows lowers the score no more than removing the centre of the image"),
    Figure("deletion_second", "The same against a random one, with the second way of removing", "higher",
           "with the second way of removing, the region of the map matters no more than a random one"),
    Figure("insertion", "The map's region alone keeps more of the score than a random one", "higher",
           "what the map shows alone supports the decision no more than a random region"),
    Figure("specificity", "Difference from the map of the runner-up class", "higher",
           "the map of the runner-up class looks the same"),
    Figure("stability", "Likeness of the map under slight noise", "higher",
           "slight noise in the image changes the map"),
    Figure("outside", "Share of the evidence outside the body or on burnt-in graphics", "lower",
           "much of the evidence lies outside the body or on burnt-in graphics"),
)  # fmt: skip
#: Measured of models of one organ; no part of the index.
OF_ORGAN = (
    Figure("outside_lungs", "Share of the evidence outside the lungs", "lower",
           "much of the evidence lies outside the lungs"),
)  # fmt: skip
NAMES = tuple(figure.name for figure in FIGURES)
#: Figures that every map with evidence has.
REMOVAL = ("drop", "drop_second", "deletion", "deletion_centre", "deletion_second", "insertion")


def shown(figures: Mapping[str, float]) -> list[tuple[str, float]]:
    """Titles and values in the order of reports: all of `FIGURES`, and of `OF_ORGAN` those that were measured."""
    rows = [*FIGURES, *(figure for figure in OF_ORGAN if figure.name in figures)]
    return [(figure.title, figures.get(figure.name, float("nan"))) for figure in rows]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A map to judge and its relatives, each ``[*s]`` on the layer's grid or the window's.

    Attributes:
        values: the map of the explained class.
        rival: the map of the runner-up class; None where there is none.
        noisy: the map of the slightly noisy image; None where it was not made.
    """

    values: Tensor
    rival: Tensor | None = None
    noisy: Tensor | None = None


@dataclass(eq=False)
class Bench:
    """One window with its question: controls are run once and serve every map that is judged on it.

    Args:
        run: batch of one.
        masking: two operators.
        seed: of the random region.

    Attributes:
        forwards: images sent through the network here so far.
    """

    run: Run
    masking: Sequence[str] = MASKING
    seed: int = 0
    _known: dict[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Set up probes and units."""
        self.units: Units = blocks(self.run.spatial)
        target = log_odds(self.run.target)
        run = self.run.with_target(target)
        self.probes = [Probe(run, name, score="logit") for name in self.masking]

    @property
    def forwards(self) -> int:
        """Images sent through the network for masked versions."""
        return sum(probe.forwards for probe in self.probes)

    @property
    def clean(self) -> float:
        """Log-odds of the class for the image itself."""
        return float(self.probes[0].clean[0])

    def figures(self, candidate: Candidate, region: Tensor | None = None) -> dict[str, float]:
        """All figures of a map; NaN where one is not defined. A map without evidence has none.

        Args:
            candidate: on any grid.
            region: ``[*S]`` bool, the anatomy in the window; None where that is unknown.
        """
        found = dict.fromkeys(NAMES, float("nan"))
        large = self._large(candidate.values)
        if not bool((large > 0).any()) or not bool(torch.isfinite(large).all()):
            return found
        if region is not None:
            found["outside"] = float(large[0][~region].double().sum() / large.double().sum())
        order = self.units.order(large)
        mine = [self._removed(probe, order) for probe in self.probes]
        found["drop"], found["drop_second"] = self.clean - mine[0], self.clean - mine[1]
        found["deletion"] = self._control("random", 0) - mine[0]
        found["deletion_centre"] = self._control("centre", 0) - mine[0]
        found["deletion_second"] = self._control("random", 1) - mine[1]
        found["insertion"] = self._kept(order) - self._control("random_kept", 0)
        if candidate.rival is not None:
            found["specificity"] = 1 - _likeness(large, self._large(candidate.rival))
        if candidate.noisy is not None:
            found["stability"] = _likeness(large, self._large(candidate.noisy))
        return found

    def _large(self, values: Tensor) -> Tensor:
        return resize(values.detach().float().clamp_min(0)[None], self.run.spatial)

    def _order(self, kind: str) -> Tensor:
        spatial = self.run.spatial
        if kind == "centre":
            return self.units.order(centred_gaussian(1, spatial))
        return self.units.order(random_map(1, spatial, [min(s, 7) for s in spatial], self.seed))

    def _control(self, kind: str, which: int) -> float:
        probe = self.probes[which]
        key = (kind, probe.name)
        if key not in self._known:
            kept = kind == "random_kept"
            order = self._order(kind)
            self._known[key] = self._kept(order) if kept else self._removed(probe, order)
        return self._known[key]

    def _first(self, order: Tensor) -> Tensor:
        count = max(1, round(SHARE * self.units.count))
        return torch.zeros(1, self.units.count).scatter_(1, order[:, :count], 1.0)

    def _removed(self, probe: Probe, order: Tensor) -> float:
        mask = self.units.masks(1 - self._first(order))
        return float(probe.scores(mask, torch.zeros(1, dtype=torch.int64))[0])

    def _kept(self, order: Tensor) -> float:
        mask = self.units.masks(self._first(order))
        return float(self.probes[0].scores(mask, torch.zeros(1, dtype=torch.int64))[0])


def log_odds(target: Target) -> Target:
    """The log-odds of the target's class.

    Unlike its probability they do not saturate, unlike its logit they say something about the other classes.

    Args:
        target: with one class for every sample.
    """
    assert target.classes is not None  # noqa: S101
    classes = target.classes

    def score(output: Tensor) -> Tensor:
        index = classes.to(output.device).expand(len(output)) if len(classes) == 1 else classes.to(output.device)
        if output.shape[1] == 1:
            return output[:, 0] * torch.where(index == 1, 1.0, -1.0)
        own = output.gather(1, index[:, None])[:, 0]
        others = output.scatter(1, index[:, None], -torch.inf).logsumexp(1)
        return own - others

    return Target(f"log-odds of {target.label}", classes=None, function=score)


def _likeness(a: Tensor, b: Tensor) -> float:
    """Spearman correlation on a coarse grid; 0 where one of the maps is constant."""
    step = [max(1, s // 24) for s in a.shape[1:]]
    index = tuple(slice(s // 2, None, s) for s in step)
    value = float(spearman(a[(slice(None), *index)], b[(slice(None), *index)])[0])
    return 0.0 if value != value else value
