"""Which of the T timesteps a sampler visits.

    quadratic   t_k = floor(p_k^2),  p on a line from 0 to sqrt(0.8 T)
    uniform     multiples of a stride
    karras      s_k^(1/7) on a line, s = sigma / alpha
    logsnr      log(alpha^2 / sigma^2) on a line

The first two look at T alone and are the published lists of TreeDiffusion; the last two look at the
noise of each timestep, and run from the last one to the first. NumPy only.
"""

from __future__ import annotations

import math
import operator
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError

Spacing = Literal["uniform", "quadratic", "karras", "logsnr"]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Published: quadratic spacing starts here, where 96 % of the signal is gone already.
QUADRATIC_REACH = 0.8
# Karras et al. 2022: the larger, the more steps lie at little noise.
RHO = 7.0


def inference_steps(log_snr: Float64, count: int, *, spacing: Spacing) -> Int64:
    """The timesteps a sampler visits, in the order it visits them.

    Args:
        log_snr: [T] float64, descending: what each timestep leaves of the image.
        count: steps asked for.
        spacing: where they lie.

    Returns:
        [S] int64, descending. Only quadratic spacing has S below `count`, where squares merge.

    Raises:
        ConfigError: not a positive count, one that the spacing cannot give, or not a spacing.
    """
    count = at_least_one("num_inference_steps", count)
    if spacing not in get_args(Spacing):
        expected = f"one of {', '.join(get_args(Spacing))}"
        raise ConfigError("spacing", got=repr(spacing), expected=expected)
    timesteps = len(log_snr)
    if count > timesteps:  # before any list is as long
        raise ConfigError(
            "num_inference_steps", got=count, expected=f"at most {timesteps}, the timesteps"
        )
    if spacing == "quadratic":
        ascending = _quadratic(timesteps, count)
    elif spacing == "uniform":
        ascending = np.arange(0, timesteps, _stride(timesteps, count), dtype=np.int64)
    elif spacing == "karras":
        ascending = _nearest(np.exp(log_snr / (-2.0 * RHO)), count)
    else:
        ascending = _nearest(-log_snr, count)
    return ascending[::-1].copy()


def at_least_one(name: str, value: object) -> int:
    """The value as an integer.

    Raises:
        ConfigError: it is not a positive integer.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(name, got=repr(value), expected="an integer of at least 1")
    return number


def _quadratic(timesteps: int, count: int) -> Int64:
    points = np.linspace(0.0, math.sqrt(QUADRATIC_REACH * timesteps), count)
    return np.unique((points**2).astype(np.int64))


def _stride(timesteps: int, count: int) -> int:
    """The smallest stride of which exactly `count` multiples lie below T."""
    strides = {-(-timesteps // k): k for k in range(timesteps, 0, -1)}
    if count in strides:
        return strides[count]
    feasible = sorted(strides)
    above = int(np.searchsorted(feasible, count))
    first = max(min(above - 1, len(feasible) - 2), 0)
    nearest = " or ".join(str(number) for number in feasible[first : first + 2])
    raise ConfigError(
        "num_inference_steps",
        got=count,
        expected=f"{nearest} for uniform spacing of {timesteps} timesteps",
        hint="take one of these, or quadratic spacing",
    )


def _nearest(scale: Float64, count: int) -> Int64:
    """[count] distinct timesteps nearest to equal distances on a scale, both ends among them.

    Where two would be the same timestep, the later ones move on to the next free one. A single
    step is the last timestep, where sampling starts.

    Args:
        scale: [T] float64, ascending.
        count: steps asked for.
    """
    timesteps = len(scale)
    if count == 1:
        return np.array([timesteps - 1], np.int64)
    targets = np.linspace(scale[0], scale[-1], count)
    place = np.rint(np.interp(targets, scale, np.arange(timesteps))).astype(np.int64)
    # Less its rank, a strictly ascending list is one that does not descend.
    rank = np.arange(count)
    return np.minimum(np.maximum.accumulate(place - rank), timesteps - count) + rank
