"""Several trees from several seeds, side by side, and the one with the best ELBO.

A tree's clusters vary with its seed by ten points of accuracy and more. The ELBO is the judge that
needs no labels. Each tree is trained by a process of its own, with its own checkpoint, so that a
machine with as many free cores needs little more time than for one. A process whose parent has died
stops at its next batch.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..data import load_images, to_float
from ..errors import TrainingError, TreeDiffusionError
from ..progress import Progress
from .tree_stage import TreeStage

SEED_STRIDE = 1_000_003
"""Between the seeds of restarts, so that those of neighbouring runs do not meet."""
PATIENCE_S = 1.0


def train_trees(
    images: Tensor, config: Config, paths: list[Path], progress: Progress | None
) -> TreeStage:
    """Trains a tree for each path, or continues it, and returns the stage of the best.

    Args:
        images: [n, C, H, W] float in 0..1, on the device to train on.
        config: the run's settings.
        paths: a checkpoint for each restart.
        progress: told about all of them, in the unit of `tree_cost` of one.
    """
    if len(paths) > 1:
        _side_by_side(config, paths, progress)
        progress = None
    stages = []
    for number, path in enumerate(paths):
        torch.manual_seed(config.seed + number * SEED_STRIDE)
        stage = TreeStage(images, config.tree, path, progress)
        stage.run()
        stages.append(stage)
    return max(stages, key=lambda stage: float(stage.state.history[-1]["elbo"]))


def _side_by_side(config: Config, paths: list[Path], progress: Progress | None) -> None:
    """A process for each path; returns when all have finished."""
    context = multiprocessing.get_context("spawn")
    news: Any = context.Queue()
    workers: list[BaseProcess] = [
        context.Process(target=_work, args=(config, number, path, news), daemon=True)
        for number, path in enumerate(paths)
    ]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers) or not news.empty():
            _read(news, len(paths), progress)
        for number, worker in enumerate(workers):
            worker.join()
            if worker.exitcode:
                raise TrainingError(
                    f"tree {number}",
                    got=f"a process that ended with code {worker.exitcode}",
                    expected="0",
                    hint="repeat the command to continue; was there enough memory?",
                )
    finally:
        for worker in workers:
            worker.terminate()


def _read(news: Any, trees: int, progress: Progress | None) -> None:
    try:
        kind, value, where = news.get(timeout=PATIENCE_S)
    except queue.Empty:
        return
    if kind == "error":
        raise value
    if progress is not None and kind == "skip":
        progress.skip(value / trees)
    elif progress is not None:
        progress.advance(value / trees, f"best of {trees}, {where}")


class _Messenger(Progress):
    """Progress that is told to the parent; without a parent there is nobody to train for."""

    def __init__(self, news: Any) -> None:
        super().__init__(1, "", quiet=True)
        self._news = news

    def advance(self, amount: float, description: str) -> None:
        parent = multiprocessing.parent_process()
        if parent is None or not parent.is_alive():
            sys.exit(1)
        self._news.put(("advance", amount, description))

    def skip(self, amount: float) -> None:
        self._news.put(("skip", amount, ""))


def _work(config: Config, number: int, path: Path, news: Any) -> None:
    """One tree, in a process of its own."""
    # An interrupt from the keyboard reaches every process; the parent answers for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(config.threads or max(1, torch.get_num_threads() // config.tree.restarts))
    try:
        images = torch.from_numpy(to_float(load_images(config.data).images))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(config.seed + number * SEED_STRIDE)
        TreeStage(images.to(device), config.tree, path, _Messenger(news)).run()
    except TreeDiffusionError as fault:
        news.put(("error", fault, ""))
