"""Scores over seeds: what a table prints, and which seed a user who sees no labels would keep.

    mean,  deviation = sqrt(sum (x - mean)^2 / (n - 1)),  the least and the largest

The deviation is that of the sample, as of an estimate; some published ones divide by n. A score
that some seeds do not have is taken over those that have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import DataError


@dataclass(frozen=True)
class Spread:
    """A score over seeds.

    Attributes:
        count: n, seeds that have it.
        mean: of them.
        deviation: of the sample; None of a single one.
        low: the least.
        high: the largest.
    """

    count: int
    mean: float
    deviation: float | None
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)


def over_seeds(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Spread]:
    """Every score of some seeds, in the order in which scores first occur.

    Args:
        rows: one for each seed, scores by name; None or absent where there is none.

    Raises:
        DataError: no seeds, or a score that is not finite.
    """
    if not rows:
        raise DataError("seeds", got="none", expected="the scores of one seed or more")
    names = dict.fromkeys(name for row in rows for name in row)
    found = {}
    for name in names:
        values = [value for row in rows if (value := row.get(name)) is not None]
        if not all(map(math.isfinite, values)):
            raise DataError(name, got=f"{values}", expected="finite scores")
        if values:
            found[name] = _spread(values)
    return found


def best_seed(rows: Sequence[Mapping[str, float | None]], *, by: str = "elbo") -> int | None:
    """Position of the seed with the largest score, the first of equal ones; None if none has it.

    Labels are no way to choose a seed. The ELBO is one, since it needs none.
    """
    known = [(value, -k) for k, row in enumerate(rows) if (value := row.get(by)) is not None]
    return -max(known)[1] if known else None


def _spread(values: list[float]) -> Spread:
    count = len(values)
    mean = math.fsum(values) / count
    square = math.fsum((value - mean) ** 2 for value in values)
    deviation = math.sqrt(square / (count - 1)) if count > 1 else None
    return Spread(count, mean, deviation, min(values), max(values))
