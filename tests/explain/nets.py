"""Small networks whose explanations have closed forms, and the state that must survive an explanation."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Pooled(nn.Module):
    """Convolutions, ReLU, global average pooling, linear."""

    def __init__(self, dims: int = 3, classes: int = 3, channels: int = 5, cin: int = 1, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        conv = CONV[dims]
        self.body = nn.Sequential(
            conv(cin, 6, 3, stride=2, padding=1), nn.ReLU(inplace=True), conv(6, channels, 3, padding=1)
        )
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.body(x)).flatten(2).mean(-1))


class Flat(nn.Module):
    """Convolution, ReLU, and a linear layer over all positions."""

    def __init__(self, shape: tuple[int, ...], classes: int = 3, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = CONV[len(shape)](1, 4, 3, padding=1, bias=bias)
        self.act = nn.ReLU()
        self.fc = nn.Linear(4 * int(torch.tensor(shape).prod()), classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.conv(x)).flatten(1))


class Tail(nn.Module):
    """Layer ``keep`` hands the image on as its activation; `tail` maps it to logits."""

    def __init__(self, tail: object) -> None:
        super().__init__()
        self.keep, self.tail = nn.Identity(), tail
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.keep(x))  # type: ignore[operator]


def fingerprint(network: nn.Module) -> str:
    """Everything an explanation must leave alone: values, buffers, modes, flags, gradients, hooks, attributes."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    for name, module in network.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        digest.update(f"{name}{module.training}{[len(h) for h in hooks]}{sorted(module.__dict__)}".encode())
        digest.update(f"{type(module)}".encode())
    for name, parameter in network.named_parameters():
        digest.update(f"{name}{parameter.requires_grad}{parameter.grad is None}".encode())
    return digest.hexdigest()
