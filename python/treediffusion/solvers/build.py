"""From the name of a solver and a list of noise levels to its table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError
from . import methods
from .levels import Levels
from .table import Float64, SolverTable, from_rows

if TYPE_CHECKING:
    from ..schedule import DiffusionSchedule
    from ..spacing import Spacing

Solver = Literal["ddim", "ddpm", "ddpm_small", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "ipndm"]
Prediction = Literal["eps", "v"]

SOLVERS: tuple[str, ...] = get_args(Solver)
DETERMINISTIC: Mapping[str, Callable[[Levels], Float64]] = {
    "heun": methods.heun,
    "dpmpp_2m": lambda levels: methods.multistep(levels, highest=2),
    "dpmpp_3m": lambda levels: methods.multistep(levels, highest=3),
    "unipc": lambda levels: methods.unipc(levels, highest=3),
    "ipndm": methods.ipndm,
}
# alpha^2 data^2 + sigma^2 = 1 is held to this: float32 levels pass, other coordinates do not.
UNIT_VARIANCE = 1e-5


def solver_table(
    solver: str,
    timestep: ArrayLike,
    alpha: ArrayLike,
    sigma: ArrayLike,
    *,
    prediction: Prediction = "eps",
    sigma_data: float = 1.0,
    eta: float = 0.0,
    clip: bool = True,
    clip_range: tuple[float, float] = (-1.0, 1.0),
    end: tuple[float, float] = (1.0, 0.0),
) -> SolverTable:
    """The coefficients of a solver along a list of levels.

    "ipndm" never clips: its history is of eps, which a clipped estimate of x0 would change by
    alpha / sigma times what was cut. All others do as `clip` says.

    Args:
        solver: one of `SOLVERS`.
        timestep: [S] integers, what the network receives at each level.
        alpha: [S] factor of x0 at each level.
        sigma: [S] factor of eps; sigma / alpha descends.
        prediction: what the network gives. "eps": the noise. "v": the output of EDM's
            preconditioning (Karras et al. 2022), (sigma x0 - alpha sigma_data^2 eps) / sigma_data,
            for x of unit variance: -v of Salimans and Ho (2022) where sigma_data is 1.
        sigma_data: deviation of the pixels.
        eta: for "ddim": 0 adds no noise after the start, 1 as much as DDPM's posterior.
        clip: whether the estimate of x0 is limited to `clip_range`.
        clip_range: lowest and highest pixel value.
        end: alpha and sigma after the last step. At sigma 0 the last x is the last estimate of x0.

    Returns:
        S rows; 2 S - 1 for "heun".

    Raises:
        ConfigError: an unknown solver or prediction, an eta that it cannot have, levels that do
            not descend in noise, or an empty clip range.
    """
    if solver not in SOLVERS:
        raise ConfigError("solver", got=repr(solver), expected=f"one of {', '.join(SOLVERS)}")
    if not 0.0 <= eta <= 1.0 or (eta and solver != "ddim"):
        raise ConfigError("eta", got=eta, expected="0, or up to 1 with 'ddim'")
    if not (math.isfinite(sigma_data) and sigma_data > 0):
        raise ConfigError("sigma_data", got=sigma_data, expected="a deviation above 0")
    low, high = (float(bound) for bound in clip_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError("clip_range", got=clip_range, expected="two numbers, lowest first")
    times = np.asarray(timestep)
    if not (times.ndim == 1 and times.size > 0 and np.issubdtype(times.dtype, np.integer)):
        raise ConfigError("timestep", got=repr(timestep), expected="[S] integers, at least one")
    levels = Levels.checked(alpha, sigma, end, steps=times.size)
    a, b = _estimate(levels, prediction, sigma_data)
    if solver == "ddim" and prediction == "eps":
        rows = np.stack([a, b, levels.alpha[1:], *methods.ddim(levels, eta=eta)], axis=1)
        return from_rows(times, rows, clip=clip, clip_range=(low, high))
    if solver == "ipndm":
        # eps = (x - alpha d) / sigma, written so that nothing is left to cancel.
        a = np.zeros_like(a) if prediction == "eps" else levels.sigma[:-1]
        b, clip = -levels.alpha[:-1] * b / levels.sigma[:-1], False
    mix, noise = _mix(solver, levels, eta, sigma_data)
    visits = np.arange(times.size)
    if solver == "heun":
        visits = np.repeat(visits, 2)[1:]
    zero = np.zeros_like(a)
    network = np.stack([a, b, np.ones_like(a), zero, zero], axis=1)
    timesteps = times.astype(np.int64)[visits]
    return SolverTable(timesteps, network[visits], mix, noise, clip, (low, high))


def table_along(
    schedule: DiffusionSchedule,
    solver: str,
    *,
    num_inference_steps: int,
    spacing: Spacing,
    eta: float,
    prediction: Prediction,
    clip_range: tuple[float, float],
) -> SolverTable:
    """The coefficients of a solver along timesteps of a schedule: see `solver_table`.

    Args:
        schedule: the network's.
        solver: one of `SOLVERS`.
        num_inference_steps: timesteps asked for.
        spacing: where they lie: see `spacing.inference_steps`.
        eta: see `solver_table`.
        prediction: what the network gives.
        clip_range: lowest and highest pixel value.

    Raises:
        ConfigError: a number, a spacing or a solver that there is not.
    """
    steps = schedule.inference_steps(num_inference_steps, spacing=spacing)
    return solver_table(
        solver,
        steps,
        schedule.alpha[steps],
        schedule.sigma[steps],
        prediction=prediction,
        sigma_data=schedule.data_std,
        eta=eta,
        clip_range=clip_range,
    )


def _estimate(levels: Levels, prediction: str, data: float) -> tuple[Float64, Float64]:
    """[S] a and [S] b of d = a x - b F."""
    alpha, sigma = levels.alpha[:-1], levels.sigma[:-1]
    if prediction == "eps":
        return 1.0 / alpha, sigma / alpha
    if prediction != "v":
        raise ConfigError("prediction", got=repr(prediction), expected="'eps' or 'v'")
    variance = (alpha * data) ** 2 + sigma**2
    if np.any(np.abs(variance - 1.0) > UNIT_VARIANCE):
        raise ConfigError(
            "alpha, sigma",
            got=f"images of variance {variance.min():.6g} to {variance.max():.6g}",
            expected=f"1 for prediction 'v' of data with deviation {data:.6g}",
            hint="alpha = 1 / sqrt(s^2 + sigma_data^2), sigma = s alpha",
        )
    return data**2 * alpha, -data * sigma


def _mix(solver: str, levels: Levels, eta: float, data: float) -> tuple[Float64, Float64]:
    """[K, 2, 6] mix and [K] deviation of the noise."""
    if solver in DETERMINISTIC:
        mix = DETERMINISTIC[solver](levels)
        return mix, np.zeros(len(mix))
    if solver == "ddim":
        kept, noise = methods.ddim(levels, eta=eta)
        return methods.renoised(levels, kept), noise
    large = solver == "ddpm"
    noise = (
        methods.prior_deviation(levels, data=data) if large else methods.posterior_deviation(levels)
    )
    return methods.renoised(levels, levels.sigma[1:] * levels.ratio), noise
