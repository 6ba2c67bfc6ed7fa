"""Training the denoiser under a frozen tree.

    t ~ U{0..T-1},  leaf ~ p(l | x) for each image,  y = sum of f_embed(z_i) + f_node(i) on its path
    loss = | eps - eps_theta(sqrt(ab) x0 + sqrt(1 - ab) eps, t, y) |^2

What the tree tells of the images is `conditions`' business, what is lost that of the objective.
Killed runs continue bit for bit on the CPU: the order of the images follows from the seed and the
step alone. On a GPU that holds all images the whole step, from drawing latents to averaging
weights, is one CUDA graph.
Nowhere is a loss waited for in every step: they are read, and judged, in windows and before
anything is written.

Weights, their averages, Adam and the loss are float32 whatever the precision, which is that of the
network's pass alone. Several processes may train together: see `distributed`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..config import DiffusionConfig
from ..diffusion.augment import augment
from ..diffusion.denoiser import Denoiser
from ..diffusion.model import make_denoiser, make_schedule, tree_key
from ..diffusion.objective import DiffusionLoss
from ..errors import CheckpointError, TrainingError
from ..nn import winograd
from ..nn.ema import Ema, average_of, prefix, unknown_decay
from ..nn.tree_vae import TreeVAE
from ..progress import Progress
from . import checkpoint
from .budget import OutOfTime
from .conditions import Conditions
from .distributed import Team
from .images import TrainingImages
from .optimizer import make_adam
from .plan import step_cost
from .step import Step, make_step

LOSS_WINDOW = 100
"""Steps that the reported loss is a mean of."""

LOOK_INTERVAL_S = 300.0
"""Seconds between two looks at the training; the first is at the first checkpoint."""

LARGEST_SHARE = 0.05
"""Of the time, for writing checkpoints: those of large networks come less often."""

Look: TypeAlias = Callable[[int, Denoiser], None]
"""Shown the step and the averaged network while it is trained."""


@dataclass
class DiffusionState:
    """Where training stands, besides the networks.

    Attributes:
        step: optimiser steps done.
        window: sum of the losses since the last row of the history.
        history: a row per `LOSS_WINDOW` steps: the step, and the mean loss up to it.
        tree: key of the tree that the denoiser belongs to.
    """

    step: int = 0
    window: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    tree: str = ""


class DiffusionStage:
    """Trains a denoiser.

    Args:
        images: to train on.
        tree: the frozen tree, on that device.
        config: the stage's settings.
        seed: of the order of the images.
        path: the checkpoint; an existing one is continued.
        progress: told about the steps, in the unit of `diffusion_cost`.
        look: shown the training now and then, and its end.
        team: the processes that train it; every one makes this stage and runs it, on the same
            images and with its random numbers in the same state.
    """

    def __init__(
        self,
        images: TrainingImages,
        tree: TreeVAE,
        config: DiffusionConfig,
        path: Path,
        *,
        seed: int,
        progress: Progress | None = None,
        look: Look | None = None,
        team: Team | None = None,
    ) -> None:
        self.images, self.config, self.path = images, config, path
        self.seed, self.progress, self.look = seed, progress, look
        self.team = team or Team()
        self.tree = tree.eval().requires_grad_(False)
        self.state = DiffusionState(tree=tree_key(tree))
        self.denoiser = make_denoiser(tree, config).to(images.device)
        self._layout = training_layout(images.device, config)
        self.denoiser.to(memory_format=self._layout)
        self.ema = Ema(self.denoiser, config.ema, config.ema_also)
        self._optimizer = make_adam(self.denoiser.parameters(), config.learning_rate)
        # Hooks, so that a recorded step holds them.
        self._optimizer.register_step_pre_hook(self._prepare_gradients)
        self._optimizer.register_step_post_hook(self._average)
        self._objective = DiffusionLoss(
            make_schedule(config), prediction=config.prediction, loss=config.loss, like=images[:1]
        )
        self._step_cost = step_cost(config, images.shape[-1])
        self._predict = self.team.divided(self._pass)
        self._losses: list[Tensor] = []
        self._order: tuple[int, Tensor] | None = None
        if path.exists():
            self._resume()

    @property
    def done(self) -> bool:
        """Whether all steps have been made."""
        return self.state.step >= self.config.steps

    @property
    def trained(self) -> Denoiser:
        """The network in training: see `Objective`, which this is."""
        return self.denoiser

    @property
    def counts(self) -> list[int]:
        """[1] images."""
        return [len(self.images)]

    def run(self) -> Denoiser:
        """Trains until done; returns the averaged network in eval mode.

        Raises:
            OutOfTime: the progress ended the call; a checkpoint is saved.
            TrainingError: a loss or a weight is not finite; the last checkpoint stays.
        """
        try:
            self._train()
        except OutOfTime:
            self._save()
            raise
        return self.ema.module

    def averaged(self, decay: float) -> Denoiser:
        """The network averaged with another decay that is kept.

        Raises:
            ConfigError: none is kept with it.
        """
        return self.ema.averaged(decay)

    def loss(self, rows: Tensor, kl_weight: float | Tensor) -> Tensor:
        """rows: [B] int64, positions of images -> a scalar; there is no KL term to weigh."""
        x0, told, labels = self._x0(rows), self._conditions.draw(rows), None
        if self.config.augmentation == "edm":
            x0, labels = augment(x0)
        y = self.denoiser.condition(told.z_path, told.nodes, labels)
        seen = None if told.reconstruction is None else self._in_range(told.reconstruction)
        return self._objective(lambda x_t, t, y: self._predict(x_t, t, y, seen), x0, y)

    def _train(self) -> None:
        if self.done:
            return
        self._conditions = Conditions(self.images, self.tree, self.config)
        if self.images.device.type == "cuda":
            # A checkpoint does not hold the device's random numbers; these are not the first ones.
            torch.cuda.manual_seed((self.seed * 1_000_003 + self.state.step) % 2**63)
        self.denoiser.train()
        step = self._make_step()
        pace = _Pace()
        while not self.done:
            step.set(kl_weight=0.0, learning_rate=self._learning_rate())
            self._losses.append(step(self._batch()))
            self.state.step += 1
            if self.state.step % LOSS_WINDOW == 0:
                self._read_losses()
            self._report()
            if self.team.leads and (self.done or pace.is_due):
                with pace:
                    self._save()
                self._show(pace)

    def _make_step(self) -> Step:
        """Recorded on a GPU, but not with several processes, whose transfers stay as they are."""
        if self.team.size > 1:
            return Step(self, self._optimizer)
        return make_step(self, self._optimizer, resident=self.images.resident)

    def _x0(self, rows: Tensor) -> Tensor:
        """[B, C, H, W] images as the network sees them, in the layout it is trained in."""
        x0 = self._in_range(self.images[rows])
        return x0.contiguous(memory_format=self._layout)

    def _in_range(self, images: Tensor) -> Tensor:
        """Images in 0..1 as the network sees them."""
        return images if self.config.pixel_range == "0..1" else 2 * images - 1

    def _batch(self) -> Tensor:
        """[B] positions: epochs whose order follows from the seed and the step.

        Shuffled: a new order in each, so that its last images, which fill no batch, differ.
        Otherwise, as published: batch b is images b B to (b + 1) B - 1 in every epoch, and the
        images after the last whole batch are never seen.
        """
        count = len(self.images)
        size = min(self.config.batch_size, count)
        epoch, batch = divmod(self.state.step, count // size)
        if self._order is None or self._order[0] != epoch:
            order = torch.arange(count)
            if self.config.shuffle:
                generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
                order = torch.randperm(count, generator=generator)
            self._order = epoch, order.to(self.images.device)
        return self._order[1][batch * size : (batch + 1) * size]

    def _pass(self, *batch: Tensor | None) -> Tensor:
        """The network in training: see `Denoiser.forward`; float32 whatever the precision."""
        device, narrow = self.images.device, self.config.precision == "bfloat16"
        masks = self.team.apart(self.seed * 1_000_003 + self.state.step, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow), masks:
            out: Tensor = self.denoiser(*batch)
        return out.float()

    def _prepare_gradients(self, *_: object) -> None:
        """Before Adam: the whole batch's gradient, no longer than `clip`."""
        weights = list(self.denoiser.parameters())
        self.team.add_gradients(weights)
        torch.nn.utils.clip_grad_norm_(weights, self.config.clip)

    def _average(self, *_: object) -> None:
        """After Adam."""
        self.ema.update()

    def _learning_rate(self) -> float:
        config, step = self.config, self.state.step
        rate = config.learning_rate * min(step / max(config.warmup, 1), 1.0)
        if config.learning_rate_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / config.steps))
        return rate

    def _report(self) -> None:
        """Tells of a step; the leader's time is everybody's."""
        state, end = self.state, None
        shown = f", loss {state.history[-1]['loss']:.4f}" if state.history else ""
        where = f"diffusion, step {state.step}/{self.config.steps}{shown}"
        if self.progress is not None:
            try:
                self.progress.advance(self._step_cost, where)
            except OutOfTime as stop:
                end = stop
        if self.team.agree(end is not None):
            self.team.dismiss()
            assert end is not None
            raise end

    def _read_losses(self) -> None:
        """Judges the losses since the last time, in one answer of the device."""
        losses, self._losses, state = self._losses, [], self.state
        if not losses:
            return
        first = state.step - len(losses) + 1
        for step, loss in enumerate(torch.stack(losses).tolist(), first):
            if not math.isfinite(loss):
                raise self._diverged(step, f"a loss of {loss}")
            state.window += loss
        if state.step % LOSS_WINDOW == 0:
            state.history.append({"step": state.step, "loss": state.window / LOSS_WINDOW})
            state.window = 0.0

    def _diverged(self, step: int, got: str) -> TrainingError:
        """What to say of numbers that no training recovers from."""
        kept = f"; {self.path} holds the last good state" if self.path.exists() else ""
        return TrainingError(
            f"diffusion, step {step}",
            got=got,
            expected="finite numbers",
            hint=f"train into another folder with a lower diffusion.learning_rate{kept}",
        )

    def _show(self, pace: _Pace) -> None:
        """Whatever the look draws at random, training does not miss it."""
        if self.look is None or not (self.done or pace.shows()):
            return
        device = self.images.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.look(self.state.step, self.ema.module)

    def _save(self) -> None:
        """Writes what is finite, or nothing."""
        if not self.team.leads:
            return
        self._read_losses()
        weights = list(self.denoiser.parameters())
        if not bool(torch.stack([weight.isfinite().all() for weight in weights]).all()):
            raise self._diverged(self.state.step, "weights that are not finite")
        tensors = checkpoint.training_state(self.denoiser, self._optimizer)
        checkpoint.save(self.path, tensors | self.ema.state_dict(), asdict(self.state))

    def _resume(self) -> None:
        tensors, state = checkpoint.load(self.path)
        check_belongs(self.path, state, self.tree)
        self.state = DiffusionState(**state)
        self.ema.load_state_dict(tensors)
        checkpoint.restore(self.denoiser, self._optimizer, tensors)
        _follow_layout(self._optimizer)
        if self.progress is not None:
            self.progress.skip(self.state.step * self._step_cost)


