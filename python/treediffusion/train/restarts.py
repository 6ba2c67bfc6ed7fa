"""Several trees from several seeds, side by side, of which one is kept.

A tree's clusters vary with its seed by ten points of accuracy and more. On a GPU all trees are
joined: a step has as many operations as one tree's, and costs little more. On a CPU arithmetic is
what costs, so each tree has a process of its own, with its own checkpoint, and a machine with as
many free cores needs little more time than for one. A process whose parent has died stops at its
next batch, and so do all when the call's time is over, which the parent alone watches. `selection`
judges without labels.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ..config import Config
from ..data import load_to_train
from ..errors import TrainingError, TreeDiffusionError
from ..memory import keep_freed_memory
from ..progress import Progress
from .budget import OutOfTime
from .grower import Grower
from .images import TrainingImages
from .tree_stage import TreeStage
from .tree_state import PhaseEnd

SEED_STRIDE = 1_000_003
"""Between the seeds of restarts, so that those of neighbouring runs do not meet."""
TOGETHER, APART = "trees.safetensors", "tree-{}.safetensors"
PATIENCE_S = 1.0

Say: TypeAlias = Callable[[str], None]
"""Takes a line for whoever looks on."""


def train_trees(
    images: TrainingImages, config: Config, run: Path, progress: Progress, say: Say
) -> list[Grower]:
    """Trains `tree.restarts` trees, or continues them.

    Args:
        images: to train on.
        config: the run's settings.
        run: folder of the checkpoints: one for each tree, or one for all.
        progress: told about all of them, in the unit of `tree_cost` of one.
        say: told how each phase ended.

    Raises:
        OutOfTime: the progress ended the call; all checkpoints are saved.
        TrainingError: one of them cannot go on; so do all other errors of a stage.
    """
    seeds = [config.seed + number * SEED_STRIDE for number in range(config.tree.restarts)]
    paths = [run / APART.format(number) for number in range(len(seeds))]
    if _joined(images, config, run, paths):
        return TreeStage(
            images, config.tree, run / TOGETHER, progress,
            look=lambda end: say(str(end)), seeds=seeds,
        ).run()  # fmt: skip
    _side_by_side(config, paths, progress, say)
    trees = []
    for seed, path in zip(seeds, paths, strict=True):
        torch.manual_seed(seed)
        trees += TreeStage(images, config.tree, path).run()
    return trees


def _joined(images: TrainingImages, config: Config, run: Path, paths: list[Path]) -> bool:
    """Whether the trees are one network; those that were begun go on as they were begun."""
    if (run / TOGETHER).exists() or any(path.exists() for path in paths):
        return (run / TOGETHER).exists()
    # A spectral norm is found by iteration on one module's weights, so those trees are not joined.
    return images.device.type == "cuda" and not config.tree.spectral_norm


def _side_by_side(config: Config, paths: list[Path], progress: Progress, say: Say) -> None:
    """A process for each path; returns when all have finished."""
    context = multiprocessing.get_context("spawn")
    news: Any = context.Queue()
    stop = context.Event()
    workers: list[BaseProcess] = [
        context.Process(target=_work, args=(config, number, path, news, stop), daemon=True)
        for number, path in enumerate(paths)
    ]
    for worker in workers:
        worker.start()
    over: OutOfTime | None = None
    try:
        # News are read to the end in any case: a process that nobody listens to cannot end.
        while any(worker.is_alive() for worker in workers) or not news.empty():
            try:
                _read(news, len(paths), progress, say)
            except OutOfTime as end:
                over = over or end
                stop.set()
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
    if over is not None:
        raise over


def _read(news: Any, trees: int, progress: Progress, say: Say) -> None:
    try:
        kind, value, where = news.get(timeout=PATIENCE_S)
    except queue.Empty:
        return
    if kind == "error":
        raise value
    if kind == "say":
        say(where)
    elif kind == "skip":
        progress.skip(value / trees)
    else:
        progress.advance(value / trees, f"{trees} trees, {where}")


class _Messenger(Progress):
    """Progress that is told to the parent; without a parent there is nobody to train for."""

    def __init__(self, number: int, news: Any, stop: Event) -> None:
        super().__init__(1, "", quiet=True)
        self._number, self._news, self._stop = number, news, stop

    def advance(self, amount: float, description: str) -> None:
        parent = multiprocessing.parent_process()
        if parent is None or not parent.is_alive():
            sys.exit(1)
        self._news.put(("advance", amount, description))
        if self._stop.is_set():
            raise OutOfTime(description, self.fraction, None)

    def skip(self, amount: float) -> None:
        self._news.put(("skip", amount, ""))

    def look(self, end: PhaseEnd) -> None:
        """What a stage shows when a phase has ended."""
        self._news.put(("say", 0.0, str(replace(end, number=self._number))))


def _work(config: Config, number: int, path: Path, news: Any, stop: Event) -> None:
    """One tree, in a process of its own."""
    # An interrupt from the keyboard reaches every process; the parent answers for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    torch.set_num_threads(config.threads or max(1, torch.get_num_threads() // config.tree.restarts))
    messenger = _Messenger(number, news, stop)
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        images = TrainingImages(load_to_train(config).images, device)
        torch.manual_seed(config.seed + number * SEED_STRIDE)
        stage = TreeStage(images, config.tree, path, messenger, look=messenger.look)
        stage.run()
    except OutOfTime:
        pass  # its checkpoint is saved, and the parent knows
    except TreeDiffusionError as fault:
        news.put(("error", fault, ""))
