"""Everything a trained model is: the frozen tree, the denoiser and the settings they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import Config, DiffusionConfig
from ..nn.tree_vae import TreeVAE
from ..schedule import DiffusionSchedule
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


def make_schedule(config: DiffusionConfig) -> DiffusionSchedule:
    """The configured noise schedule."""
    return DiffusionSchedule(config.timesteps, config.beta_start, config.beta_end)


def make_denoiser(tree: TreeVAE, config: DiffusionConfig) -> Denoiser:
    """An untrained denoiser that fits a tree's images and latents."""
    channels, size, _ = tree.image_shape
    return Denoiser(channels, size, int(np.prod(tree.latent_shape)), config.unet)