class _Pace:
    """When the next checkpoint is due, and the next look.

    As a context it is the writing of a checkpoint.
    """

    def __init__(self) -> None:
        self._saved = time.monotonic()
        self._wait = checkpoint.INTERVAL_S
        self._shown = -math.inf

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._saved > self._wait

    def __enter__(self) -> None:
        self._saved = time.monotonic()

    def __exit__(self, *_: object) -> None:
        began, self._saved = self._saved, time.monotonic()
        factor = (self._saved - began) / (LARGEST_SHARE * abs(checkpoint.INTERVAL_S))
        self._wait = checkpoint.INTERVAL_S * max(1.0, factor)

    def shows(self) -> bool:
        """Whether a look is due; asking is looking."""
        if time.monotonic() - self._shown < LOOK_INTERVAL_S:
            return False
        self._shown = time.monotonic()
        return True


def check_belongs(path: Path, state: Mapping[str, Any], tree: TreeVAE) -> None:
    """Makes sure that a denoiser's checkpoint is one of a denoiser of this tree.

    Raises:
        CheckpointError: it belongs to another.
    """
    own = tree_key(tree)
    if state.get("tree") != own:
        raise CheckpointError(
            str(path),
            got=f"a denoiser of the tree {state.get('tree', 'without a key')}",
            expected=f"one of the tree {own}, whose nodes and latents it was trained on",
            hint="restore that tree's checkpoint, or move the denoiser's away to train a new one",
        )


