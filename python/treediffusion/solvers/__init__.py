"""Every diffusion sampler as a table of coefficients that NumPy alone can follow.

    y  = c clip(a x - b F) + e F + tau noise
    x' = mix . (y, x, s, h1, h2, h3) + noise,   s' = mix' . (y, x, s, h1, h2, h3)

`solver_table` makes one from the solver's name and the noise levels, `run_table` follows it.
"""

from .build import SOLVERS, Prediction, Solver, solver_table
from .table import SolverTable, apply_row, follow, from_rows, run_table

__all__ = [
    "SOLVERS",
    "Prediction",
    "Solver",
    "SolverTable",
    "apply_row",
    "follow",
    "from_rows",
    "run_table",
    "solver_table",
]
