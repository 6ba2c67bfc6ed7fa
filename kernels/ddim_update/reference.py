"""The truth, in the precision of x, and every product and sum rounded on its own."""

from __future__ import annotations

import torch
from torch import Tensor


def ddim_update(
    x: Tensor,
    output: Tensor,
    row: Tensor,
    *,
    step: Tensor | None = None,
    clip_range: tuple[float, float] | None,
    noise: Tensor | None = None,
) -> Tensor:
    """x, output, noise: [...] float, row: [5], or [K, 5] with step: [] int -> [...] like x."""
    if step is not None:
        # An index that is a tensor of no dimensions would be read back by the host.
        row = row.index_select(0, step.reshape(1))[0]
    a, b, c, e, tau = row.unbind()
    output = output.to(x.dtype)
    x0 = a * x - b * output
    if clip_range is not None:
        x0 = x0.clamp(*clip_range)
    y = c * x0 + e * output
    return y if noise is None else torch.where(tau == 0, y, y + tau * noise)
