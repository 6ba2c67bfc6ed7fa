"""Improved precision and recall: are generated images among real ones, and the other way round?

    precision = share of generated features within the radius of some real one
    recall    = share of real features within the radius of some generated one

A feature's radius is its distance to the third nearest other feature of its own set (Kynkäänniemi
et al., 2019). The first is high where images look real, the second where nothing real is missing;
both fall with fewer images and depend on the extractor, so both are compared at equal numbers only.
Distances are in float64 and a part at a time; nothing of the size of all pairs is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from .kid import check_features

NEIGHBOURS = 3
ROWS = 1000
"""Features whose distances to all others are held at once."""


class PrecisionRecall(NamedTuple):
    """What `precision_recall` found.

    Attributes:
        precision: 0 to 1.
        recall: 0 to 1.
    """

    precision: float
    recall: float


def precision_recall(
    generated: Tensor, real: Tensor, *, neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Both measures.

    Args:
        generated: [n, D] float, n above the number of neighbours.
        real: [m, D] float, the same.
        neighbours: whose distance is the radius.

    Raises:
        ShapeError: features of another shape, or too few.
        ConfigError: fewer neighbours than one, or more than there are.
    """
    check_features(generated, real)
    most = min(len(generated), len(real)) - 1
    if not 1 <= neighbours <= most:
        raise ConfigError(
            "neighbours", got=neighbours, expected=f"1 to {most}, others there are in each set"
        )
    x, y = generated.to(torch.float64), real.to(torch.float64)
    return PrecisionRecall(
        precision=_share_within(x, y, _radius(y, neighbours)),
        recall=_share_within(y, x, _radius(x, neighbours)),
    )


def _radius(x: Tensor, neighbours: int) -> Tensor:
    """[n] squared distance of each to its k-th nearest other."""
    found = []
    for start, squares in _distances(x, x):
        # No feature is its own neighbour, however rounding makes it look.
        rows = torch.arange(len(squares), device=x.device)
        squares[rows, start + rows] = torch.inf
        found.append(squares.kthvalue(neighbours, dim=1).values)
    return torch.cat(found)


def _share_within(x: Tensor, y: Tensor, radius: Tensor) -> float:
    """Share of x that lie within the radius of some y."""
    inside = [(squares <= radius).any(1) for _, squares in _distances(x, y)]
    return float(torch.cat(inside).double().mean())


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Squared distances of parts of x to all of y, each with its first row."""
    lengths = (y * y).sum(1)
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS]
        squares = (part * part).sum(1)[:, None] + lengths - 2 * part @ y.T
        yield start, squares.clamp_(min=0)
