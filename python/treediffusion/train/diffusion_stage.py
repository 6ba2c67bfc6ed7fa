"""Training the denoiser under a frozen tree.

    t ~ U{0..T-1},  leaf ~ p(l | x) for each image,  y = sum of f_embed(z_i) + f_node(i) on its path
    loss = | eps - eps_theta(sqrt(ab) x0 + sqrt(1 - ab) eps, t, y) |^2

The tree's bottom-up maps and leaf probabilities of an image never change, so they are computed
once; its latents are drawn afresh in every step. No decoder runs. Killed runs continue bit for bit
on the CPU: the order of the images follows from the seed and the step alone.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..config import DiffusionConfig
from ..diffusion.denoiser import Denoiser
from ..diffusion.model import make_denoiser, make_schedule
from ..diffusion.objective import diffusion_loss
from ..errors import TrainingError
from ..nn.ema import Ema
from ..nn.tree_vae import TreeVAE
from ..progress import Progress
from . import checkpoint
from .budget import OutOfTime
from .measure import CHUNK
from .optimizer import make_adam
from .plan import step_cost

LOSS_WINDOW = 100
"""Steps that the reported loss is a mean of."""


@dataclass
class DiffusionState:
    """Where training stands, besides the networks.

    Attributes:
        step: optimiser steps done.
        window: sum of the losses since the last row of the history.
        history: a row per `LOSS_WINDOW` steps: the step, and the mean loss up to it.
    """

    step: int = 0
    window: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class DiffusionStage:
    """Trains a denoiser.

    Args:
        images: [n, C, H, W] float in 0..1, on the device to train on.
        tree: the frozen tree, on that device.
        config: the stage's settings.
        seed: of the order of the images.
        path: the checkpoint; an existing one is continued.
        progress: told about the steps, in the unit of `diffusion_cost`.
    """

    def __init__(
        self,
        images: Tensor,
        tree: TreeVAE,
        config: DiffusionConfig,
        path: Path,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        self.images, self.config, self.path = images, config, path
        self.seed, self.progress = seed, progress
        self.tree = tree.eval().requires_grad_(False)
        self.state = DiffusionState()
        self.denoiser = make_denoiser(tree, config).to(images.device)
        self.ema = Ema(self.denoiser, config.ema)
        self._optimizer = make_adam(self.denoiser.parameters(), config.learning_rate)
        coefs = make_schedule(config).add_noise_coefs
        self._coefs = torch.from_numpy(coefs).to(images)
        self._paths = torch.from_numpy(tree.topology.paths).long().to(images.device)
        self._step_cost = step_cost(config, images.shape[-1])
        if path.exists():
            self._resume()

    @property
    def done(self) -> bool:
        """Whether all steps have been made."""
        return self.state.step >= self.config.steps

    def run(self) -> Denoiser:
        """Trains until done; returns the averaged network in eval mode.

        Raises:
            OutOfTime: the progress ended the call; a checkpoint is saved.
            TrainingError: a loss is not finite; the last checkpoint stays.
        """
        try:
            self._train()
        except OutOfTime:
            self._save()
            raise
        return self.ema.module

    def _train(self) -> None:
        if self.done:
            return
        features, leaf_prob = self._frozen()
        x0 = self.images if self.config.pixel_range == "0..1" else 2 * self.images - 1
        self.denoiser.train()
        saved = time.monotonic()
        while self.state.step < self.config.steps:
            index = self._batch()
            y = self._condition(features[index], leaf_prob[index])
            loss = diffusion_loss(self.denoiser, x0[index], y, self._coefs, loss=self.config.loss)
            self._check_finite(loss)
            self._update(loss)
            self._report(float(loss.detach()))
            if self.done or time.monotonic() - saved > checkpoint.INTERVAL_S:
                self._save()
                saved = time.monotonic()

    def _frozen(self) -> tuple[Tensor, Tensor]:
        """[n, levels, C_b, R, R] bottom-up maps and [n, L] leaf probabilities of all images."""
        tree = self.tree
        leaves = tree.topology.leaves.tolist()
        with torch.no_grad():
            features = torch.cat([tree.bottom_up(x) for x in torch.split(self.images, CHUNK)])
            logit = torch.cat([tree.nodes.route(f[:, None]) for f in torch.split(features, CHUNK)])
            return features, tree.nodes.log_node_prob(logit)[:, leaves].exp()

    def _batch(self) -> Tensor:
        """[B] positions: shuffled epochs, whose order follows from the seed and the step."""
        count = len(self.images)
        size = min(self.config.batch_size, count)
        epoch, batch = divmod(self.state.step, count // size)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(count, generator=generator)
        return order[batch * size : (batch + 1) * size].to(self.images.device)

    def _condition(self, features: Tensor, leaf_prob: Tensor) -> Tensor:
        """[B, E] conditions, each from a leaf drawn for its image and fresh latents."""
        with torch.no_grad():
            z = self.tree.infer(features=features).nodes.z.flatten(2)  # [B, N, D]
            leaf = torch.multinomial(leaf_prob, 1)[:, 0]
            nodes = self._paths[leaf]  # [B, P]
            rows = torch.arange(len(z), device=z.device)[:, None]
            z_path = z[rows, nodes.clamp(min=0)]  # [B, P, D]
        return self.denoiser.condition(z_path, nodes)

    def _check_finite(self, loss: Tensor) -> None:
        if not loss.isfinite():
            kept = f"; {self.path} holds the last good state" if self.path.exists() else ""
            raise TrainingError(
                f"diffusion, step {self.state.step + 1}",
                got=f"a loss of {float(loss.detach())}",
                expected="a finite number",
                hint=f"train into another folder with a lower diffusion.learning_rate{kept}",
            )

    def _update(self, loss: Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), self.config.clip)
        self._optimizer.step()
        self.ema.update()
        self.state.step += 1

    def _learning_rate(self) -> float:
        config, step = self.config, self.state.step
        rate = config.learning_rate * min(step / max(config.warmup, 1), 1.0)
        if config.learning_rate_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / config.steps))
        return rate

    def _report(self, loss: float) -> None:
        state = self.state
        state.window += loss
        if state.step % LOSS_WINDOW == 0:
            mean = state.window / LOSS_WINDOW
            state.history.append({"step": state.step, "loss": mean})
            state.window = 0.0
        if self.progress is not None:
            shown = f", loss {state.history[-1]['loss']:.4f}" if state.history else ""
            where = f"diffusion, step {state.step}/{self.config.steps}{shown}"
            self.progress.advance(self._step_cost, where)

    def _save(self) -> None:
        tensors = checkpoint.training_state(self.denoiser, self._optimizer)
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        checkpoint.save(self.path, tensors, asdict(self.state))

    def _resume(self) -> None:
        tensors, state = checkpoint.load(self.path)
        self.state = DiffusionState(**state)
        self.ema.load_state_dict(
            {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("ema.")}
        )
        checkpoint.restore(self.denoiser, self._optimizer, tensors)
        if self.progress is not None:
            self.progress.skip(self.state.step * self._step_cost)
