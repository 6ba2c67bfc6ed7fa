"""A cell of a table: one method on one data set from one seed, trained, scored and kept as JSON.

    key = hash of data, settings, seed, method and protocol
    OUT/cells/DATASET-METHOD-SEED-KEY.json   scores, minutes, machine

A cell that is there under its key is read, not computed again; one that was stopped goes on from
its models' checkpoints. Other settings have other keys, so that nothing stale is ever shown.
"""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch

from ..baselines.methods import Name, training_cost
from ..data import ImageSet, load_images
from ..errors import CheckpointError, DataError
from ..files import write_json
from ..train.plan import diffusion_cost, tree_cost
from .keyed import content_key
from .reproduce_fid import weights_at_hand
from .reproduce_models import Bench, Models
from .reproduce_scores import BASELINES, score
from .reproduce_tables import SIGNALS, Scores

PROTOCOL = 1
"""Number of the way of scoring; another way is another number, and so another key."""


def load_parts(
    source: str, *, size: int | None = None, skip_corrupt: bool = False
) -> tuple[ImageSet, ImageSet]:
    """Training and test part of a named set or a path; the former twice where it has no other.

    Raises:
        DataError: data that cannot be read; of a test part, too.
    """
    read = partial(load_images, source, size=size, skip_corrupt=skip_corrupt)
    train = read()
    try:
        return train, read(split="test")
    except DataError as fault:
        # Only a part that is not there has the other stand in for it, and never one that is bad.
        if fault.name != "split":
            raise
        return train, train


def cell_path(bench: Bench, method: str, seed: int, scores: Scores) -> Path:
    """Where a cell lies, or will."""
    settings = bench.seeded(seed).model_dump(mode="json") | {"preset": "", "data": ""}
    protocol = {
        "protocol": PROTOCOL, "scores": scores, "method": method, "k": bench.k,
        "leaves": bench.leaves if scores == "clusters" else 0,
        "images": bench.images if scores in ("images", "entropy") else 0,
        "samples": bench.samples if scores == "likelihood" else 0,
        "inception": scores == "images" and weights_at_hand() is not None,
    }  # fmt: skip
    key = content_key(bench.train.fingerprint, bench.judged.fingerprint, settings, protocol)
    return bench.out / "cells" / f"{bench.dataset}-{method}-{seed}-{key}.json"


def read_cell(path: Path) -> dict[str, Any]:
    """A finished cell.

    Raises:
        CheckpointError: the file holds something else.
    """
    try:
        cell = dict(json.loads(path.read_text("utf-8")))
        {str(name): float(value) for name, value in cell["scores"].items()}
        float(cell["minutes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise CheckpointError(
            str(path),
            got=str(fault) or type(fault).__name__,
            expected="a cell as it was written",
            hint="remove the file to have the cell computed again",
        ) from fault
    return cell


def compute_cell(bench: Bench, method: str, seed: int, scores: Scores) -> dict[str, Any]:
    """A cell, read or computed; `minutes` are those of its scoring and of all its models.

    Raises:
        OutOfTime: the progress ended the call; the same call continues.
        DataError: images without labels where labels are compared.
        CheckpointError: a file that cannot be read or written.
    """
    path = cell_path(bench, method, seed, scores)
    if path.exists():
        return read_cell(path)
    bench.progress.advance(0, f"{method}, seed {seed}")
    models, start = Models(bench, seed), time.monotonic()
    row = score(models, method, scores)
    own = max(0.0, (time.monotonic() - start) / 60 - models.spent)
    cell = {
        "dataset": bench.dataset,
        "method": method,
        "seed": seed,
        "scores": row,
        "minutes": round(own + models.minutes, 3),
        "measured": measured(bench.device),
    }
    write_json(path, cell)
    return cell


def cell_cost(bench: Bench, method: str, scores: Scores) -> float:
    """What a cell's training costs, in the unit of `train.plan`; scoring is not counted."""
    if method in BASELINES:
        return training_cost(cast("Name", method), bench.task(0))
    count, side = len(bench.train.images), bench.train.images.shape[-1]
    trees = 2 if scores == "clusters" and bench.leaves != bench.k else 1
    drawing = diffusion_cost(bench.config.diffusion, side) if method in SIGNALS else 0.0
    return trees * tree_cost(bench.config.tree, count) + drawing


def measured(device: str) -> dict[str, Any]:
    """What a cell was computed on and with."""
    versions = {"python": platform.python_version()}
    for name in ("treediffusion", "torch", "numpy", "scikit-learn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    hardware = {"cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()} | gpu
    return {
        "hardware": hardware,
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpu() -> str:
    """The processor's name; on systems without /proc what Python knows."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return " ".join(names[0].split()) if names else platform.machine()
