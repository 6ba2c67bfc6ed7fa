"""A reproduced table as bars: each column's means over seeds, with their deviations, row by row.

A column that fewer than two rows have compares nothing, and one with a value below 0, such as a
likelihood, has no lengths to compare: neither is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .figures import ablation_bars, save
from .figures.bars import Variant
from .published import PERCENT, in_print, table_title
from .reproduce_page import NAMES, table_columns
from .reproduce_tables import TITLES

if TYPE_CHECKING:
    from .reproduce import Outcome


MEASURES = {
    "dendrogram_purity": "dendrogram purity, %",
    "leaf_purity": "leaf purity, %",
    "acc": "accuracy of the clusters, %",
    "nmi": "normalised mutual information, %",
    "ari": "adjusted Rand index, %",
    "fid_reconstruction": "FID of reconstructed images",
    "fid_generation": "FID of generated images",
    "frechet_reconstruction": "distance of reconstructed images in a classifier's features, no FID",
    "frechet_generation": "distance of generated images in a classifier's features, no FID",
    "mean_entropy": "mean entropy of a leaf's classes, nats",
    "reconstruction": "error of the reconstruction, nats per image",
}
"""What is written above bars, where a table's head has no room for it."""


def draw_bars(outcome: Outcome) -> dict[str, tuple[Path, ...]]:
    """Draws each column beside the table, as PNG and SVG; the files by metric."""
    return {
        metric: save(
            ablation_bars(
                rows,
                measure=MEASURES.get(metric, NAMES.get(metric, metric)),
                better="higher" if metric in PERCENT else "lower",
                title=_title(outcome),
            ),
            outcome.folder / metric,
        )
        for metric, rows in bars(outcome).items()
    }


def bars(outcome: Outcome) -> dict[str, list[Variant]]:
    """The rows of each column that can be drawn."""
    found = {}
    for metric in table_columns(outcome):
        rows = [
            Variant(
                TITLES.get(line.method, line.method),
                in_print(metric, spread.mean),
                None if spread.deviation is None else in_print(metric, spread.deviation),
            )
            for line in outcome.lines
            if (spread := line.scores.get(metric)) is not None
        ]
        if len(rows) > 1 and min(row.value for row in rows) >= 0 and not metric.endswith("_floor"):
            found[metric] = rows
    return found


def _title(outcome: Outcome) -> str:
    order = outcome.order
    title = f"{table_title(order.table).partition(';')[0]}: {order.dataset}"
    return title if outcome.stopped is None else f"{title}, a part"
