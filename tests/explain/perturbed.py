"""Networks whose perturbation maps are known in closed form."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from medxai.explain.inputs import as_inputs
from medxai.explain.run import Run, Shared
from medxai.explain.split import Captured, Forward, infer
from medxai.explain.target import resolve


class Linear(nn.Module):
    """Logits ``(0, <w, x> + bias)``; counts the images it sees."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 2]``."""
        self.seen += len(x)
        y = (x * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack((torch.zeros_like(y), y), 1)


class Constant(nn.Module):
    """A convolution that nothing comes of: the same logits for every image."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.features = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 6, 3, padding=1)
        self.logits = nn.Parameter(torch.tensor([0.3, 1.2]))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 2]``."""
        self.features(x)
        return self.logits.expand(len(x), 2)


class _Counted(nn.Module):
    """A convolution that counts the images it computes on."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.seen = conv, 0

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        self.seen += len(x)
        return self.conv(x)


class Pooled(nn.Module):
    """Convolution, ReLU, mean over positions, linear; counts the images its stem sees."""

    def __init__(self, dims: int, channels: int = 6, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(dims)
        self.stem = _Counted((nn.Conv2d if dims == 2 else nn.Conv3d)(1, channels, 3, stride=2, padding=1))
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels, classes)

    @property
    def seen(self) -> int:
        """Images that went through the stem."""
        return self.stem.seen

    @seen.setter
    def seen(self, value: int) -> None:
        self.stem.seen = value

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, classes]``."""
        return self.fc(self.act(self.stem(x)).flatten(2).mean(-1))


def make_run(network: nn.Module, x: Tensor, target: object = 1, **shared: object) -> Run:
    """A run without a layer."""
    inputs = as_inputs(x)
    forward = Forward(network)
    logits = infer(forward, inputs)
    return Run(Shared(forward, inputs, Captured(logits, {}, {}), **shared), resolve(target, logits), "input")  # type: ignore[arg-type]


def state(network: nn.Module) -> tuple[str, int, tuple[bool, ...], tuple[bool, ...], bool]:
    """What must not change: values, number of hooks, modes, requires_grad, and no gradients."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    hooks = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + ("forward" in vars(m))
        for m in network.modules()
    )
    return (
        digest.hexdigest(),
        hooks,
        tuple(m.training for m in network.modules()),
        tuple(p.requires_grad for p in network.parameters()),
        all(p.grad is None for p in network.parameters()),
    )
