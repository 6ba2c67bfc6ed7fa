"""A 3x3 convolution of a map enlarged twice, pixels repeated, without the enlarged map.

An output pixel sees 3x3 pixels of the enlarged map, but only 2x2 different ones of the map itself:

    y[2h + a, 2w + b] = sum over i, j in 0..1 of K_ab[i, j] x[h + i + a - 1, w + j + b - 1]

with one kernel for each phase (a, b), whose numbers are sums of the 3x3 kernel's. Those are 16
products where the enlarged map has 36. All four kernels together are one of 4x4, of a transposed
convolution with stride 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.choice import is_exporting

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


class Enlarge(nn.Conv2d):
    """The convolution: on a CPU by the transposed one, which takes half the time there."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C_out, 2 H, 2 W]."""
        if x.is_cuda or is_exporting():
            return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.conv_transpose2d(x, transposed(self.weight), self.bias, stride=2, padding=1)


def transposed(weight: Tensor) -> Tensor:
    """[C_out, C_in, 3, 3] to the kernel [C_in, C_out, 4, 4] of the transposed convolution."""
    wide = F.pad(weight, (1, 1, 1, 1))
    rows = wide[:, :, 1:] + wide[:, :, :-1]
    kernel = rows[:, :, :, 1:] + rows[:, :, :, :-1]
    return kernel.flip(2, 3).transpose(0, 1)


class InPhases(nn.Module):
    """The same as four convolutions of 2x2, side by side, and one movement of pixels.

    ONNX Runtime and OpenVINO are faster with these than with a transposed convolution.
    """

    def __init__(self, plain: Enlarge) -> None:
        """Sums the kernels; later changes of the weights are not seen."""
        super().__init__()
        kernel = transposed(plain.weight.detach()).transpose(0, 1).flip(2, 3)
        # Of the 4x4 numbers, a phase has every other one.
        phases = [kernel[:, :, a::2, b::2] for a, b in PHASES]
        self.kernels = nn.Parameter(torch.stack(phases).contiguous(), requires_grad=False)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C_out, 2 H, 2 W]."""
        found = [
            F.conv2d(F.pad(x, (1 - b, b, 1 - a, a)), kernel, self.bias)
            for (a, b), kernel in zip(PHASES, self.kernels, strict=True)
        ]
        return F.pixel_shuffle(torch.stack(found, dim=2).flatten(1, 2), 2)
