"""What the denoiser is trained on: the distance of its output to its target, at random noise.

    x_t = alpha x0 + sigma eps,   loss = | F - F(x_t, t, y) |
    eps:  F = eps
    v:    F = sigma x0 / d - d alpha eps,   d the deviation of x0, 1 on a linear schedule

Linear schedules draw t uniformly from all timesteps. EDM's (Karras et al. 2022) draw the noise's
deviation s = sigma / alpha from ln s ~ N(-1.2, 1.2^2) and hand the network the t, between
timesteps, where the schedule has that s.

EDM trains D = c_skip x + c_out F on lambda |D - x0|^2, with x = x_t / alpha = x0 + s eps. As
c_skip = d^2 alpha^2 and c_out = d sigma, D - x0 is c_out (F - v); lambda = 1 / c_out^2 then leaves
|F - v|^2 without a weight, which costs 1 at every s before anything is learnt. With prediction v
that is the loss of this module. Where the condition y comes from is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..schedule import DiffusionSchedule
from ..spacing import RHO

NoisePredictor = Callable[[Tensor, Tensor, Tensor], Tensor]

LOG_LEVEL_MEAN, LOG_LEVEL_STD = -1.2, 1.2
"""Of ln s; published for EDM's images of all sizes."""


def add_noise(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_t.

    Args:
        x0: [B, C, H, W] float, images.
        eps: [B, C, H, W] float, noise.
        alpha: [B, 1, 1, 1] float, factor of the images.
        sigma: [B, 1, 1, 1] float, factor of the noise.

    Returns:
        [B, C, H, W] float.
    """
    return alpha * x0 + sigma * eps


class DiffusionLoss:
    """The loss of a batch, at times and with noise from PyTorch's global generator.

    Calls have a fixed sequence of operations on fixed shapes and read no value back, as compilers
    and CUDA graphs ask.
    """

    def __init__(
        self,
        schedule: DiffusionSchedule,
        *,
        prediction: Literal["eps", "v"],
        loss: Literal["l2", "l1"],
        like: Tensor,
    ) -> None:
        """Puts the tables in place.

        Args:
            schedule: of the noise.
            prediction: what the network's output is.
            loss: mean squared or mean absolute error.
            like: any tensor of the images' dtype and device.
        """
        self._kind, self._prediction, self._loss = schedule.kind, prediction, loss
        self._data_std, self._last = schedule.data_std, schedule.timesteps - 1
        self._coefs = torch.from_numpy(schedule.add_noise_coefs).to(like)
        alpha, sigma = schedule.alpha[[0, -1]], schedule.sigma[[0, -1]]
        self._low, self._high = ((sigma / alpha) ** (1.0 / RHO)).astype(np.float64).tolist()

    def __call__(self, denoiser: NoisePredictor, x0: Tensor, y: Tensor) -> Tensor:
        """The loss.

        Args:
            denoiser: (x_t, t, y) to the predicted noise or v.
            x0: [B, C, H, W] float, images in the network's pixel range.
            y: [B, E] float, conditions.

        Returns:
            [] float.
        """
        t, alpha, sigma = self._times(x0)
        eps = torch.randn_like(x0)
        target = eps if self._prediction == "eps" else self._v(x0, eps, alpha, sigma)
        predicted = denoiser(add_noise(x0, eps, alpha, sigma), t, y).to(eps.dtype)
        return (F.mse_loss if self._loss == "l2" else F.l1_loss)(predicted, target)

    def _times(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t, [B] int64 or, for EDM, float; alpha and sigma, [B, 1, 1, 1] each."""
        if self._kind == "linear":
            t = torch.randint(len(self._coefs), (len(x0),), device=x0.device)
            alpha, sigma = self._coefs[t][:, :, None, None, None].unbind(dim=1)
            return t, alpha, sigma
        # Half precision would leave gaps between the t, so this is float32 at least.
        dtype = torch.promote_types(x0.dtype, torch.float32)
        drawn = torch.randn(len(x0), device=x0.device, dtype=dtype)
        level = (LOG_LEVEL_MEAN + LOG_LEVEL_STD * drawn).exp()
        t = (level ** (1.0 / RHO) - self._low) * (self._last / (self._high - self._low))
        alpha = (level.square() + self._data_std**2).rsqrt()
        factors = torch.stack([alpha, level * alpha]).to(x0.dtype)
        alpha, sigma = factors[:, :, None, None, None].unbind(dim=0)
        return t, alpha, sigma

    def _v(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(x0 - d^2 alpha x_t) / (d sigma) without its quotient, which would lose digits."""
        return (sigma / self._data_std) * x0 - (self._data_std * alpha) * eps