def averaged_weights(
    tensors: Mapping[str, Tensor], config: DiffusionConfig, decay: float | None = None
) -> dict[str, Tensor]:
    """A checkpoint's averaged network.

    Args:
        tensors: of the checkpoint.
        config: of the stage that wrote it.
        decay: of the average; None for the main one.

    Returns:
        The weights, by the network's own names.

    Raises:
        ConfigError: no average is kept with that decay.
        CheckpointError: the checkpoint does not hold it.
    """
    kept = (config.ema, *config.ema_also)
    if decay is not None and decay not in kept:
        raise unknown_decay(decay, kept)
    main = decay is None or decay == config.ema
    return average_of(tensors, prefix(config.ema if decay is None else decay, main=main))


def training_layout(device: torch.device, config: DiffusionConfig) -> torch.memory_format:
    """Channels last is how GPUs convolve, and CPUs wide maps of float32 in Winograd's form.

    Everything else is slower with it on a CPU.
    """
    wide = config.precision == "float32" and config.unet.channels >= winograd.WIDTH
    return torch.channels_last if device.type == "cuda" or wide else torch.contiguous_format


def _follow_layout(optimizer: Optimizer) -> None:
    """Gives moments the layout of their weights, which fused kernels take for granted."""
    for weight, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.shape == weight.shape and moment.stride() != weight.stride():
                moments[name] = torch.empty_like(weight).copy_(moment)
