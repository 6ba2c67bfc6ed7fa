"""Everything a trained model is: the frozen tree, the denoiser and the settings they belong to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..bundle import CLIP_RANGE, Told
from ..config import Config, DiffusionConfig, SamplingConfig
from ..nn.tree_vae import TreeVAE
from ..schedule import DiffusionSchedule
from ..solvers import SolverTable, table_along
from .denoiser import Denoiser


@dataclass(frozen=True)
class TreeDiffusion:
    """A trained model, both networks in eval mode.

    Attributes:
        config: the resolved settings of the run.
        tree: the frozen TreeVAE.
        denoiser: the averaged weights.
        node_share: [N] float64, share of the training images that reach each node.
        data_fingerprint: of the training images.
    """

    config: Config
    tree: TreeVAE
    denoiser: Denoiser
    node_share: NDArray[np.float64]
    data_fingerprint: str

    @property
    def schedule(self) -> DiffusionSchedule:
        """The noise schedule the denoiser was trained on."""
        return make_schedule(self.config.diffusion)

    @property
    def told(self) -> Told:
        """What the denoiser is told of the tree."""
        config = self.config.diffusion
        left_out: Literal["levels", "whole", "none"] = "whole" if config.path_dropout else "none"
        return Told(
            signal=config.signal,
            reconstruction=config.reconstruction,
            prediction=config.prediction,
            guidance="levels" if config.level_dropout else left_out,
        )


def make_schedule(config: DiffusionConfig) -> DiffusionSchedule:
    """The configured noise schedule."""
    return DiffusionSchedule(
        config.timesteps,
        config.beta_start,
        config.beta_end,
        kind=config.schedule,
        sigma_data=config.sigma_data,
    )


def make_denoiser(tree: TreeVAE, config: DiffusionConfig) -> Denoiser:
    """An untrained denoiser that fits a tree's images and latents."""
    channels, size, _ = tree.image_shape
    return Denoiser(channels, size, int(np.prod(tree.latent_shape)), config)


def make_table(config: DiffusionConfig, sampling: SamplingConfig) -> SolverTable:
    """The configured solver's coefficients for a denoiser.

    Raises:
        ConfigError: no such number of steps, or an eta that the solver does not have.
    """
    return table_along(
        make_schedule(config),
        sampling.solver,
        num_inference_steps=sampling.num_inference_steps,
        spacing=sampling.spacing,
        eta=sampling.eta,
        prediction=config.prediction,
        clip_range=CLIP_RANGE,
    )


def tree_key(tree: TreeVAE) -> str:
    """16 hexadecimal digits of a hash of a tree's nodes and weights.

    A denoiser belongs to one tree: in another, its ids mean other nodes, its latents other things.
    """
    digest = hashlib.sha256(" ".join(tree.topology.names).encode())
    for name, tensor in sorted(tree.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
