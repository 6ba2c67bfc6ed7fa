"""Noise levels, and the step between two of them.

    x' = sigma'/sigma x + alpha' h int_0^1 e^(-(1 - u) h) d(u) du,    h = log-SNR after - before

is the probability-flow ODE of x_t = alpha x0 + sigma eps, solved for an estimate d of x0 that
moves with u. A polynomial through known d takes its place. It does not choose levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError
from .table import Float64


@dataclass(frozen=True, eq=False)
class Levels:
    """Where a run passes, its end included.

    Attributes:
        alpha: [S + 1] float64, factor of x0.
        sigma: [S + 1] float64, factor of eps; 0 at most at the end.
    """

    alpha: Float64
    sigma: Float64

    @classmethod
    def checked(
        cls, alpha: ArrayLike, sigma: ArrayLike, end: tuple[float, float], *, steps: int
    ) -> Levels:
        """The levels of a user.

        Args:
            alpha: [S] factor of x0.
            sigma: [S] factor of eps.
            end: alpha and sigma after the last step.
            steps: S.

        Returns:
            Them all.

        Raises:
            ConfigError: not S of each, not above 0, or noise that does not descend.
        """
        given = {
            name: np.asarray(v, np.float64) for name, v in (("alpha", alpha), ("sigma", sigma))
        }
        for name, values in given.items():
            if values.shape != (steps,) or not np.all(np.isfinite(values) & (values > 0)):
                expected = f"[{steps}] numbers above 0, one per timestep"
                raise ConfigError(name, got=values.tolist(), expected=expected)
        if not (math.isfinite(end[0]) and math.isfinite(end[1]) and end[0] > 0 and end[1] >= 0):
            raise ConfigError("end", got=end, expected="alpha above 0, sigma 0 or above")
        levels = cls(np.append(given["alpha"], end[0]), np.append(given["sigma"], end[1]))
        noisiness = levels.sigma / levels.alpha
        if not np.all(np.diff(noisiness) < 0):
            expected = "sigma / alpha strictly descending, down to that of the end"
            raise ConfigError("alpha, sigma", got=noisiness.tolist(), expected=expected)
        return levels

    @property
    def steps(self) -> int:
        """S."""
        return len(self.alpha) - 1

    @property
    def ratio(self) -> Float64:
        """[S] noise-to-signal after a step over that before it, e^-h."""
        noisiness = self.sigma / self.alpha
        return np.asarray(noisiness[1:] / noisiness[:-1])

    def order(self, step: int, highest: int) -> int:
        """What the history allows, and on the way to sigma = 0 one less a step, down to 1.

        Arrival there is infinite in log-SNR, and only a constant d can be integrated over it.

        Args:
            step: its number, from 0.
            highest: the solver's order.

        Returns:
            The order of that step.
        """
        left = self.steps - step if self.sigma[-1] == 0 else highest
        return min(highest, step + 1, left)

    def step(self, begin: int, nodes: Sequence[int]) -> tuple[float, Float64]:
        """The step from a level to the next, with d known at some levels.

        Through three nodes or more, the integral of the polynomial is exact. Through two, the
        slope weighs as in the midpoint rule of DPM-Solver++, which is also UniPC's with
        B(h) = e^h - 1; exact would be of the same order.

        Args:
            begin: the level stepped from.
            nodes: levels where d is known, `begin` first.

        Returns:
            The weight of x, and [nodes] those of d.
        """
        ratio = float(self.ratio[begin])
        keep, after = float(self.sigma[begin + 1] / self.sigma[begin]), self.alpha[begin + 1]
        if len(nodes) == 1:
            return keep, np.array([after * (1.0 - ratio)])
        log_snr = np.log(self.alpha[: begin + 2] / self.sigma[: begin + 2])
        h = float(log_snr[begin + 1] - log_snr[begin])
        u = (log_snr[list(nodes[1:])] - log_snr[begin]) / h
        if len(u) == 1:
            others = 0.5 * (1.0 - ratio) / u
        else:
            powers = np.arange(1, len(u) + 1)[:, None]
            others = np.linalg.solve(u**powers, _moments(h, len(u)))
        # The first weight is what is left, so that a constant d passes without error.
        return keep, after * np.array([1.0 - ratio - others.sum(), *others])


def _moments(h: float, count: int) -> Float64:
    """[count] h int_0^1 e^(-(1 - u) h) u^k du for k = 1, 2, ...; a sum, where no digits cancel."""
    points, weights = np.polynomial.legendre.leggauss(32)
    u = (points + 1.0) / 2.0
    powers = u ** np.arange(1, count + 1)[:, None]
    return np.asarray(powers @ (weights * np.exp((u - 1.0) * h)) * h / 2.0)
