"""One batch, one question, one way to remove: what the network says about versions of its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain.chunk import plan_chunk
from medxai.explain.inputs import Inputs, as_inputs
from medxai.explain.masking.masker import Masker, read_score
from medxai.explain.run import Run, Shared
from medxai.explain.split import INPUT, Captured, Forward, infer
from medxai.explain.target import Request, resolve, select_output


@dataclass(frozen=True, eq=False)
class Baseline:
    """What takes the place of what is removed, where no operator of the engine makes it.

    Attributes:
        name: in reports.
        values: ``[B, C, *S]``, or what broadcasts to it.
    """

    name: str
    values: Tensor


class Probe:
    """Scores of masked images.

    Args:
        run: of a batch with its target.
        masking: operator; None takes that of the run.
        score: ``prob`` (probability of the class) or ``logit`` (the target's score), for measures of additivity.

    Attributes:
        clean: ``[B]`` float64 score of the images themselves.
        name: of the operator.
        forwards: images sent through the network so far, without the clean ones.
    """

    def __init__(self, run: Run, masking: str | Baseline | None = None, score: str = "prob") -> None:
        self.run, self.score, self.forwards = run, score, 0
        if isinstance(masking, Baseline):
            self._masker: Masker | None = None
            self.name = masking.name
            self._base = masking.values.to(run.x).expand_as(run.x)
        else:
            self._masker = Masker(run, masking)
            self.name = self._masker.name
        self.clean = read_score(run.target, run.logits, None, score).double().cpu()

    def __len__(self) -> int:
        """Samples of the batch."""
        return len(self.run.x)

    @property
    def spatial(self) -> tuple[int, ...]:
        """``S`` of the images."""
        return self.run.spatial

    def scores(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Scores ``[N]`` float64 of masked images.

        Args:
            masks: ``[N, *S]``, 1 keeps and 0 removes.
            rows: ``[N]``, of which sample each is a version.
        """
        self.forwards += len(masks)
        with torch.inference_mode(False), torch.no_grad():
            if self._masker is not None:
                return self._masker.scores(masks, rows, score=self.score).double().cpu()
            step = self.run.samples_at_once
            parts = [
                self.run.outputs(self.images(masks[i : i + step], rows[i : i + step]), rows[i : i + step])
                for i in range(0, len(masks), step)
            ]
            return read_score(self.run.target, torch.cat(parts), rows, self.score).double().cpu()

    def images(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Masked images ``[N, C, *S]``; arguments as in `scores`.

        Raises:
            ExplainError: the operator works inside the network.
        """
        if self._masker is not None:
            return self._masker.images(masks, rows)
        keep, which = masks[:, None].to(self.run.x), rows.to(self.run.x.device)
        return self.run.x[which] * keep + self._base[which] * (1 - keep)

    def each(self, count: int, masks: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Scores ``[B, count]`` of so many versions of every sample, made in pieces to bound memory.

        Args:
            count: versions.
            masks: ``(rows [n], version [n])`` -> ``[n, *S]``.
        """
        rows = torch.arange(len(self)).repeat_interleave(count)
        which = torch.arange(count).repeat(len(self))
        step = self.run.samples_at_once
        found = [
            self.scores(masks(rows[i : i + step], which[i : i + step]), rows[i : i + step])
            for i in range(0, len(rows), step)
        ]
        return torch.cat(found).view(len(self), count)


def open_run(
    model: nn.Module | Forward,
    x: Tensor,
    classes: Request = "top1",
    *,
    masking: str = "zero",
    seed: int = 0,
    chunk: int | None = None,
) -> Run:
    """The run behind probes of several operators: one clean forward, which also tells how many samples fit at once.

    A larger batch needs a forward of one sample more for that.

    Args:
        model: classifier with ``[B, K]`` logits, or how to run it.
        x: ``[B, C, *S]``.
        classes: as in `medxai.explain.explain`; one class for each sample as a list.
        masking: operator.
        seed: of what operators draw.
        chunk: samples per forward; None measures.

    Raises:
        ExplainError: the network puts out NaN or infinite values for the images themselves.
    """
    forward = model if isinstance(model, Forward) else Forward(model)
    inputs = as_inputs(x)
    size, logits = chunk, None
    if chunk is None and len(inputs.x) == 1 and forward.prepared_for(inputs) is None:
        size, logits = _plan(forward, inputs)
    captured = Captured(infer(forward, inputs) if logits is None else logits, {}, {})
    if not torch.isfinite(captured.logits).all():
        msg = "the network puts out NaN or infinite values for the images themselves"
        raise ExplainError(msg)
    return Run(Shared(forward, inputs, captured, seed, size, masking), resolve(classes, captured.logits), INPUT)


def _plan(forward: Forward, inputs: Inputs) -> tuple[int, Tensor]:
    """How many samples fit, and the output of the one that was tried: the clean forward of a batch of one."""
    seen: list[object] = []
    handle = forward.network.register_forward_hook(lambda _network, _given, output: seen.append(output))
    try:
        size = plan_chunk(forward, inputs)
    finally:
        handle.remove()
    return size, select_output(seen[-1], forward.output)
