"""Tables of solvers along a schedule's timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from treediffusion.schedule import DiffusionSchedule
from treediffusion.solvers import SolverTable, solver_table


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
