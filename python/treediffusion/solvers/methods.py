"""The solvers: for each, how x and the estimates d of x0 mix into the next x.

Rows are those of `SolverTable.mix`, deviations those of the noise that a step adds. No method
knows what the network gives, or whether d was clipped.
"""

from __future__ import annotations

import numpy as np

from .levels import Levels
from .table import COLUMNS, H1, H2, H3, SAVED, Float64, X, Y

# For equal steps, newest first.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ddim(levels: Levels, *, eta: float) -> tuple[Float64, Float64]:
    """DDIM (Song et al. 2021, equation 12): x' = alpha' d + kept eps + eta posterior noise.

    Args:
        levels: the run's.
        eta: share of the posterior's deviation that is drawn anew.

    Returns:
        [S] kept and [S] the deviation of the noise; their squares add up to sigma'^2.
    """
    kept = levels.sigma[1:] * np.sqrt((1.0 - eta**2) + (eta * levels.ratio) ** 2)
    return kept, eta * posterior_deviation(levels)


def posterior_deviation(levels: Levels) -> Float64:
    """[S] deviation of q(x' | x, x0)."""
    return np.asarray(levels.sigma[1:] * np.sqrt((1.0 - levels.ratio) * (1.0 + levels.ratio)))


def prior_deviation(levels: Levels, *, data: float) -> Float64:
    """DDPM's large choice: the deviation of q(x' | x) were the data Gaussian.

    Its square is the spaced beta, 1 - alpha^2 / alpha'^2, where x has unit variance at all levels.
    Arrival at x0 adds none, so that the first beta's published stand-in does not show.

    Args:
        levels: the run's.
        data: deviation of the pixels.

    Returns:
        [S] the deviation of the noise.
    """
    variance = (levels.alpha * data) ** 2 + levels.sigma**2
    added = levels.sigma[:-1] ** 2 * (1.0 - levels.ratio) * (1.0 + levels.ratio)
    return np.where(levels.sigma[1:] > 0, np.sqrt(added * variance[1:] / variance[:-1]), 0.0)


def renoised(levels: Levels, kept: Float64) -> Float64:
    """x' = alpha' d + kept eps, with the eps that d leaves in x, (x - alpha d) / sigma.

    With kept = sigma' it is DDIM, which is Euler's step; with sigma' e^-h, the posterior's mean.

    Args:
        levels: the run's.
        kept: [S] factor of eps.

    Returns:
        [S, 2, 6] mix.
    """
    mix = np.zeros((levels.steps, 2, COLUMNS))
    mix[:, 0, X] = kept / levels.sigma[:-1]
    mix[:, 0, Y] = levels.alpha[1:] - levels.alpha[:-1] * mix[:, 0, X]
    return mix


def multistep(levels: Levels, *, highest: int) -> Float64:
    """DPM-Solver++ (Lu et al. 2022), multistep.

    Its published code gives the second difference half its weight, and with it order 2 at
    highest = 3; here the integral is exact.

    Args:
        levels: the run's.
        highest: order, 1 to 3, of steps with enough history.

    Returns:
        [S, 2, 6] mix.
    """
    mix = np.zeros((levels.steps, 2, COLUMNS))
    for i in range(levels.steps):
        order = levels.order(i, highest)
        mix[i, 0, X], weights = levels.step(i, range(i, i - order, -1))
        mix[i, 0, [Y, H1, H2][:order]] = weights
    return mix


def unipc(levels: Levels, *, highest: int) -> Float64:
    """UniPC (Zhao et al. 2023), B(h) = e^h - 1: each d also corrects the x that it was taken at.

    The corrected x is s; the predicted one goes to the network and nowhere else.

    Args:
        levels: the run's.
        highest: order of the predictor, 1 to 3; the corrector's is one more.

    Returns:
        [S, 2, 6] mix.
    """
    mix = np.zeros((levels.steps, 2, COLUMNS))
    mix[0, 1, X] = 1.0
    for i in range(levels.steps):
        if i > 0:
            order = levels.order(i - 1, highest)
            nodes = [i - 1, i, *range(i - 2, i - 1 - order, -1)]
            mix[i, 1, SAVED], weights = levels.step(i - 1, nodes)
            mix[i, 1, [H1, Y, H2, H3][: order + 1]] = weights
        order = levels.order(i, highest)
        keep, weights = levels.step(i, range(i, i - order, -1))
        mix[i, 0] = keep * mix[i, 1]
        mix[i, 0, [Y, H1, H2][:order]] += weights
    return mix


def heun(levels: Levels) -> Float64:
    """The trapezoid in x / alpha over sigma / alpha (Karras et al. 2022), its last step Euler's.

    Args:
        levels: the run's.

    Returns:
        [2 S - 1, 2, 6] mix: Euler's step from s, then the step from s with both slopes.
    """
    alpha, noisiness = levels.alpha, levels.sigma / levels.alpha
    mix = np.zeros((2 * levels.steps - 1, 2, COLUMNS))
    mix[::2] = renoised(levels, levels.sigma[1:])
    mix[::2, 1, X] = 1.0
    for i in range(levels.steps - 1):
        half = alpha[i + 1] * (noisiness[i + 1] - noisiness[i]) / 2
        row = mix[2 * i + 1, 0]
        row[H1], row[Y] = -half / noisiness[i], -half / noisiness[i + 1]
        row[SAVED] = alpha[i + 1] / alpha[i] + half / levels.sigma[i]
        row[X] = half / levels.sigma[i + 1]
    return mix


def ipndm(levels: Levels) -> Float64:
    """Adams-Bashforth for dx / ds = eps in x / alpha over s = sigma / alpha (Zhang and Chen 2023).

    The weights are those of equal steps in s, as published: order 4 along such, 2 along others.
    Arrival at x0 is Euler's step, so that the image is an estimate of x0. y is eps.

    Args:
        levels: the run's.

    Returns:
        [S, 2, 6] mix.
    """
    alpha = levels.alpha
    mix = np.zeros((levels.steps, 2, COLUMNS))
    mix[:, 0, X] = alpha[1:] / alpha[:-1]
    for i, change in enumerate(alpha[1:] * np.diff(levels.sigma / alpha)):
        arrives = levels.sigma[i + 1] == 0
        order = 1 if arrives else min(i + 1, len(ADAMS_BASHFORTH))
        mix[i, 0, [Y, H1, H2, H3][:order]] = change * np.array(ADAMS_BASHFORTH[order - 1])
    return mix
