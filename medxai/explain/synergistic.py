"""Synergistic Activation Map: Score-CAM of a network with several inputs, all of them changed at once.

Shen et al. 2024, arXiv:2401.06780. The k-th channel of every modality's layer, enlarged to its input, marks all inputs
together; what the score gains weights that channel everywhere. No gradient is taken and the network is left as it was.

Layers are read by the number of their call, since one encoder serves several modalities. Modalities have channels of
different number: the fewer are repeated. What does not depend on the others is computed once: each marked input of a
modality is encoded one time, however often it is repeated, and the scores of single modalities cost no encoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.calls import capture
from medxai.explain.enlarge import enlarge, scaled_maps
from medxai.explain.modes import evaluation
from medxai.explain.resize import resize

#: Published strength of the markers, in the units of the input.
PUBLISHED_GAMMA = 10.0
#: Subjects of whom only embeddings exist that are classified at once.
_ROWS = 64


class FusionNetwork(Protocol):
    """What a network with several inputs offers; an `nn.Module`, see `medxai.networks.hierarchical_fusion`."""

    modalities: tuple[str, ...]

    def encode(self, name: str, array: Tensor) -> Tensor:
        """Embeddings ``[B, F]`` of arrays of one modality."""

    def embed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings by modality, also of those that `inputs` lacks."""

    def classify(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Logits ``[B, K]``."""

    def target_calls(self, inputs: Sequence[str] | None = None) -> dict[str, str]:
        """Layer call by modality that is given."""


@dataclass(frozen=True)
class SynergisticOptions:
    """How inputs are changed and channels weighted.

    Attributes:
        marker: ``relative`` adds `gamma` standard deviations of the input times the channel, ``absolute`` adds
            `gamma` times the channel (published, with 10), ``mask`` multiplies the input by the channel as Score-CAM
            does, ``insert`` puts what the channel covers of the subject into a reference, and gains are over the
            reference. A subject who already has all the evidence gains nothing from more of it, so that markers leave
            the channels nearly equal; into a reference evidence comes in parts.
        gamma: see `marker`; without effect for ``mask`` and ``insert``.
        weights: ``joint``, all inputs are changed together and share a weight, or ``single``, each modality's weights
            come from changing it alone.
        repeats: a channel that was repeated gets the ``sum`` of its weights, or the ``first`` (published).
        score: ``logit`` or ``prob`` of the class.
        chunk: inputs that exist at once.
    """

    marker: Literal["relative", "absolute", "mask", "insert"] = "relative"
    gamma: float = 1.0
    weights: Literal["joint", "single"] = "joint"
    repeats: Literal["sum", "first"] = "sum"
    score: Literal["logit", "prob"] = "logit"
    chunk: int = 16

    def __post_init__(self) -> None:
        """Check ranges and names."""
        for name, known in (
            ("marker", ("relative", "absolute", "mask", "insert")),
            ("weights", ("joint", "single")),
            ("repeats", ("sum", "first")),
            ("score", ("logit", "prob")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.chunk < 1 or self.gamma <= 0:
            raise ValueError("chunk is at least 1 and gamma positive")


@dataclass(frozen=True, eq=False)
class SynergisticMaps:
    """Maps of one subject, for one class; a modality that is missing has none.

    Attributes:
        target: explained class.
        score: of the subject as it is.
        start: score that gains are over: `score`, for ``insert`` that of the reference.
        raw: ``[*s]`` by modality, weighted sum of channels on the layer's grid, negative parts removed.
        spatial: ``S`` of the inputs by modality.
        increments: ``[K]`` gain of the score with all inputs changed by channel k.
        single: ``[K]`` by modality, gain with it alone changed.
        weights: ``[C]`` by modality, weights of its channels; they sum to 1 (to less where ``repeats`` is ``first``).
        empty: modalities whose map is zero everywhere.
    """

    target: int
    score: float
    start: float
    raw: dict[str, Tensor]
    spatial: dict[str, tuple[int, ...]]
    increments: Tensor
    single: dict[str, Tensor]
    weights: dict[str, Tensor]
    empty: tuple[str, ...]

    @property
    def maps(self) -> dict[str, Tensor]:
        """``[*S]`` by modality from 0 to 1, 1 most important; an empty map stays 0."""
        return {name: _unit(resize(raw[None], self.spatial[name])[0]) for name, raw in self.raw.items()}

    @property
    def synergy(self) -> Tensor:
        """``[K]`` gain of all inputs together less the sum of the gains alone; 0 for a score that only adds."""
        return self.increments - torch.stack(list(self.single.values())).sum(0)


def synergistic_maps(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    target: int,
    options: SynergisticOptions = SynergisticOptions(),
    calls: Mapping[str, str] | None = None,
    reference: Mapping[str, Tensor] | None = None,
) -> SynergisticMaps:
    """Explain one subject; missing modalities are not among `inputs`.

    Args:
        network: a `FusionNetwork`; evaluated in evaluation mode and left as it was.
        inputs: ``[1, C, *S]`` by modality.
        target: class.
        options: see `SynergisticOptions`.
        calls: layer call by modality, ``layer#number``, in place of the network's own.
        reference: ``[1, C, *S]`` by modality for ``insert``, such as the mean of the controls; zeros if None, which are
            the mean training subject where every element was scaled by itself.

    Raises:
        ExplainError: none or more than one subject, no such class, a layer without channels that differ anywhere, or a
            reference of another shape.
    """
    given = {name: inputs[name] for name in network.modalities if name in inputs}  # type: ignore[union-attr]
    if not given or any(len(array) != 1 for array in given.values()):
        raise ExplainError("a synergistic map is of one subject: inputs are [1, C, *S], at least one of them")
    where = dict(calls or network.target_calls(tuple(given)))  # type: ignore[operator]
    if set(where) != set(given):
        raise ExplainError(f"layers are named for {', '.join(where)} and inputs given for {', '.join(given)}")
    with torch.inference_mode(), evaluation(network):
        values, logits = capture(network, given, list(where.values()))
        if not 0 <= target < logits.shape[1]:
            raise ExplainError(f"there is no class {target} among {logits.shape[1]}")
        activations = {name: values[call][0].float() for name, call in where.items()}
        clean = _score(logits, target, options.score)[0]
        base = _reference(given, reference) if options.marker == "insert" else given
        alone = network.embed(base)  # type: ignore[operator]
        start = _score(network.classify(alone), target, options.score)[0] if base is not given else clean  # type: ignore[operator]
        marked = {name: _marked(network, name, given[name], base[name], activations[name], options) for name in given}
        return _weigh(network, activations, given, alone, marked, clean, start, target, options)


def _reference(given: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if reference is None:
        return {name: torch.zeros_like(array) for name, array in given.items()}
    wrong = [name for name, array in given.items() if name not in reference or reference[name].shape != array.shape]
    if wrong:
        raise ExplainError(f"the reference has no {wrong[0]}, or one of another shape than the subject's")
    return {name: reference[name].to(array) for name, array in given.items()}


def _weigh(
    network: nn.Module,
    activations: dict[str, Tensor],
    given: dict[str, Tensor],
    alone: dict[str, Tensor],
    marked: dict[str, Tensor],
    clean: Tensor,
    start: Tensor,
    target: int,
    options: SynergisticOptions,
) -> SynergisticMaps:
    count = max(len(embeddings) for embeddings in marked.values())
    places = {name: torch.arange(count) % len(embeddings) for name, embeddings in marked.items()}

    def gains(changed: Sequence[str], rows: int) -> Tensor:
        found = []
        for first in range(0, rows, _ROWS):
            last = min(first + _ROWS, rows)
            embeddings = {name: value.expand(last - first, -1) for name, value in alone.items()}
            embeddings |= {name: marked[name][places[name][first:last]] for name in changed}
            found.append(_score(network.classify(embeddings), target, options.score))  # type: ignore[operator]
        return torch.cat(found) - start

    increments = gains(tuple(given), count)
    own = {name: gains((name,), len(marked[name])) for name in given}
    alive = {name: _alive(activation) for name, activation in activations.items()}
    shared = torch.stack([alive[name][places[name]] for name in given]).any(0)
    if not shared.any():
        raise ExplainError("every channel of every layer is constant: there is nothing to mark")
    joint = increments.masked_fill(~shared, -torch.inf).softmax(0)
    weights, raw = {}, {}
    for name, activation in activations.items():
        channels = len(activation)
        if options.weights == "single":
            weights[name] = own[name].masked_fill(~alive[name], -torch.inf).softmax(0).nan_to_num(0.0)
        elif options.repeats == "first":
            weights[name] = joint[:channels]
        else:
            weights[name] = torch.zeros(channels).to(joint).index_add_(0, places[name], joint)
        raw[name] = torch.tensordot(weights[name], activation, 1).clamp_min(0)
    return SynergisticMaps(
        target,
        float(clean),
        float(start),
        raw,
        {name: tuple(array.shape[2:]) for name, array in given.items()},
        increments,
        {name: own[name][places[name]] for name in given},
        weights,
        tuple(name for name, values in raw.items() if not bool(values.any())),
    )


def _marked(
    network: nn.Module, name: str, array: Tensor, base: Tensor, activation: Tensor, options: SynergisticOptions
) -> Tensor:
    """Embeddings ``[C, F]`` of the array marked by each channel; `options.chunk` marked arrays exist at once."""
    spatial = array.shape[2:]
    small = scaled_maps(activation, spatial)
    gamma = options.gamma * (float(array.std(correction=0)) if options.marker == "relative" else 1.0)
    found = []
    for start in range(0, len(small), options.chunk):
        marks = enlarge(small[start : start + options.chunk], spatial)[:, None].to(array)
        if options.marker == "insert":
            changed = marks.mul_(array - base).add_(base)
        else:
            changed = array * marks if options.marker == "mask" else marks.mul_(gamma).add_(array)
        found.append(network.encode(name, changed))  # type: ignore[operator]
    return torch.cat(found)


def _alive(activation: Tensor) -> Tensor:
    """``[C]`` bool, False for channels that are the same everywhere and mark nothing."""
    flat = activation.flatten(1)
    return flat.amax(1) > flat.amin(1)


def _score(logits: Tensor, target: int, kind: str) -> Tensor:
    return (logits.softmax(1) if kind == "prob" else logits)[:, target].float()


def _unit(values: Tensor) -> Tensor:
    """From 0 to 1; one that is the same everywhere becomes 0."""
    low, high = values.amin(), values.amax()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
