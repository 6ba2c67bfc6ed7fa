"""A sampler as a table of coefficients, and the loop that follows it.

Evaluation k of a network, F = network(x, timestep[k]), does

    y  = c clip(a x - b F) + e F + tau noise         a, b, c, e, tau = network[k]
    x' = mix[k, 0] . (y, x, s, h1, h2, h3) + noise[k] noise
    s' = mix[k, 1] . (y, x, s, h1, h2, h3)

where s begins as x, and h1, h2, h3 are the y before, newest first, with weight 0 where there are
none yet. It knows no solver and draws no noise. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

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


class Evaluation(NamedTuple, Generic[Array]):
    """What a walk along a table asks the network next.

    Attributes:
        k: the row of the table.
        x: [...] the network's input.
        drawn: [...] the noise of this row, None where it has none.
    """

    k: int
    x: Array
    drawn: Array | None


def estimate(table: SolverTable, k: int, x: NDArray[Any], output: NDArray[Any]) -> NDArray[Any]:
    """The estimate of x0 at evaluation k, from the output for x; all [...] of one type."""
    a, b = table.network[k, :2].astype(x.dtype)
    d: NDArray[Any] = a * x - b * output
    return np.clip(d, *table.clip_range) if table.clip else d


def apply_row(
    table: SolverTable,
    k: int,
    x: NDArray[Any],
    output: NDArray[Any],
    drawn: NDArray[Any] | None,
) -> NDArray[Any]:
    """y of evaluation k, from the network's output for x; all [...] of one type."""
    c, e, tau = table.network[k, 2:].astype(x.dtype)
    y: NDArray[Any] = c * estimate(table, k, x, output) + e * output
    return y if tau == 0 or drawn is None else y + tau * drawn


def walk(
    table: SolverTable, x_start: Array, noise: Callable[[int], Array] | None
) -> Generator[Evaluation[Array], Array, Array]:
    """Goes along the table: yields what to ask the network, is sent y, returns the last x.

    Whoever drives it decides when each evaluation happens, and what else shares its call. Arrays
    may be NumPy's, or another library's with its operators. A weight of 0 is left out, so that
    what it would multiply need not be finite, or exist.

    Args:
        table: the evaluations.
        x_start: [...] float, unit noise at the first level; left as it is.
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
        y = yield Evaluation(k, x, drawn)
        terms = (y, x, saved, *earlier)
        x, saved = _combine(mix[k][0], terms), _combine(mix[k][1], terms)
        if drawn is not None and spread[k] != 0:
            x = x + spread[k] * drawn
        earlier = [y, *earlier][: COLUMNS - H1]
    return x


def follow(
    table: SolverTable,
    x_start: Array,
    evaluate: Callable[[Array, int, Array | None], Array],
    noise: Callable[[int], Array] | None,
) -> Array:
    """The whole walk, each evaluation made at once.

    Args:
        table: the evaluations.
        x_start: as for `walk`.
        evaluate: x, number of the evaluation, and its noise where it needs some, to y.
        noise: as for `walk`.

    Raises:
        ConfigError: no noise for a table that adds some.
    """
    steps = walk(table, x_start, noise)
    answer: Array | None = None
    while True:
        try:
            asked = steps.send(answer)  # type: ignore[arg-type]
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = evaluate(asked.x, asked.k, asked.drawn)


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
