"""Goals as rows of pytest-benchmark: a group per goal, a row per side."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
from cases.pair import Pair
from goals_list import GOALS, Goal
from interleave import Side

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

SIDES = ("ours", "baseline")


def rows_of(*areas: str) -> list[ParameterSet]:
    """Parameters (goal, side) of every goal of these areas that can be measured here."""
    return [
        pytest.param(goal, side, id=f"{goal.name}-{side}")
        for goal in GOALS
        if goal.measure is not None and goal.name.partition("/")[0] in areas
        for side in SIDES
    ]


def side_of(goal: Goal, side: str) -> Side:
    """One side, ready to be called."""
    chosen: Side = getattr(_pair(goal), side)
    return chosen


@cache
def _pair(goal: Goal) -> Pair:
    assert goal.measure is not None
    return goal.measure()
