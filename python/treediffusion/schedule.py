"""How much noise x_t has, as a table over t: ``x_t = alpha_t x0 + sigma_t eps``.

Two kinds of table. Linear: betas are a line in t, alpha^2 is the running product of 1 - beta, and
sigma^2 the rest. EDM (Karras et al. 2022): with s(t)^(1/7) on a line from 0.002 to 80 and d the
deviation of the pixels, alpha = 1 / sqrt(s^2 + d^2) and sigma = s alpha. Either way x_t has unit
variance. Everything is float64 and computed here only; training, export and the back ends read it
and cast once, at use. It neither draws noise nor calls a network. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError
from .spacing import RHO, Float64, Int64, Spacing, at_least_one, inference_steps

__all__ = ["DiffusionSchedule", "Spacing"]

# What each kind is made of, in its manifest and in this order.
KEYS = {
    "linear": ("timesteps", "beta_start", "beta_end"),
    "edm": ("timesteps", "sigma_data"),
}
# sqrt(1 / alpha_bar) then fits float32 with room for what it multiplies.
SMALLEST_ALPHA_BAR = float(np.finfo(np.float32).tiny)
# EDM's least and most noise, in units of pixels.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


@dataclass(frozen=True, eq=False)
class DiffusionSchedule:
    """How much of the image is left in each of T steps of added noise.

    Schedules are equal where their manifests are: what the kind does not use does not count.

    Attributes:
        timesteps: T.
        beta_start: linear: variance added by the first step, t = 0.
        beta_end: linear: variance added by the last step, t = T - 1.
        kind: of table.
        sigma_data: EDM: standard deviation of the pixels of x0.
    """

    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    _: KW_ONLY
    kind: Literal["linear", "edm"] = "linear"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        at_least_one("timesteps", self.timesteps)
        if self.kind not in KEYS:
            expected = " or ".join(map(repr, KEYS))
            raise ConfigError("schedule kind", got=repr(self.kind), expected=expected)
        if self.kind == "linear":
            self._check_betas()
            return
        if self.timesteps < 2:
            raise ConfigError("timesteps", got=1, expected="at least 2: EDM's levels have two ends")
        if not _is_number(self.sigma_data) or not 0 < self.sigma_data < math.inf:
            got = repr(self.sigma_data)
            raise ConfigError("sigma_data", got=got, expected="a standard deviation above 0")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DiffusionSchedule):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(tuple(self.to_dict().items()))

    @property
    def beta(self) -> Float64:
        """[T] variance each step adds to an image of unit variance."""
        if self.kind == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=np.float64)
        alpha_bar = self.alpha_bar
        return np.asarray(1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1]))

    @property
    def alpha_bar(self) -> Float64:
        """[T] alpha^2 / (alpha^2 + sigma^2): the image's share if it has unit variance."""
        if self.kind == "linear":
            return np.cumprod(1.0 - self.beta, dtype=np.float64)
        return np.asarray(1.0 / (1.0 + self._noise_level(np.arange(self.timesteps)) ** 2))

    @property
    def alpha(self) -> Float64:
        """[T] factor of x0 in x_t."""
        if self.kind == "linear":
            return np.sqrt(self.alpha_bar)
        return self.at(np.arange(self.timesteps))[0]

    @property
    def sigma(self) -> Float64:
        """[T] factor of eps in x_t."""
        if self.kind == "linear":
            return np.sqrt(1.0 - self.alpha_bar)
        return self.at(np.arange(self.timesteps))[1]

    @property
    def log_snr(self) -> Float64:
        """[T] log(alpha^2 / sigma^2), descending."""
        return 2.0 * np.log(self.alpha / self.sigma)

    @property
    def add_noise_coefs(self) -> Float64:
        """[T, 2] factors of x0 and eps in x_t, a row to gather per t."""
        return np.stack([self.alpha, self.sigma], axis=1)

    @property
    def data_std(self) -> float:
        """Deviation that x0 has where x_t has unit variance: 1, or EDM's sigma_data."""
        return 1.0 if self.kind == "linear" else float(self.sigma_data)

    def at(self, t: ArrayLike) -> tuple[Float64, Float64]:
        """alpha and sigma at any t; EDM's are defined between the timesteps, too.

        Args:
            t: [...] from 0 to T - 1.

        Returns:
            alpha and sigma, [...] float64 each.

        Raises:
            ConfigError: t is beyond the ends, or not an integer and the schedule linear.
        """
        given = np.asarray(t, np.float64)
        inside = bool(np.all((given >= 0) & (given <= self.timesteps - 1)))
        if not inside or (self.kind == "linear" and np.any(given % 1)):
            number = "an integer" if self.kind == "linear" else "a number"
            expected = f"{number} from 0 to {self.timesteps - 1}, as the schedule is {self.kind}"
            raise ConfigError("t", got=repr(t), expected=expected)
        if self.kind == "linear":
            row = given.astype(np.int64)
            return self.alpha[row], self.sigma[row]
        level = self._noise_level(given)
        alpha = np.asarray(1.0 / np.sqrt(level**2 + self.sigma_data**2))
        return alpha, level * alpha

    def inference_steps(self, count: int, *, spacing: Spacing) -> Int64:
        """The timesteps a sampler visits, [S] int64, descending: see `spacing.inference_steps`."""
        return inference_steps(self.log_snr, count, spacing=spacing)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest; `from_dict` gives the equal schedule."""
        values = {"timesteps": int(self.timesteps)}
        numbers = {name: float(getattr(self, name)) for name in KEYS[self.kind][1:]}
        return {"kind": self.kind, **values, **numbers}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiffusionSchedule:
        """The schedule written by `to_dict`.

        Raises:
            ConfigError: another kind, a missing or unknown key, or a value that does not fit.
        """
        kind = values.get("kind", "linear") if isinstance(values, Mapping) else "linear"
        if not isinstance(kind, str) or kind not in KEYS:
            expected = " or ".join(map(repr, KEYS))
            raise ConfigError("schedule kind", got=repr(kind), expected=expected)
        keys = ("kind", *KEYS[kind])
        if not isinstance(values, Mapping) or set(values) != set(keys):
            got = sorted(map(str, values)) if isinstance(values, Mapping) else repr(values)
            raise ConfigError("schedule", got=got, expected=f"the keys {', '.join(keys)}")
        return cls(**values)

    def _noise_level(self, t: NDArray[Any]) -> Float64:
        """[...] s, EDM's deviation of the noise in units of pixels."""
        low, high = SIGMA_MIN ** (1.0 / RHO), SIGMA_MAX ** (1.0 / RHO)
        level: Float64 = (low + t / (self.timesteps - 1) * (high - low)) ** RHO
        return level

    def _check_betas(self) -> None:
        betas = (self.beta_start, self.beta_end)
        for name, beta in zip(("beta_start", "beta_end"), betas, strict=True):
            if not _is_number(beta) or not 0 < beta < 1:
                raise ConfigError(name, got=repr(beta), expected="a variance in (0, 1)")
        alpha_bar = self.alpha_bar
        if alpha_bar[0] == 1.0 or alpha_bar[-1] < SMALLEST_ALPHA_BAR:
            raise ConfigError(
                "beta_start, beta_end",
                got=f"{self.beta_start}, {self.beta_end} over {self.timesteps} steps",
                expected="some noise in the first image and some signal in the last",
                hint=f"alpha_bar runs from {alpha_bar[0]:.3g} to {alpha_bar[-1]:.3g}",
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
