"""One baseline on any data, over seeds: the cells of tables, without a paper to compare with."""

from __future__ import annotations

from pathlib import Path

import torch

from ..baselines.methods import METHODS
from ..config import load_preset, merge_settings, parse_config
from ..errors import ConfigError
from ..files import write_json
from ..train.budget import TrainingProgress
from .reproduce import finished, make_bench, reading, run_cells
from .reproduce_page import NAMES, spread_text
from .reproduce_tables import Scores
from .seeds import over_seeds

KINDS: dict[str, Scores] = {"vae": "likelihood", "ladder_vae": "likelihood", "ddim": "images"}
"""What is scored; clusters, unless here."""


def baseline(
    name: str,
    dataset: str,
    *,
    preset: str,
    seeds: int,
    out: Path,
    leaves: int | None = None,
    images: int = 1000,
    samples: int = 100,
    minutes: float | None = None,
    image_size: int | None = None,
    skip_corrupt: bool = False,
    quiet: bool = False,
) -> str:
    """Computes what is missing, writes `NAME.json`, and returns what to tell the user.

    Args:
        name: of the baseline.
        dataset: a named set or a path.
        preset: whose encoder, denoiser and epochs.
        seeds: how many; the first is 0.
        out: folder of models, cells and results.
        leaves: at which purity is measured; the published number if None.
        images: drawn and compared.
        samples: of each image's likelihood.
        minutes: of this call; None for as long as it takes.
        image_size: side to scale images to; as they are, or as the data set says, if None.
        skip_corrupt: leave out pictures that cannot be used.
        quiet: no progress bar.

    Raises:
        ConfigError: no such baseline or preset, or a number that cannot be.
        DataError: data that cannot be read, or without labels where labels are compared.
    """
    if name not in METHODS:
        raise ConfigError("baseline", got=repr(name), expected=f"one of {', '.join(METHODS)}")
    if seeds < 1:
        raise ConfigError("--seeds", got=seeds, expected="1 or more")
    settings = merge_settings(load_preset(preset).model_dump(), {"tree": {"restarts": 1}})
    config = parse_config(settings, source="--preset")
    config = reading(config, image_size=image_size, skip_corrupt=skip_corrupt)
    if config.threads:
        torch.set_num_threads(config.threads)
    progress = TrainingProgress(minutes=minutes, quiet=quiet)
    short = Path(dataset).name or dataset
    bench = make_bench(
        short, dataset, config, out, progress, images=images, samples=samples, leaves=leaves
    )
    kind = KINDS.get(name, "clusters")
    stopped = run_cells(bench, [name], seeds, kind)
    cells = dict(finished(bench, name, seeds, kind))
    spreads = over_seeds([cell["scores"] for cell in cells.values()]) if cells else {}
    path = out / f"{short}-{name}.json"
    scores = {metric: spread.to_json() for metric, spread in spreads.items()}
    found = {"baseline": name, "dataset": short, "preset": preset, "complete": stopped is None}
    write_json(path, found | {"scores": scores, "cells": list(cells.values())})
    lines = [f"{name} on {short}, {len(cells)} of {seeds} seeds"]
    if stopped is not None:
        lines.append(f"time is up, {stopped}; the same command continues")
    lines += [
        f"  {NAMES.get(metric, metric):20} {spread_text(metric, spread)}"
        for metric, spread in spreads.items()
    ]
    return "\n".join([*lines, f"all numbers: {path}"])
