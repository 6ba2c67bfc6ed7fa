"""Weights as the kernel reads them, with a norm folded in."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_conv(
    weight: Tensor, *, scale: Tensor | None = None, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A stack's weights, taps first and outputs last; scale conv(x) + shift is one convolution.

    Args:
        weight: [N, D, C, 3, 3] float.
        scale: [N, D] float, of a norm in eval mode, gamma / sqrt(var + eps); none is 1.
        shift: [N, D] float, beta - mean scale, or a bias; none is 0.

    Returns:
        [N, 9, C, D] weights and [N, D] biases, contiguous.
    """
    if scale is not None:
        weight = weight * scale[..., None, None, None]
    packed = weight.flatten(3).permute(0, 3, 2, 1).contiguous()
    bias = torch.zeros_like(packed[:, 0, 0]) if shift is None else shift.contiguous()
    return packed, bias
