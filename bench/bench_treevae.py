"""The tree's cases, each side a row; for ratios that hold on a busy machine see `goals.py`."""

from __future__ import annotations

import pytest
from goals_list import Goal
from pytest_benchmark.fixture import BenchmarkFixture
from rows import rows_of, side_of


@pytest.mark.parametrize(("goal", "side"), rows_of("treevae"))
def test_tree(benchmark: BenchmarkFixture, goal: Goal, side: str) -> None:
    benchmark.group = goal.name
    benchmark.pedantic(side_of(goal, side), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
