"""3D convolutions of arrays with one place along the last axis, such as matrices taken for volumes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ThinConv3d(nn.Conv3d):
    """`torch.nn.Conv3d` that spares the multiplications with its own zero padding where the last axis has size 1.

    There only the middle of the kernel meets the array; a kernel of 3 takes a third of the work. Odd kernels with
    half of their size as padding and no dilation; others are convolved as usual.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, D, H, W]`` -> ``[N, C', D', H', W']``."""
        *_, kernel = self.kernel_size
        if x.shape[-1] != 1 or self.padding != tuple(k // 2 for k in self.kernel_size) or kernel % 2 == 0:
            return super().forward(x)
        if self.padding_mode != "zeros" or self.dilation != (1, 1, 1):
            return super().forward(x)
        middle = self.weight[..., kernel // 2]
        flat: Tensor = functional.conv2d(
            x[..., 0], middle, self.bias, self.stride[:2], self.padding[:2], groups=self.groups
        )
        return flat[..., None]
