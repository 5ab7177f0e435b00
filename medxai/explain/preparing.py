"""Preparing a network: convert, prove on inputs that the maps stay the same, measure, store."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medxai.errors import BundleError
from medxai.explain.calls import capture
from medxai.explain.replay import ReplayPlan, plan_replay, replaying
from medxai.predict.arithmetic import Precision
from medxai.predict.openvino_engine import convert, processor_runs
from medxai.predict.prepared import (
    Manifest,
    Prepared,
    backend_version,
    network_sha256,
    processor_sha256,
    store_prepared,
)

#: float32: largest difference over the largest value, of stem outputs, logits and maps.
RELATIVE_ERROR = 1e-4
#: Correlation of every decided class's map with the exact one.
CORRELATION = 0.999
#: Shares of the stem that compute in float32 where bfloat16 alone is not good enough, as far as it is still worth it.
_EXACT = (0.15, 0.3, 0.45, 0.6)
#: Interleaved runs of each of the timings.
_RUNS = 7
#: Draws of rounding for each input.
_DRAWS = 16

Say = Callable[[str, int, int], None]


class _Stem(nn.Module):
    """The network up to a layer, as a module: what follows is dead code when it is exported."""

    def __init__(self, network: nn.Module, calls: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.calls = calls

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values, _ = capture(self.network, x, self.calls)
        return tuple(values[call] for call in self.calls)


@dataclass(frozen=True)
class Fidelity:
    """Prepared against exact, the worst over all inputs.

    Attributes:
        stem_error: largest difference of a stem output over its largest value.
        logit_error: the same of the logits.
        map_error: the same of the raw Grad-CAM maps of the decided classes.
        correlation: Pearson, of these maps.
        decisions: share of inputs with the same decided class.
        inputs: how many.
    """

    stem_error: float
    logit_error: float
    map_error: float
    correlation: float
    decisions: float
    inputs: int

    def refusal(self, precision: Precision, rounding: Rounding | None = None) -> str | None:
        """Why this is not good enough, in a phrase; None if it is. NaN never is.

        Args:
            precision: of the prepared network.
            rounding: of the exact network, where it is known: nothing can be nearer to it than it is to itself.
        """
        if self.decisions != 1.0:
            return f"{1 - self.decisions:.0%} of the inputs are decided otherwise"
        if not self.correlation >= CORRELATION:
            return f"maps correlate by {self.correlation:.5f}, needed is {CORRELATION}"
        if precision == "bfloat16":
            return None
        for what in ("stem", "logit", "map"):
            error = getattr(self, f"{what}_error")
            # Two results of the same rounding are up to twice as far from each other as from the truth.
            allowed = max(RELATIVE_ERROR, 2 * getattr(rounding, what)) if rounding else RELATIVE_ERROR
            if not error <= allowed:
                return f"relative error of the {what} {error:.1e}, allowed is {allowed:.1e}"
        return None


@dataclass(frozen=True)
class Rounding:
    """How far single precision takes the exact network from double precision; the largest over all inputs.

    Attributes:
        stem: relative, as in `Fidelity`.
        logit: likewise.
        map: likewise; activations are moved by what rounding does to them, in several draws, because where a unit
            lies within rounding of zero its gradient jumps.
    """

    stem: float
    logit: float
    map: float


def prepare(
    network: nn.Module,
    example: Tensor,
    layer: str,
    folder: Path,
    *,
    precision: Precision = "float32",
    batch: int = 1,
    samples: Tensor | None = None,
    name: str = "network",
    sha256: str | None = None,
    say: Say | None = None,
) -> Prepared:
    """Prepare a network for inputs of one size and store it, if it is as good as the network itself.

    Args:
        network: classifier with ``[B, K]`` logits on the CPU; left as it was.
        example: ``[B, C, *S]`` of the size in use; serves as sample when there are no others.
        layer: target layer, ``name`` or ``name#k``.
        folder: of this precision; files in it are replaced.
        precision: bfloat16 needs a processor that has it, and samples.
        batch: samples that are run at once, beside single ones.
        samples: ``[N, C, *S]`` real inputs on which fidelity is judged. Required for bfloat16, whose error
            on noise through a trained network says nothing.
        name: of the bundle, for its manifest.
        sha256: of the bundle; None takes `network_sha256`.
        say: told ``(what, step, steps)``.

    Raises:
        BundleError: OpenVINO is missing, the network cannot be converted, or it is not good enough.
        ExplainError: the network cannot be replayed from `layer`.
    """
    tell = say or (lambda _what, _step, _steps: None)
    if precision == "bfloat16" and samples is None:
        msg = "bfloat16 is judged on real inputs; give samples"
        raise BundleError(msg)
    if not processor_runs(precision):
        msg = f"this processor does not compute in {precision}; prepare with float32"
        raise BundleError(msg)
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        tell("find what the layer needs", 0, 5)
        plan = plan_replay(network, example, layer)
        tell("convert the layers up to the target", 1, 5)
        stem = convert(_Stem(network, plan.values), example)
        tell("convert the whole network", 2, 5)
        whole = convert(network, example)
        files = {"stem.xml": stem[0], "stem.bin": stem[1], "whole.xml": whole[0], "whole.bin": whole[1]}
        stated = Manifest(
            name=name,
            sha256=sha256 or network_sha256(network),
            backend=backend_version(),
            torch=str(torch.__version__),
            processor=processor_sha256(),
            precision=precision,
            layer=layer,
            outputs=plan.values,
            plan=plan.to_json(),
            shape=tuple(example.shape[1:]),
            batch=batch,
            files={file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
            measured={},
        )
        prepared = Prepared(stated, files)
        tell("compare maps", 3, 5)
        judged = example if samples is None else samples
        fidelity = compare(network, prepared, judged)
        refusal, kept = fidelity.refusal(precision), {}
        if refusal and precision == "bfloat16":
            tell("look for layers that need float32", 3, 5)
            for share in _EXACT:
                mixed = prepared.exact_until(share)
                better = compare(network, mixed, judged)
                if better.refusal(precision) is None:
                    prepared, stated, fidelity, refusal = mixed, mixed.manifest, better, None
                    kept = {"float32_share": share}
                    break
        rounding = None
        if refusal and fidelity.refusal(precision, Rounding(1, 1, 1)) is None:
            tell("compare with double precision", 3, 5)
            rounding = measure_rounding(network, plan, judged)
            refusal = fidelity.refusal(precision, rounding)
        if refusal:
            msg = f"not prepared in {precision}: {refusal}"
            raise BundleError(msg)
        tell("measure", 4, 5)
        measured = kept | _numbers(fidelity, rounding) | measure_speed(network, prepared, judged[:1])
    finally:
        for module in training:
            module.training = True
    manifest = stated.model_copy(update={"measured": measured})
    digest = store_prepared(folder, manifest, files)
    tell("done", 5, 5)
    return Prepared(manifest, files, digest)


def compare(network: nn.Module, prepared: Prepared, samples: Tensor) -> Fidelity:
    """Run `samples` one by one both ways and return the worst differences.

    Args:
        network: the exact one, in evaluation mode.
        prepared: of the same network.
        samples: ``[N, C, *S]``.
    """
    plan = ReplayPlan.from_json(prepared.plan)
    worst: dict[str, list[float]] = {"stem": [], "logit": [], "map": [], "correlation": [], "same": []}
    for number in range(len(samples)):
        x = samples[number : number + 1]
        with torch.no_grad():
            exact, logits = capture(network, x, plan.values)
        stem = prepared.stem(x)
        whole = prepared.whole(x)
        index = decided(logits)
        reference, _ = tail_map(network, x, plan, exact, index)
        got, through = tail_map(network, x, plan, stem, index)
        worst["stem"] += [_difference(stem[key], exact[key]) for key in plan.values]
        worst["logit"] += [_difference(whole, logits), _difference(through, logits)]
        worst["map"].append(_difference(got, reference))
        worst["correlation"].append(_correlation(got, reference))
        worst["same"].append(float(decided(whole) == index == decided(through)))
        if not number and prepared.manifest.batch > 1:  # full batches run other products than single samples
            many = x.expand(prepared.manifest.batch, *x.shape[1:])
            together, stems = prepared.whole(many), prepared.stem(many)
            worst["logit"] += [_difference(row[None], logits) for row in together]
            worst["stem"] += [_difference(row[None], exact[key]) for key in plan.values for row in stems[key]]
            worst["same"] += [float(decided(row[None]) == index) for row in together]
    return Fidelity(
        stem_error=_largest(worst["stem"]),
        logit_error=_largest(worst["logit"]),
        map_error=_largest(worst["map"]),
        correlation=-_largest([-value for value in worst["correlation"]]),
        decisions=sum(worst["same"]) / len(worst["same"]),
        inputs=len(samples),
    )


def measure_rounding(network: nn.Module, plan: ReplayPlan, samples: Tensor) -> Rounding:
    """The exact network against itself in double precision.

    Args:
        network: in evaluation mode; copied.
        plan: of the target layer.
        samples: ``[N, C, *S]``.

    Raises:
        BundleError: the network does not run in double precision.
    """
    try:
        double = copy.deepcopy(network).double()
        return _rounding(network, double, plan, samples)
    except RuntimeError as error:
        msg = f"not as exact as float32, and it does not run in double precision: {' '.join(str(error).split())[:120]}"
        raise BundleError(msg) from error


def _rounding(network: nn.Module, double: nn.Module, plan: ReplayPlan, samples: Tensor) -> Rounding:
    found: dict[str, list[float]] = {"stem": [], "logit": [], "map": []}
    generator = torch.Generator().manual_seed(0)
    for number in range(len(samples)):
        x = samples[number : number + 1]
        with torch.no_grad():
            single, logits = capture(network, x, plan.values)
            exact, sure = capture(double, x.double(), plan.values)
        index = decided(logits)
        found["stem"] += [_difference(single[key], exact[key]) for key in plan.values]
        found["logit"].append(_difference(logits, sure))
        reference, _ = tail_map(double, x.double(), plan, exact, index)
        found["map"].append(_difference(tail_map(network, x, plan, single, index)[0], reference))
        for _ in range(_DRAWS):
            moved = {key: value + _shuffled(single[key] - value, generator) for key, value in exact.items()}
            found["map"].append(_difference(tail_map(double, x.double(), plan, moved, index)[0], reference))
    return Rounding(*(_largest(found[what]) for what in ("stem", "logit", "map")))


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(values.numel(), generator=generator)
    return values.flatten()[order].view(values.shape)


def tail_map(
    network: nn.Module, x: Tensor, plan: ReplayPlan, values: Mapping[str, Tensor], index: int
) -> tuple[Tensor, Tensor]:
    """Raw Grad-CAM map ``[B, *s]`` and logits ``[B, K]`` of a class, from stored stem outputs.

    Args:
        network: as in `plan`.
        x: ``[B, C, *S]`` the input of the values.
        plan: of the target layer.
        values: output of the stem.
        index: the class; for a single logit ``z``, 1 is ``z`` and 0 is ``-z``.
    """
    activation = values[plan.layer].detach()
    with torch.inference_mode(False), torch.enable_grad():
        leaf = activation.clone().requires_grad_()
        with replaying(network, plan, {**values, plan.layer: leaf}):
            logits = network(x)
        score = logits[:, index] if logits.shape[1] > 1 else logits[:, 0] * (1 if index else -1)
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
    weights = gradient.flatten(2).mean(-1)
    raw = (weights.unsqueeze(1) @ activation.flatten(2)).view(len(activation), *activation.shape[2:])
    return raw, logits.detach()


def decided(logits: Tensor) -> int:
    """Decided class of one sample ``[1, K]``: the largest logit, or the sign of a single one."""
    return int(logits[0, 0] > 0) if logits.shape[1] == 1 else int(logits[0].argmax())


def measure_speed(network: nn.Module, prepared: Prepared, x: Tensor) -> dict[str, float]:
    """Seconds of both ways, runs interleaved: a Grad-CAM of ``x [1, C, *S]``, and a batch of the whole network.

    The least of the runs: what else the machine does only adds.
    """
    plan = ReplayPlan.from_json(prepared.plan)
    many = x.expand(prepared.manifest.batch, *x.shape[1:]).contiguous()

    def exact_map() -> object:
        with torch.inference_mode():
            values, _ = capture(network, x, plan.values, stop=True)
        return tail_map(network, x, plan, values, 0)

    def exact_whole() -> object:
        with torch.inference_mode():
            return network(many)

    calls: dict[str, Callable[[], object]] = {
        "map_seconds_network": exact_map,
        "map_seconds_prepared": lambda: tail_map(network, x, plan, prepared.stem(x), 0),
        "batch_seconds_network": exact_whole,
        "batch_seconds_prepared": lambda: prepared.whole(many),
    }
    seconds: dict[str, list[float]] = {what: [] for what in calls}
    for run in range(_RUNS + 1):
        for what in calls if run % 2 else reversed(calls):
            start = time.perf_counter()
            calls[what]()
            if run:  # the first compiles
                seconds[what].append(time.perf_counter() - start)
    return {what: min(values) for what, values in seconds.items()}


def _numbers(fidelity: Fidelity, rounding: Rounding | None) -> dict[str, float]:
    own = {} if rounding is None else {f"{what}_rounding": value for what, value in asdict(rounding).items()}
    return own | {
        "stem_error": fidelity.stem_error,
        "logit_error": fidelity.logit_error,
        "map_error": fidelity.map_error,
        "map_correlation": fidelity.correlation,
        "inputs": float(fidelity.inputs),
    }


def _difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value; two zeros are equal."""
    if torch.equal(got, expected):
        return 0.0
    return float((got - expected).abs().max() / expected.abs().max())


def _correlation(got: Tensor, expected: Tensor) -> float:
    """Pearson; a constant map correlates only with itself."""
    if torch.equal(got, expected):
        return 1.0
    both = torch.stack([got.flatten(), expected.flatten()]).double()
    return float(torch.corrcoef(both)[0, 1])


def _largest(values: list[float]) -> float:
    """Maximum that NaN wins."""
    return float(torch.tensor(values, dtype=torch.float64).max())
