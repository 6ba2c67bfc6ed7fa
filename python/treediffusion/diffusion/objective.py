"""What the denoiser is trained on: ``| eps - eps(x_t, t, y) |`` at a random timestep.

``x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps`` with t uniform over all timesteps and no
weighting. Where the condition y comes from is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

NoisePredictor = Callable[[Tensor, Tensor, Tensor], Tensor]


def add_noise(x0: Tensor, eps: Tensor, t: Tensor, coefs: Tensor) -> Tensor:
    """x_t.

    Args:
        x0: [B, C, H, W] float, images.
        eps: [B, C, H, W] float, noise.
        t: [B] int64, timesteps.
        coefs: [T, 2] float, factors of x0 and eps: `DiffusionSchedule.add_noise_coefs`.

    Returns:
        [B, C, H, W] float.
    """
    signal, noise = coefs[t][:, :, None, None, None].unbind(dim=1)
    return signal * x0 + noise * eps


def diffusion_loss(
    denoiser: NoisePredictor,
    x0: Tensor,
    y: Tensor,
    coefs: Tensor,
    *,
    loss: Literal["l2", "l1"],
) -> Tensor:
    """The loss of a batch, at timesteps and with noise from PyTorch's global generator.

    Args:
        denoiser: (x_t, t, y) to the predicted noise.
        x0: [B, C, H, W] float, images in the network's pixel range.
        y: [B, E] float, conditions.
        coefs: [T, 2] float, `DiffusionSchedule.add_noise_coefs` in the images' dtype and place.
        loss: mean squared or mean absolute error.

    Returns:
        [] float.
    """
    t = torch.randint(len(coefs), (len(x0),), device=x0.device)
    eps = torch.randn_like(x0)
    predicted = denoiser(add_noise(x0, eps, t, coefs), t, y).to(eps.dtype)
    return F.mse_loss(predicted, eps) if loss == "l2" else F.l1_loss(predicted, eps)
