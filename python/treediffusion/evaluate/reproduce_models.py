"""The models behind a cell of a table, trained or read from their checkpoints.

    key = hash of the training images, the model's own settings and the seed
    OUT/models/KEY/..

Cells that need the same model share it: the tree of a seed is the same in every table. Beside each
model lie the minutes that its training took in all calls.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..baselines.methods import Found, Name, Task, run_method
from ..config import Config
from ..data import ImageSet, to_bytes, to_float
from ..diffusion.denoiser import Denoiser
from ..files import write_json
from ..nn.tree_vae import TreeVAE
from ..train.budget import TrainingProgress
from ..train.diffusion_stage import DiffusionStage
from ..train.images import TrainingImages
from ..train.tree_stage import TreeStage
from .classifier import Classifier, best_device, train_classifier
from .keyed import content_key
from .reproduce_tables import SIGNALS

CLASSIFIER_EPOCHS = 10
"""Of the judge of images."""
SMALLEST_SIDE = 8
"""Pixels that the judge needs."""


@dataclass(frozen=True)
class Bench:
    """Everything that the cells of one call have in common.

    Attributes:
        dataset: its name in the tables.
        train: images to learn from.
        judged: images to score on; the same where there is no test part.
        config: settings of the models, whose seed is each cell's own.
        k: clusters.
        leaves: at which purity is measured.
        images: drawn and compared.
        samples: of each image's likelihood.
        out: folder of cells and models.
        progress: of the whole call.
    """

    dataset: str
    train: ImageSet
    judged: ImageSet
    config: Config
    k: int
    leaves: int
    images: int
    samples: int
    out: Path
    progress: TrainingProgress

    @property
    def device(self) -> str:
        """Where everything runs."""
        return best_device()

    def seeded(self, seed: int) -> Config:
        """The settings with a cell's seed."""
        return self.config.model_copy(update={"seed": seed})

    def task(self, seed: int, folder: str = "") -> Task:
        """What a baseline is given."""
        return Task(
            self.train.images, self.judged.images, self.seeded(seed), self.k, self.leaves,
            self.out / "models" / folder, self.progress, self.device,
        )  # fmt: skip

    def placed(self, data: ImageSet) -> TrainingImages:
        """Images whose batches go to the device."""
        return TrainingImages(data.images, self.device)

    def tensor(self, data: ImageSet) -> torch.Tensor:
        """[n, C, H, W] float in 0..1, on the device."""
        return torch.from_numpy(to_float(data.images)).to(self.device)


class Models:
    """A cell's models.

    Attributes:
        minutes: of all that were asked for, in all calls.
        spent: of this call.
    """

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.seed, self.config = bench, seed, bench.seeded(seed)
        self.minutes, self.spent = 0.0, 0.0

    def baseline(self, method: Name) -> Found:
        """A baseline's clusters and models."""
        config = self.config
        section = config.diffusion if method == "ddim" else config.tree
        leaves = self.bench.leaves if method == "deepect" else 0
        folder = self._folder({"baseline": section.model_dump(mode="json"), "leaves": leaves})
        with _Clock(self, folder / f"{method}.minutes.json"):
            return run_method(method, self.bench.task(self.seed, folder.name))

    def tree(self, leaves: int) -> TreeVAE:
        """A TreeVAE of at most so many leaves, in eval mode."""
        levels = max(self.config.tree.levels, math.ceil(math.log2(leaves)) + 1)
        changed = {"max_leaves": leaves, "levels": levels}
        config = self.config.tree.model_copy(update=changed)
        folder = self._folder({"tree": config.model_dump(mode="json")})
        with _Clock(self, folder / "tree.minutes.json"):
            torch.manual_seed(self.seed)
            images, path = self.bench.placed(self.bench.train), folder / "tree.safetensors"
            return TreeStage(images, config, path, self.bench.progress).run()[0].tree.eval()

    def denoiser(self, tree: TreeVAE, method: str) -> tuple[Denoiser, Config]:
        """A denoiser of a tree in eval mode, and the settings with what it is told."""
        told = self.config.diffusion.model_copy(update=SIGNALS[method])
        settings = {"tree": tree.config.model_dump(mode="json")}
        folder = self._folder(settings | {"denoiser": told.model_dump(mode="json")})
        with _Clock(self, folder / "denoiser.minutes.json"):
            torch.manual_seed(self.seed + 1)
            stage = DiffusionStage(
                self.bench.placed(self.bench.train), tree, told, folder / "denoiser.safetensors",
                seed=self.seed, progress=self.bench.progress,
            )  # fmt: skip
            denoiser = stage.run().eval()
        return denoiser, self.config.model_copy(update={"diffusion": told})

    def judge(self) -> Classifier | None:
        """The classifier that judges images of this data set; None without labels."""
        train = self.bench.train
        if train.labels is None or train.images.shape[-1] < SMALLEST_SIDE:
            return None
        classes, numbers = np.unique(train.labels, return_inverse=True)
        key = content_key(train.fingerprint, {"epochs": CLASSIFIER_EPOCHS})
        folder = self.bench.out / "models" / f"judge-{key}"
        with _Clock(self, folder / "minutes.json"):
            return train_classifier(
                to_bytes(train.images), numbers.astype(np.int64), classes=len(classes),
                epochs=CLASSIFIER_EPOCHS, path=folder / "classifier.safetensors",
                device=self.bench.device,
            )  # fmt: skip

    def _folder(self, settings: dict[str, Any]) -> Path:
        key = content_key(self.bench.train.fingerprint, settings | {"seed": self.seed})
        return self.bench.out / "models" / key


class _Clock:
    """Adds the minutes inside to a model's file, and the file's to the cell's."""

    def __init__(self, models: Models, path: Path) -> None:
        self._models, self._path = models, path

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        inside = (time.monotonic() - self._start) / 60
        before = float(json.loads(self._path.read_text("utf-8"))) if self._path.exists() else 0.0
        write_json(self._path, before + inside)
        self._models.minutes += before + inside
        self._models.spent += inside
