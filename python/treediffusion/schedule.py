"""The forward process as a table over t, and the coefficients of DDIM along any list of steps.

    x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps
    x0_hat = clip(a x_t - b eps),   x' = c x0_hat + d eps + sigma noise

Betas are a line in t, and alpha_bar is the running product of 1 - beta. Everything is float64 and
computed here only; training, export and the back ends read it and cast once, at use. It neither
draws noise nor calls a network. NumPy only.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, ShapeError

Spacing = Literal["uniform", "quadratic"]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

KIND = "linear"
# Published: quadratic spacing starts here, where 96 % of the signal is gone already.
QUADRATIC_REACH = 0.8
# sqrt(1 / alpha_bar) then fits float32 with room for what it multiplies.
SMALLEST_ALPHA_BAR = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class DiffusionSchedule:
    """How much of the image is left after each of T steps of added noise.

    Attributes:
        timesteps: T.
        beta_start: variance added by the first step, t = 0.
        beta_end: variance added by the last step, t = T - 1.
    """

    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        _at_least_one("timesteps", self.timesteps)
        betas = (self.beta_start, self.beta_end)
        for name, beta in zip(("beta_start", "beta_end"), betas, strict=True):
            if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < 1:
                raise ConfigError(name, got=repr(beta), expected="a variance in (0, 1)")
        alpha_bar = self.alpha_bar
        if alpha_bar[0] == 1.0 or alpha_bar[-1] < SMALLEST_ALPHA_BAR:
            raise ConfigError(
                "beta_start, beta_end",
                got=f"{self.beta_start}, {self.beta_end} over {self.timesteps} steps",
                expected="some noise in the first image and some signal in the last",
                hint=f"alpha_bar runs from {alpha_bar[0]:.3g} to {alpha_bar[-1]:.3g}",
            )

    @property
    def beta(self) -> Float64:
        """[T] variance each step adds."""
        return np.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=np.float64)

    @property
    def alpha_bar(self) -> Float64:
        """[T] share of the image's variance left in x_t."""
        return np.cumprod(1.0 - self.beta, dtype=np.float64)

    @property
    def sqrt_alpha_bar(self) -> Float64:
        """[T] factor of x0 in x_t."""
        return np.sqrt(self.alpha_bar)

    @property
    def sqrt_one_minus_alpha_bar(self) -> Float64:
        """[T] factor of eps in x_t."""
        return np.sqrt(1.0 - self.alpha_bar)

    @property
    def add_noise_coefs(self) -> Float64:
        """[T, 2] factors of x0 and eps in x_t, a row to gather per t."""
        return np.stack([self.sqrt_alpha_bar, self.sqrt_one_minus_alpha_bar], axis=1)

    def inference_steps(self, count: int, *, spacing: Spacing) -> Int64:
        """The timesteps a sampler visits, in the order it visits them.

        Quadratic: squares of `count` points from 0 to sqrt(0.8 T), cut to integers; equal ones
        merge, so that S can be less than `count`. Uniform: multiples of the smallest stride of
        which exactly `count` lie below T. Both end at t = 0, and one step is t = 0 alone.

        Args:
            count: steps asked for.
            spacing: where they lie.

        Returns:
            [S] int64, descending.

        Raises:
            ConfigError: not a positive count, no stride gives it, or not a spacing.
        """
        count = _at_least_one("num_inference_steps", count)
        if spacing == "quadratic":
            points = np.linspace(0.0, math.sqrt(QUADRATIC_REACH * self.timesteps), count)
            return np.unique((points**2).astype(np.int64))[::-1].copy()
        if spacing == "uniform":
            return np.arange(0, self.timesteps, self._stride(count), dtype=np.int64)[::-1].copy()
        raise ConfigError("spacing", got=repr(spacing), expected="'uniform' or 'quadratic'")

    def ddim_table(
        self,
        steps: Sequence[int] | Int64,
        *,
        eta: float = 0.0,
        clip: bool = True,
        clip_range: tuple[float, float] = (-1.0, 1.0),
    ) -> DDIMTable:
        """Coefficients of DDIM (Song et al. 2021, equation 12) along a list of steps.

        Args:
            steps: [S] timesteps, descending.
            eta: 0 adds no noise after the start, 1 as much as DDPM.
            clip: whether the estimate of x0 is limited to `clip_range`.
            clip_range: lowest and highest pixel value.

        Returns:
            One row per step; the last one arrives at x0.

        Raises:
            ConfigError: steps that do not descend or are not in [0, T), eta outside [0, 1], or
                an empty range.
        """
        timestep = self._checked_steps(steps)
        if not 0.0 <= eta <= 1.0:
            raise ConfigError("eta", got=eta, expected="0 (DDIM) to 1 (DDPM)")
        low, high = clip_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError("clip_range", got=clip_range, expected="two numbers, lowest first")
        here = self.alpha_bar[timestep]
        after = np.append(here[1:], 1.0)
        sigma = eta * np.sqrt((1.0 - after) / (1.0 - here)) * np.sqrt(1.0 - here / after)
        columns = (
            np.sqrt(1.0 / here),
            np.sqrt(1.0 / here - 1.0),
            np.sqrt(after),
            np.sqrt(1.0 - after - sigma**2),
            sigma,
        )
        return DDIMTable(timestep, np.stack(columns, axis=1), clip, (float(low), float(high)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest; `from_dict` gives the equal schedule."""
        return {
            "kind": KIND,
            "timesteps": int(self.timesteps),
            "beta_start": float(self.beta_start),
            "beta_end": float(self.beta_end),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiffusionSchedule:
        """The schedule written by `to_dict`.

        Raises:
            ConfigError: another kind, a missing or unknown key, or a value that does not fit.
        """
        keys = ("kind", "timesteps", "beta_start", "beta_end")
        if not isinstance(values, Mapping) or set(values) != set(keys):
            got = sorted(map(str, values)) if isinstance(values, Mapping) else repr(values)
            raise ConfigError("schedule", got=got, expected=f"the keys {', '.join(keys)}")
        if values["kind"] != KIND:
            raise ConfigError("schedule kind", got=repr(values["kind"]), expected=repr(KIND))
        return cls(values["timesteps"], values["beta_start"], values["beta_end"])

    def _stride(self, count: int) -> int:
        strides = {-(-self.timesteps // k): k for k in range(self.timesteps, 0, -1)}
        if count in strides:
            return strides[count]
        feasible = sorted(strides)
        above = int(np.searchsorted(feasible, count))
        first = max(min(above - 1, len(feasible) - 2), 0)
        nearest = " or ".join(str(number) for number in feasible[first : first + 2])
        raise ConfigError(
            "num_inference_steps",
            got=count,
            expected=f"{nearest} for uniform spacing of {self.timesteps} timesteps",
            hint="take one of these, or quadratic spacing",
        )

    def _checked_steps(self, steps: Sequence[int] | Int64) -> Int64:
        given = np.asarray(steps)
        fits = given.ndim == 1 and given.size > 0 and np.issubdtype(given.dtype, np.integer)
        timestep = given.astype(np.int64) if fits else np.zeros(1, np.int64)
        inside = timestep[0] < self.timesteps and timestep[-1] >= 0
        if not (fits and inside and np.all(np.diff(timestep) < 0)):
            raise ConfigError(
                "steps",
                got=repr(steps),
                expected=f"descending integers from {self.timesteps - 1} to 0 at most",
                hint="inference_steps() makes such a list",
            )
        return timestep


@dataclass(frozen=True, eq=False)
class DDIMTable:
    """One row per step of a sampler.

    Attributes:
        timestep: [S] int64, what the network receives, descending.
        coef: [S, 5] float64, columns a, b, c, d, sigma of the update.
        clip: whether the estimate of x0 is limited.
        clip_range: lowest and highest pixel value.
    """

    timestep: Int64
    coef: Float64
    clip: bool = True
    clip_range: tuple[float, float] = (-1.0, 1.0)


def ddim_update(
    x: NDArray[Any],
    eps: NDArray[Any],
    coef_row: ArrayLike,
    *,
    clip_range: tuple[float, float] | None,
    noise: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """One step of DDIM; the truth for every other back end.

    The estimated noise is used as it is, also where the estimate of x0 was clipped.

    Args:
        x: [...] float, the noisy image.
        eps: [...] float, the network's estimate of its noise.
        coef_row: [5] float, a row of `DDIMTable.coef`; cast to x's type.
        clip_range: lowest and highest pixel value, or None for no limit.
        noise: [...] float, standard normal; needed only where sigma > 0.

    Returns:
        [...] in x's type, the less noisy image.

    Raises:
        ShapeError: shapes that differ, x not floating, or no noise where sigma > 0.
    """
    if not np.issubdtype(x.dtype, np.floating):
        raise ShapeError("x", got=x.dtype, expected="a floating type")
    row = np.asarray(coef_row, x.dtype)
    if row.shape != (5,):
        raise ShapeError("coef_row", got=list(row.shape), expected="[5], a row of DDIMTable.coef")
    a, b, c, d, sigma = row
    x0 = a * x - b * _like("eps", eps, x)
    if clip_range is not None:
        x0 = np.clip(x0, *clip_range)
    x_next = c * x0 + d * _like("eps", eps, x)
    if sigma == 0:
        return np.asarray(x_next)
    if noise is None:
        raise ShapeError("noise", got=None, expected=f"{list(x.shape)}, since sigma is {sigma:.3g}")
    return np.asarray(x_next + sigma * _like("noise", noise, x))


def _like(name: str, values: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    if values.shape != x.shape:
        raise ShapeError(name, got=list(values.shape), expected=f"{list(x.shape)}, the shape of x")
    return values.astype(x.dtype, copy=False)


def _at_least_one(name: str, value: object) -> int:
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(name, got=repr(value), expected="an integer of at least 1")
    return number
