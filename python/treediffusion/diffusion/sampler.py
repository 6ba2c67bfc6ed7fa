"""DDIM in PyTorch: from noise to images along a table of steps.

``x0 = clip(a x - b eps)``, ``x' = c x0 + d eps + sigma noise``, the arithmetic of
`schedule.ddim_update`. Time embeddings are computed before the loop and conditions by the caller,
so that a step is one projection and the convolutions. The state keeps the dtype it starts in,
float32 as a rule, also when the network is narrower. Where noise comes from is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..schedule import DDIMTable
from .denoiser import Denoiser


@torch.inference_mode()
def sample(
    denoiser: Denoiser,
    y: Tensor,
    x_start: Tensor,
    table: DDIMTable,
    *,
    noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Images for given conditions.

    Args:
        denoiser: the network, in evaluation mode; on the device of all tensors.
        y: [B, E] float, conditions, in the dtype of the network.
        x_start: [B, C, H, W] float, standard normal; left as it is.
        table: the steps and their coefficients.
        noise: step number, counted from 0, to [B, C, H, W] standard normal in x_start's dtype;
            asked only for steps whose sigma is not 0.

    Returns:
        [B, C, H, W] in the dtype of x_start, inside the table's range if it clips.

    Raises:
        ConfigError: no noise for a table that adds some.
        ShapeError: not one condition for each image.
    """
    assert not denoiser.training, "dropout would act"
    if len(y) != len(x_start):
        raise ShapeError("y", got=tuple(y.shape), expected=f"[{len(x_start)}, E], one per image")
    if noise is None and table.coef[:, 4].any():
        raise ConfigError("noise", got=None, expected="a function of the step, since eta is not 0")
    times = denoiser.time.table(table.timestep)
    x = x_start
    for step, (a, b, c, d, sigma) in enumerate(table.coef.tolist()):
        eps = denoiser.unet(x.to(y.dtype), times[step] + y).to(x.dtype)
        x0 = a * x - b * eps
        if table.clip:
            x0 = x0.clamp(*table.clip_range)
        x = c * x0 + d * eps
        if noise is not None and sigma > 0.0:
            x = x + sigma * noise(step)
    return x
