"""Training DeepECT: first the autoencoder alone, then with the tree of centres that grows.

A third of the epochs that a VAE gets goes to the autoencoder, the rest to both; the tree has all
its leaves after a fifth of the rest. Published are 100 and 200 epochs, and a split every second
epoch: the same shares, for a tree of 20 leaves. Killed runs continue bit for bit on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import TreeConfig
from ..errors import ConfigError, TrainingError
from ..progress import Progress
from ..train import checkpoint
from ..train.annealing import learning_rate
from ..train.budget import OutOfTime
from ..train.images import TrainingImages
from ..train.measure import CHUNK
from ..train.optimizer import make_adam
from ..train.plan import phase_cost
from ..train.tree_stage import check_images
from .chain import chain_epochs
from .deepect import ClusterTree


@dataclass
class EctState:
    """Where training stands, besides the networks.

    Attributes:
        epoch: epochs that are done, of both parts.
        step: steps of the epoch that are done.
        order: seed of the epoch's order of images; None before its first step.
        slot: the row of each node, by its name.
    """

    epoch: int = 0
    step: int = 0
    order: int | None = None
    slot: dict[str, int] | None = None


class EctStage:
    """Trains DeepECT.

    Args:
        images: to train on.
        config: the settings of the TreeVAE it is compared with.
        leaves: L, 2 or more.
        path: the checkpoint; an existing one is continued.
        progress: told about every step, in the unit of `train.plan`.

    Raises:
        ConfigError: fewer than two leaves.
        DataError: images that cannot be trained on.
    """

    def __init__(
        self,
        images: TrainingImages,
        config: TreeConfig,
        leaves: int,
        path: Path,
        progress: Progress | None = None,
    ) -> None:
        check_images(images)
        if not 2 <= leaves <= len(images):
            raise ConfigError("leaves", got=leaves, expected=f"2 to {len(images)}, the images")
        self.images, self.config, self.leaves, self.path = images, config, leaves, path
        self.progress = progress or Progress(1, "", quiet=True)
        _, channels, side, _ = images.shape
        self.model = ClusterTree(config, leaves, image_channels=channels, image_size=side)
        self.model.to(images.device)
        self.state = EctState()
        self.epochs = max(3, chain_epochs(config))
        self.alone = self.epochs // 3
        self._losses: list[Tensor] = []
        self._renew()
        if path.exists():
            self._resume()

    @property
    def steps(self) -> int:
        """Of an epoch; the last images, which fill no batch, are left out."""
        return len(self.images) // self._batch

    def run(self) -> ClusterTree:
        """Trains until done; returns the model in eval mode.

        Raises:
            OutOfTime: the progress ended the call; a checkpoint is saved.
            TrainingError: a loss is not finite; the last checkpoint stays.
        """
        saved = time.monotonic()
        while self.state.epoch < self.epochs:
            try:
                self._epoch()
            except OutOfTime:
                self._save()
                raise
            if time.monotonic() - saved > checkpoint.INTERVAL_S:
                self._save()
                saved = time.monotonic()
        self._save()
        return self.model.eval()

    def _epoch(self) -> None:
        state, model = self.state, self.model
        if state.epoch == self.alone and state.step == 0:
            self._renew()
            model.put_root(self._codes())
            model.split(self._codes(), seed=state.epoch)
        clustering = state.epoch >= self.alone
        first = self.alone if clustering else 0
        last = self.epochs if clustering else self.alone
        place = (self.config, "initial", state.epoch - first, last - first)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(*place)
        model.train()
        for rows in self._batches():
            if clustering:
                self._grow()
            self._step(self.images[rows], clustering)
            state.step += 1
            what = f"DeepECT, {model.topology.num_leaves} leaves, epoch {state.epoch + 1}"
            cost = phase_cost("initial", 1, len(rows), 1)
            self.progress.advance(cost, f"{what}/{self.epochs}")
        self._check_finite()
        state.epoch, state.step, state.order = state.epoch + 1, 0, None

    def _step(self, images: Tensor, clustering: bool) -> None:
        z = self.model.encode(images)
        loss = self.model.reconstruction(images, z)
        if clustering:
            loss = loss + sum(self.model.losses(z))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._losses.append(loss.detach())
        if clustering:
            self.model.settle()

    def _grow(self) -> None:
        """Splits a leaf when one is due; a node that was taken out is made up for."""
        done = (self.state.epoch - self.alone) * self.steps + self.state.step
        every = max(1, (self.epochs - self.alone) * self.steps // (5 * max(1, self.leaves - 2)))
        if done and done % every == 0 and self.model.topology.num_leaves < self.leaves:
            self.model.split(self._codes(), seed=done)

    @torch.no_grad()
    def _codes(self) -> Tensor:
        """[n, D] of all images, in eval mode."""
        training = self.model.training
        self.model.eval()
        codes = torch.cat([self.model.encode(x) for x in self.images.chunks(CHUNK)])
        self.model.train(training)
        return codes

    @property
    def _batch(self) -> int:
        return min(self.config.batch_size, len(self.images))

    def _batches(self) -> Iterator[Tensor]:
        """The epoch's batches that are left: [B] positions."""
        if self.state.order is None:
            self.state.order = int(torch.randint(2**62, ()))
        generator = torch.Generator().manual_seed(self.state.order)
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        for step in range(self.state.step, self.steps):
            yield order[step * self._batch : (step + 1) * self._batch]

    def _renew(self) -> None:
        """A fresh optimiser; published with none of the tree's weight decay."""
        self._optimizer = make_adam(self.model.parameters(), self.config.learning_rate)

    def _check_finite(self) -> None:
        losses, self._losses = self._losses, []
        if losses and not math.isfinite(float(torch.stack(losses).sum())):
            raise TrainingError(
                f"DeepECT, epoch {self.state.epoch + 1}",
                got="a loss that is not finite",
                expected="finite numbers",
                hint="train into another folder with a lower tree.learning_rate",
            )

    def _save(self) -> None:
        self._check_finite()
        self.state.slot = dict(self.model.slot)
        tensors = checkpoint.training_state(self.model, self._optimizer)
        checkpoint.save(self.path, tensors, asdict(self.state))

    def _resume(self) -> None:
        tensors, state = checkpoint.load(self.path)
        self.state = EctState(**state)
        checkpoint.restore(self.model, self._optimizer, tensors)
        self.model.slot = dict(self.state.slot or {"r": 0})
        done = self.state.epoch * self.steps + self.state.step
        self.progress.skip(phase_cost("initial", 1, done * self._batch, 1))


def train_deepect(
    images: TrainingImages,
    config: TreeConfig,
    leaves: int,
    path: Path,
    *,
    seed: int,
    progress: Progress | None = None,
) -> ClusterTree:
    """A trained DeepECT in eval mode; arguments and errors are those of `EctStage`."""
    torch.manual_seed(seed)
    return EctStage(images, config, leaves, path, progress).run()


@torch.no_grad()
def assign(model: ClusterTree, images: TrainingImages) -> Tensor:
    """[n] int64, the leaf of each image; batches come to the model's device."""
    model.eval()
    parts = [model.nearest(model.encode(x)) for x in images.chunks(CHUNK)]
    return torch.cat(parts).cpu()
