"""DDIM as published (Song et al. 2021, equation 12), written out: what the solver is compared with.

The noise that is kept is the network's own estimate, also where the estimate of x0 was limited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from treediffusion.schedule import DiffusionSchedule

Floats = np.ndarray[Any, np.dtype[Any]]


class DDIMTable(NamedTuple):
    """Rows by step: timestep [S], coef [S, 5] with columns a, b, c, d, sigma, and the limits."""

    timestep: Floats
    coef: Floats
    clip: bool
    clip_range: tuple[float, float]


def ddim_table(
    schedule: DiffusionSchedule,
    steps: Sequence[int] | Floats,
    *,
    eta: float = 0.0,
    clip: bool = True,
    clip_range: tuple[float, float] = (-1.0, 1.0),
) -> DDIMTable:
    """Coefficients along timesteps that descend."""
    timestep = np.asarray(steps)
    here = schedule.alpha_bar[timestep]
    after = np.append(here[1:], 1.0)
    sigma = eta * np.sqrt((1.0 - after) / (1.0 - here)) * np.sqrt(1.0 - here / after)
    columns = (
        np.sqrt(1.0 / here),
        np.sqrt(1.0 / here - 1.0),
        np.sqrt(after),
        np.sqrt(1.0 - after - sigma**2),
        sigma,
    )
    return DDIMTable(timestep, np.stack(columns, axis=1), clip, clip_range)


def ddim_update(
    x: Floats,
    eps: Floats,
    row: Floats,
    *,
    clip_range: tuple[float, float] | None,
    noise: Floats | None = None,
) -> Floats:
    """x0 = clip(a x - b eps), x' = c x0 + d eps + sigma noise, in the type of x."""
    a, b, c, d, sigma = np.asarray(row, x.dtype)
    eps = eps.astype(x.dtype, copy=False)
    x0 = a * x - b * eps
    if clip_range is not None:
        x0 = np.clip(x0, *clip_range)
    x_next = c * x0 + d * eps
    return x_next if sigma == 0 else x_next + sigma * noise.astype(x.dtype, copy=False)
