"""A depthwise 3D convolution that trains plane by plane on the CPU, where PyTorch's own backward pass is slow.

oneDNN has fast kernels for depthwise convolutions of planes, none for the gradients of volumes. A kernel of depth k is
a sum of k plane convolutions of shifted slices, so that the numbers are the same up to rounding. In eval mode the
module is a plain ``nn.Conv3d``, which is what explanations and compilers see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class DepthwiseConv3d(nn.Conv3d):
    """``[N, C, D, H, W]`` -> same, one odd cubic kernel a channel, stride 1, zeros around, no bias.

    Args:
        channels: C.
        kernel: side of the kernel.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        if not self.training or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        y: Tensor = _Planes.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return y


class _Planes(torch.autograd.Function):
    """The convolution as a sum over the depth of its kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        slices = x.contiguous(memory_format=torch.channels_last_3d)
        ctx.save_for_backward(slices, weight)
        y = torch.zeros_like(slices)
        for index, source, target in _offsets(x.shape[2], weight.shape[2]):
            planes = _flat(slices[:, :, source])
            part = functional.conv2d(planes, weight[:, :, index], padding=weight.shape[2] // 2, groups=x.shape[1])
            y[:, :, target] += _volume(part, len(x))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0]
        wanted: tuple[bool, bool] = ctx.needs_input_grad
        dx, dw = torch.zeros_like(x), torch.zeros_like(weight)
        pad = weight.shape[2] // 2
        for index, source, target in _offsets(x.shape[2], weight.shape[2]):
            part, kernel, _ = torch.ops.aten.convolution_backward(
                _flat(gradient[:, :, target]),
                _flat(x[:, :, source]),
                weight[:, :, index],
                None,
                [1, 1],
                [pad, pad],
                [1, 1],
                False,
                [0, 0],
                x.shape[1],
                [*wanted, False],
            )
            if wanted[0]:
                dx[:, :, source] += _volume(part, len(x))
            if wanted[1]:
                dw[:, :, index] = kernel
        return (dx if wanted[0] else None), (dw if wanted[1] else None)


def _offsets(depth: int, kernel: int) -> Iterator[tuple[int, slice, slice]]:
    """Plane of the kernel, the slices it reads and the slices it writes."""
    for index in range(kernel):
        shift = index - kernel // 2
        first, last = max(0, -shift), min(depth, depth - shift)
        if first < last:
            yield index, slice(first + shift, last + shift), slice(first, last)


def _flat(volume: Tensor) -> Tensor:
    """``[N, C, D, H, W]`` -> ``[N * D, C, H, W]``, channels last."""
    planes = volume.permute(0, 2, 1, 3, 4)
    return planes.reshape(-1, *planes.shape[2:]).contiguous(memory_format=torch.channels_last)


def _volume(planes: Tensor, batch: int) -> Tensor:
    return planes.reshape(batch, -1, *planes.shape[1:]).permute(0, 2, 1, 3, 4)
