"""A sampler as a table of coefficients, and the loop that follows it.

Evaluation k of a network, F = network(x, timestep[k]), does

    y  = c clip(a x - b F) + e F + tau noise         a, b, c, e, tau = network[k]
    x' = mix[k, 0] . (y, x, s, h1, h2, h3) + noise[k] noise
    s' = mix[k, 1] . (y, x, s, h1, h2, h3)

where s begins as x, and h1, h2, h3 are the y before, newest first, with weight 0 where there are
none yet. It knows no solver and draws no noise. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

Array = TypeVar("Array", bound=Any)

COLUMNS = 6
Y, X, SAVED, H1, H2, H3 = range(COLUMNS)


@dataclass(frozen=True, eq=False)
class SolverTable:
    """One row per evaluation of the network.

    Attributes:
        timestep: [K] int64, what the network receives.
        network: [K, 5] float64, columns a, b, c, e, tau: from the network's output to y.
        mix: [K, 2, 6] float64, weights of y, x, s, h1, h2, h3 in the next x and the next s.
        noise: [K] float64, deviation of the noise added to the next x.
        clip: whether a x - b F is limited.
        clip_range: lowest and highest pixel value.
    """

    timestep: Int64
    network: Float64
    mix: Float64
    noise: Float64
    clip: bool = True
    clip_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        rows = len(self.timestep)
        shapes = (self.network.shape, self.mix.shape, self.noise.shape)
        assert shapes == ((rows, 5), (rows, 2, COLUMNS), (rows,)), shapes

    @property
    def draws(self) -> NDArray[np.bool_]:
        """[K] which evaluations need noise."""
        return np.asarray((self.network[:, 4] != 0.0) | (self.noise != 0.0))


def from_rows(
    timestep: ArrayLike,
    rows: ArrayLike,
    *,
    clip: bool = True,
    clip_range: tuple[float, float] = (-1.0, 1.0),
) -> SolverTable:
    """The table of a sampler whose rows do all: x' = y.

    Args:
        timestep: [K] integers.
        rows: [K, 5] columns a, b, c, e, tau.
        clip: whether the estimate of x0 is limited.
        clip_range: lowest and highest pixel value.

    Returns:
        The table, with the rows as they are.

    Raises:
        ShapeError: not five columns, or not one row per timestep.
    """
    times, network = np.asarray(timestep, np.int64), np.asarray(rows, np.float64)
    if times.ndim != 1 or network.shape != (len(times), 5):
        raise ShapeError("rows", got=list(network.shape), expected="[K, 5], one per timestep")
    mix = np.zeros((len(times), 2, COLUMNS))
    mix[:, 0, Y] = 1.0
    return SolverTable(times, network, mix, np.zeros(len(times)), clip, clip_range)


def apply_row(
    table: SolverTable,
    k: int,
    x: NDArray[Any],
    output: NDArray[Any],
    drawn: NDArray[Any] | None,
) -> NDArray[Any]:
    """y of evaluation k, from the network's output for x; all [...] of one type."""
    a, b, c, e, tau = table.network[k].astype(x.dtype)
    d = a * x - b * output
    if table.clip:
        d = np.clip(d, *table.clip_range)
    y: NDArray[Any] = c * d + e * output
    return y if tau == 0 or drawn is None else y + tau * drawn


def follow(
    table: SolverTable,
    x_start: Array,
    evaluate: Callable[[Array, int, Array | None], Array],
    noise: Callable[[int], Array] | None,
) -> Array:
    """The loop, whatever the arrays are: NumPy's, or another library's with its operators.

    A weight of 0 is left out, so that what it would multiply need not be finite, or exist.

    Args:
        table: the evaluations.
        x_start: [...] float, unit noise at the first level; left as it is.
        evaluate: x, number of the evaluation, and its noise where it needs some, to y.
        noise: number of the evaluation, from 0, to [...] standard normal; asked where `draws`.

    Raises:
        ConfigError: no noise for a table that adds some.
    """
    if noise is None and table.draws.any():
        raise ConfigError("noise", got=None, expected="a function of the evaluation's number")
    # Weights are Python's numbers, which every library takes in the precision of its arrays.
    mix, spread = table.mix.tolist(), table.noise.tolist()
    x = saved = x_start
    earlier: list[Array] = []
    for k, draws in enumerate(table.draws.tolist()):
        drawn = noise(k) if noise is not None and draws else None
        y = evaluate(x, k, drawn)
        terms = (y, x, saved, *earlier)
        x, saved = _combine(mix[k][0], terms), _combine(mix[k][1], terms)
        if drawn is not None and spread[k] != 0:
            x = x + spread[k] * drawn
        earlier = [y, *earlier][: COLUMNS - H1]
    return x


def _combine(weights: Sequence[float], terms: Sequence[Array]) -> Array:
    """The sum; terms that are missing have weight 0. Nothing is multiplied by 0."""
    assert not any(weights[len(terms) :])
    total: Array | None = None
    for weight, term in zip(weights, terms, strict=False):
        if weight != 0:
            part: Any = term if weight == 1 else weight * term
            total = part if total is None else total + part
    # An s that nothing uses any more may have no weights at all.
    return terms[0] if total is None else total
