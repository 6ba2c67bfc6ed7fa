"""Published figures as data, and the band around each that a reproduction has to keep.

    band = value +- max(tolerance, 2 deviations)

The figures are in `published.yaml`, with the table that each is from. A table has a tolerance for
each metric, absolute or relative to the value, because a deviation over seeds of 0 says nothing of
other machines. Of data that no paper has, the figures are our own, and three deviations count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from ..errors import ConfigError

Verdict = Literal["inside", "below", "above"]
PERCENT = {"acc", "nmi", "ari", "dendrogram_purity", "leaf_purity"}
"""Scores that papers print in percent."""
OURS = "our own earlier figures; no paper has them"


@dataclass(frozen=True)
class Figure:
    """A figure and its band.

    Attributes:
        value: the mean.
        deviation: over seeds; None where none is published.
        low: of the band.
        high: of the band.
        source: where it is from.
    """

    value: float
    deviation: float | None
    low: float
    high: float
    source: str

    def verdict(self, found: float) -> Verdict:
        """Where a figure of ours lies."""
        if found < self.low:
            return "below"
        return "above" if found > self.high else "inside"


def in_print(metric: str, value: float) -> float:
    """A score in the unit in which papers print it."""
    return 100 * value if metric in PERCENT else value


def table_names() -> list[str]:
    """The tables that there are."""
    return list(_document()["tables"])


def table_title(table: str) -> str:
    """Paper and number of a table."""
    return str(_table(table)["title"])


def table_metrics(table: str) -> tuple[str, ...]:
    """The columns of a table, in its order."""
    return tuple(_table(table)["metrics"])


def published_rows(table: str, dataset: str) -> dict[str, dict[str, Figure]]:
    """Figures by method and metric; a metric, a method or everything may be missing.

    Raises:
        ConfigError: no such table.
    """
    known = _table(table)
    own = _document()["own"].get(table, {})
    rows, ours = known["rows"].get(dataset, {}), dataset in own
    found: dict[str, dict[str, Figure]] = {}
    for method, values in (own[dataset] if ours else rows).items():
        pairs = zip(known["metrics"], values, strict=True)
        if ours:
            pairs = values.items()
        found[method] = {
            metric: _figure(known, metric, *pair, ours=ours)
            for metric, pair in pairs
            if pair is not None
        }
    return found


def _figure(
    table: dict[str, Any], metric: str, value: float, deviation: float | None, *, ours: bool
) -> Figure:
    tolerance = float(table["tolerance"].get(metric, 0.1))
    if metric in table["relative"] or metric not in table["tolerance"]:
        tolerance *= abs(value)
    half = max(tolerance, (3 if ours else 2) * (deviation or 0.0))
    source = OURS if ours else str(table["title"])
    return Figure(value, deviation, value - half, value + half, source)


def _table(name: str) -> dict[str, Any]:
    tables: dict[str, dict[str, Any]] = _document()["tables"]
    if name not in tables:
        raise ConfigError("table", got=repr(name), expected=f"one of {', '.join(tables)}")
    return tables[name]


@cache
def _document() -> dict[str, Any]:
    text = (resources.files(__package__) / "published.yaml").read_text("utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document
