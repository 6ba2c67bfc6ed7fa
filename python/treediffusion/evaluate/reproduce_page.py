"""A reproduced table as Markdown: our rows beside the paper's, the protocol, hardware, minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .published import OURS, Figure, in_print, table_metrics, table_title
from .reproduce_tables import TITLES, find_table
from .seeds import Spread

if TYPE_CHECKING:
    from .reproduce import Line, Outcome

NAMES = {
    "dendrogram_purity": "DP %",
    "leaf_purity": "LP %",
    "acc": "ACC %",
    "nmi": "NMI %",
    "ari": "ARI %",
    "fid_reconstruction": "FID rec.",
    "fid_generation": "FID gen.",
    "fid_floor": "FID, real",
    "frechet_reconstruction": "Frechet rec.",
    "frechet_generation": "Frechet gen.",
    "frechet_floor": "Frechet, real",
    "mean_entropy": "entropy",
    "published_log_likelihood": "LL, as published",
    "log_likelihood": "LL",
    "reconstruction": "RL",
    "kl": "KL",
    "elbo": "ELBO",
}
EXTRA = {
    "images": ("fid_floor", "frechet_reconstruction", "frechet_generation", "frechet_floor"),
    "likelihood": ("log_likelihood",),
    "clusters": ("ari",),
    "entropy": (),
}
"""Columns besides the paper's."""
NONE = "–"


def page(outcome: Outcome, pictures: Mapping[str, Sequence[Path]]) -> str:
    """The whole page; `pictures` are files of its columns beside it, by metric."""
    order, metrics = outcome.order, table_columns(outcome)
    head = ["", "seeds", *(NAMES.get(metric, metric) for metric in metrics), "minutes"]
    rows = [row for line in outcome.lines for row in _rows(line, metrics)]
    title = f"# {table_title(order.table)}: {order.dataset}"
    parts = [
        [title, "", _state(outcome), "", _table(head, rows), ""],
        *([f"![{NAMES.get(m, m)}]({files[0].name})", ""] for m, files in pictures.items()),
        _bands(outcome),
        ["## Protocol", "", *_protocol(outcome), ""],
        ["## Hardware and versions", "", *_hardware(outcome), ""],
        ["What differs from the papers and their code, and what that changes: "
         "`docs/differences.md`.", ""],
    ]  # fmt: skip
    return "\n".join(line for part in parts for line in part)


def table_columns(outcome: Outcome) -> list[str]:
    """The metrics of a table: the paper's that there is a figure of, and ours besides."""
    paper, extra = table_metrics(outcome.order.table), EXTRA[outcome.scores]
    shown = {name for line in outcome.lines for name in line.scores}
    metrics = [m for m in paper if m in shown or any(m in line.published for line in outcome.lines)]
    return metrics + [m for m in extra if m in shown]


def _state(outcome: Outcome) -> str:
    if outcome.stopped is not None:
        done = sum(len(line.seeds) for line in outcome.lines)
        total = len(outcome.lines) * outcome.order.seeds
        return (
            f"**PARTIAL: {done} of {total} cells.** Time was up: {outcome.stopped}. "
            "The same command continues."
        )
    judged = sum(len(line.verdicts) for line in outcome.lines)
    rows = len(find_table(outcome.order.table).methods)
    state = "Complete" if len(outcome.lines) == rows else f"{len(outcome.lines)} of {rows} rows"
    if not judged:
        return f"{state}. No figure is known to compare with, so nothing is judged."
    if outcome.outside:
        return f"{state}. **Outside the band: {'; '.join(outcome.outside)}.**"
    return f"{state}. All {judged} figures that can be compared are inside their bands."


def _rows(line: Line, metrics: list[str]) -> list[list[str]]:
    def ours(metric: str) -> str:
        spread = line.scores.get(metric)
        if spread is None:
            return NONE
        text = _pair(
            in_print(metric, spread.mean),
            None if spread.deviation is None else in_print(metric, spread.deviation),
        )
        verdict = line.verdicts.get(metric)
        return text if verdict in (None, "inside") else f"**{text}** ({verdict})"

    title = TITLES.get(line.method, line.method)
    count = str(len(line.seeds)) if line.seeds else "none yet"
    minutes = f"{line.minutes:.1f}" if line.seeds else NONE
    numbers = [count, *map(ours, metrics), minutes]
    if not line.published:
        return [[f"{title}, ours; no published value", *numbers]]
    rows = [[f"{title}, ours", *numbers]]
    source = next(iter(line.published.values())).source
    who = "earlier" if source == OURS else "paper"
    figures = [_figure(line.published.get(metric)) for metric in metrics]
    return [*rows, [f"{title}, {who}", NONE, *figures, NONE]]


def _bands(outcome: Outcome) -> list[str]:
    lines = ["## Bands", ""]
    for line in outcome.lines:
        for metric, figure in line.published.items():
            name = NAMES.get(metric, metric)
            verdict = line.verdicts.get(metric, "not judged")
            lines.append(
                f"- {TITLES.get(line.method, line.method)}, {name}: {figure.low:.4g} to "
                f"{figure.high:.4g} ({verdict}; {figure.source})"
            )
    return [*lines, ""] if len(lines) > 2 else []


def _protocol(outcome: Outcome) -> list[str]:
    facts = dict(outcome.facts)
    notes = facts.pop("notes")
    lines = [f"- {name.replace('_', ' ')}: {_fact(value)}" for name, value in facts.items()]
    lines.append(f"- seeds: 0 to {outcome.order.seeds - 1}")
    notes = [*notes, "minutes by the clock; a model that several rows share counts in each"]
    return [*lines, *(f"- {note}" for note in notes)]


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return str(value)


def _hardware(outcome: Outcome) -> list[str]:
    """Each machine that computed some of it; there may be several, of calls on several days."""
    seen: dict[str, None] = {}
    for line in outcome.lines:
        for cell in line.cells:
            measured = cell["measured"]
            parts = [measured["hardware"], measured["versions"]]
            text = "; ".join(_fact(part) for part in parts) + f"; {measured['date']}"
            seen[text] = None
    return [f"- {text}" for text in seen] or ["- nothing is computed yet"]


def _figure(figure: Figure | None) -> str:
    return NONE if figure is None else _pair(figure.value, figure.deviation)


def _pair(value: float, deviation: float | None) -> str:
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    if deviation is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ± {deviation:.{digits}f}"


def spread_text(metric: str, spread: Spread) -> str:
    """A score over seeds, as papers print it."""
    deviation = spread.deviation
    return _pair(
        in_print(metric, spread.mean), None if deviation is None else in_print(metric, deviation)
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])
