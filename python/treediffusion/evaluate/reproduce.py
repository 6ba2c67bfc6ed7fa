"""A published table again: its cells computed, its rows set beside the paper's, a verdict.

Seeds come first, so that a call that runs out of time has every method from as many seeds as it
could. What is written then says that it is a part. A row is judged when all seeds asked for are
there; one that no paper has says so, and is not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config
from ..errors import ConfigError
from ..files import write_json, write_text
from ..train.budget import OutOfTime, TrainingProgress
from .published import Figure, Verdict, in_print, published_rows
from .reproduce_cells import cell_cost, cell_path, compute_cell, load_parts, read_cell
from .reproduce_figure import draw_bars
from .reproduce_models import Bench
from .reproduce_page import page
from .reproduce_tables import Scores, Table, find_table, leaves_for, settings_for
from .seeds import Spread, best_seed, over_seeds

MOST_IMAGES = 10_000
"""Drawn for the published distances."""


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        table: its name.
        dataset: its name in the tables, or any for data of one's own.
        data: where the images are; the name of the data set if None.
        preset: of the models; the published one if None.
        seeds: the first of them is 0.
        out: folder of everything.
        methods: rows to compute; all of the table if empty.
        minutes: of this call; None for as long as it takes.
        images: drawn and compared, 2 or more; as many as there are to compare with, but no more
            than the papers' 10,000, if None.
        samples: of each image's likelihood.
        leaves: at which purity is measured; the published number if None.
        image_size: side to scale images to; as they are, or as the data set says, if None.
        skip_corrupt: leave out pictures that cannot be used.
        quiet: no progress bar.
    """

    table: str
    dataset: str
    data: str | None = None
    preset: str | None = None
    seeds: int = 3
    out: Path = Path("runs/reproduce")
    methods: tuple[str, ...] = ()
    minutes: float | None = None
    images: int | None = None
    samples: int = 1000
    leaves: int | None = None
    image_size: int | None = None
    skip_corrupt: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        method: its name.
        seeds: those that are finished.
        scores: over them, in natural units.
        cells: what they were made of.
        published: figures by metric.
        verdicts: of metrics with a figure, when all seeds are there.
    """

    method: str
    seeds: tuple[int, ...]
    scores: dict[str, Spread]
    cells: tuple[dict[str, Any], ...]
    published: dict[str, Figure]
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def minutes(self) -> float:
        """Of all its cells, shared models counted in each."""
        return sum(float(cell["minutes"]) for cell in self.cells)


@dataclass(frozen=True)
class Outcome:
    """A table, whole or in part.

    Attributes:
        order: what was asked for.
        scores: the kind of table.
        facts: the protocol, as numbers by name.
        lines: the rows.
        stopped: what was going on when the time was up; None where everything is there.
        folder: where it is written.
    """

    order: Order
    scores: Scores
    facts: dict[str, Any]
    lines: tuple[Line, ...]
    stopped: str | None
    folder: Path

    @property
    def outside(self) -> list[str]:
        """Verdicts that break the band, as text."""
        return [
            f"{line.method} {metric} {verdict} its band"
            for line in self.lines
            for metric, verdict in line.verdicts.items()
            if verdict != "inside"
        ]


def reproduce(order: Order) -> Outcome:
    """Computes what is missing of a table, and writes it as Markdown, JSON and bars.

    Raises:
        ConfigError: no such table, method or preset, or a number that cannot be.
        DataError: data that cannot be read, or without labels where labels are compared.
        CheckpointError: a file that cannot be read or written.
    """
    table = find_table(order.table)
    methods = _methods(order, table.methods)
    config = settings_for(table, order.dataset, order.preset)
    config = reading(config, image_size=order.image_size, skip_corrupt=order.skip_corrupt)
    if config.threads:
        torch.set_num_threads(config.threads)
    progress = TrainingProgress(minutes=order.minutes, quiet=order.quiet)
    bench = _bench(order, config, progress)
    stopped = run_cells(bench, methods, order.seeds, table.scores)
    published = published_rows(order.table, order.dataset)
    lines = [
        _line(bench, method, order.seeds, table.scores, published.get(method, {}))
        for method in methods
    ]
    folder = order.out / f"{order.table}-{order.dataset}"
    outcome = Outcome(
        order, table.scores, _facts(bench, config, table), tuple(lines), stopped, folder
    )
    write_json(folder / "result.json", to_json(outcome))
    write_text(folder / "result.md", page(outcome, draw_bars(outcome)))
    return outcome


def reading(config: Config, *, image_size: int | None, skip_corrupt: bool) -> Config:
    """Settings that read images so: what is not asked for stays as it is."""
    changed = ({} if image_size is None else {"image_size": image_size}) | (
        {"skip_corrupt": True} if skip_corrupt else {}
    )
    return config.model_copy(update=changed)


def run_cells(bench: Bench, methods: Sequence[str], seeds: int, scores: Scores) -> str | None:
    """Computes the cells that are missing; returns what was going on when the time was up."""
    missing = [
        (method, seed)
        for seed in range(seeds)
        for method in methods
        if not cell_path(bench, method, seed, scores).exists()
    ]
    costs = sum(cell_cost(bench, method, scores) for method, _ in missing)
    with bench.progress as progress:
        progress.extend(max(costs, 1.0))
        try:
            for method, seed in missing:
                compute_cell(bench, method, seed, scores)
        except OutOfTime as stop:
            return str(stop)
    return None


def make_bench(
    dataset: str,
    data: str | None,
    config: Config,
    out: Path,
    progress: TrainingProgress,
    *,
    images: int | None,
    samples: int,
    leaves: int | None,
) -> Bench:
    """Reads the data, and settles what follows from them.

    Raises:
        ConfigError: a number that cannot be.
        DataError: data that cannot be read.
    """
    train, judged = load_parts(
        data or dataset, size=config.image_size, skip_corrupt=config.skip_corrupt
    )
    images = min(MOST_IMAGES, len(judged.images)) if images is None else images
    for name, value, least in (("--images", images, 2), ("--samples", samples, 1)):
        if value < least:
            raise ConfigError(name, got=value, expected=f"{least} or more")
    labels = judged.labels
    k = config.tree.max_leaves if labels is None else len(np.unique(labels))
    return Bench(
        dataset, train, judged, config, k, leaves_for(dataset, k) if leaves is None else leaves,
        images, samples, out, progress,
    )  # fmt: skip


def finished(
    bench: Bench, method: str, seeds: int, scores: Scores
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Seeds of a method that are there, with their cells."""
    for seed in range(seeds):
        path = cell_path(bench, method, seed, scores)
        if path.exists():
            yield seed, read_cell(path)


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Everything that is known of a table, for programs."""
    order = outcome.order
    return {
        "table": order.table,
        "dataset": order.dataset,
        "complete": outcome.stopped is None,
        "stopped": outcome.stopped,
        "seeds_asked_for": order.seeds,
        "protocol": outcome.facts,
        "rows": [_row(line) for line in outcome.lines],
        "outside": outcome.outside,
    }


def _row(line: Line) -> dict[str, Any]:
    scores = [cell["scores"] for cell in line.cells]
    best = best_seed(scores)
    return {
        "method": line.method,
        "seeds": list(line.seeds),
        "minutes": round(line.minutes, 2),
        "scores": {name: spread.to_json() for name, spread in line.scores.items()},
        "best_elbo_seed": None if best is None else line.seeds[best],
        "published_as_printed": {
            metric: {"value": figure.value, "deviation": figure.deviation,
                     "band": [figure.low, figure.high], "source": figure.source}
            for metric, figure in line.published.items()
        } or "no published value",
        "verdicts": line.verdicts,
        "cells": list(line.cells),
    }  # fmt: skip


def _bench(order: Order, config: Config, progress: TrainingProgress) -> Bench:
    if order.seeds < 1:
        raise ConfigError("--seeds", got=order.seeds, expected="1 or more")
    return make_bench(
        order.dataset, order.data, config, order.out, progress,
        images=order.images, samples=order.samples, leaves=order.leaves,
    )  # fmt: skip


def _methods(order: Order, known: tuple[str, ...]) -> tuple[str, ...]:
    for method in order.methods:
        if method not in known:
            raise ConfigError(
                "--methods", got=repr(method), expected=f"rows of {order.table}: {', '.join(known)}"
            )
    return order.methods or known


def _line(
    bench: Bench, method: str, seeds: int, scores: Scores, published: dict[str, Figure]
) -> Line:
    found = dict(finished(bench, method, seeds, scores))
    cells = tuple(found.values())
    spreads = over_seeds([cell["scores"] for cell in cells]) if cells else {}
    verdicts = {
        metric: figure.verdict(in_print(metric, spreads[metric].mean))
        for metric, figure in published.items()
        if metric in spreads and len(found) == seeds
    }
    return Line(method, tuple(found), spreads, cells, published, verdicts)


def _facts(bench: Bench, config: Config, table: Table) -> dict[str, Any]:
    same = bench.train.fingerprint == bench.judged.fingerprint
    facts: dict[str, Any] = {
        "preset": config.preset,
        "changed": "one restart for each seed",
        "trained_on": {"images": len(bench.train.images), "fingerprint": bench.train.fingerprint},
        "scored_on": {
            "part": "the training images, there being no others" if same else "test",
            "images": len(bench.judged.images),
            "fingerprint": bench.judged.fingerprint,
        },
        "clusters": bench.k,
    }
    if table.scores == "clusters":
        facts["leaves_for_purity"] = bench.leaves
    if table.scores in ("images", "entropy"):
        facts["images_drawn"] = bench.images
    if table.scores == "likelihood":
        facts["samples_per_image"] = bench.samples
    return facts | {"notes": list(table.protocol)}
