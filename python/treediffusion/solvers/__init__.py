"""Every diffusion sampler as a table of coefficients that NumPy alone can follow.

    y  = c clip(a x - b F) + e F + tau noise
    x' = mix . (y, x, s, h1, h2, h3) + noise,   s' = mix' . (y, x, s, h1, h2, h3)

`table_along` makes one from the solver's name and a schedule, `solver_table` from any noise levels;
`walk` goes along a table, asking for one evaluation after the other; `follow` is the whole loop.
"""

from .build import SOLVERS, Prediction, Solver, solver_table, table_along
from .table import Evaluation, SolverTable, apply_row, estimate, follow, from_rows, walk

__all__ = [
    "SOLVERS",
    "Evaluation",
    "Prediction",
    "Solver",
    "SolverTable",
    "apply_row",
    "estimate",
    "follow",
    "from_rows",
    "solver_table",
    "table_along",
    "walk",
]
