"""Tables of solvers along a schedule's timesteps, and the loop for a network in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from treediffusion.schedule import DiffusionSchedule
from treediffusion.solvers import SolverTable, apply_row, follow, solver_table

Floats = np.ndarray[Any, np.dtype[Any]]


def table_of(
    schedule: DiffusionSchedule,
    steps: Sequence[int] | np.ndarray,
    solver: str = "ddim",
    **more: Any,
) -> SolverTable:
    """The solver's coefficients at some timesteps, descending; `more` as of `solver_table`."""
    steps = np.asarray(steps)
    alpha, sigma = schedule.alpha[steps], schedule.sigma[steps]
    return solver_table(solver, steps, alpha, sigma, sigma_data=schedule.data_std, **more)


def run_table(
    table: SolverTable,
    x_start: Floats,
    network: Callable[[Floats, int], Floats],
    noise: Callable[[int], Floats] | None = None,
) -> Floats:
    """Images of a network: x and its timestep to its output. All numbers in the start's type."""
    kind = x_start.dtype

    def evaluate(x: Floats, k: int, drawn: Floats | None) -> Floats:
        return apply_row(table, k, x, network(x, int(table.timestep[k])).astype(kind), drawn)

    def typed(k: int) -> Floats:
        assert noise is not None
        return noise(k).astype(kind)

    found: Floats = follow(table, x_start, evaluate, None if noise is None else typed)
    return found
