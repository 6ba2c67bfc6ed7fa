"""Vanilla DDPM and DDIM: the second stage of training, told nothing of any tree.

The network, the noise, the optimiser, the averages and the checkpoints are TreeDiffusion's. In the
place of the tree stands a chain of one node that is never trained and never looked at, as small as
an encoder of these images can be: without a signal a denoiser reads neither ids nor latents.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import Config, DiffusionConfig, TreeConfig
from ..diffusion.denoiser import Denoiser
from ..errors import ConfigError
from ..nn.tree_vae import TreeVAE
from ..progress import Progress
from ..train.diffusion_stage import DiffusionStage
from ..train.images import TrainingImages
from .chain import Chain, chain_topology


def train_unconditional(
    images: TrainingImages,
    config: Config,
    path: Path,
    *,
    seed: int,
    progress: Progress | None = None,
) -> tuple[TreeVAE, Denoiser]:
    """A trained denoiser that is told nothing, averaged; a checkpoint is continued.

    Args:
        images: to train on.
        config: the settings of the TreeDiffusion it is compared with.
        path: the checkpoint.
        seed: of the first weights, the noise and the order of images.
        progress: told about every step, in the unit of `train.plan.diffusion_cost`.

    Returns:
        The blank tree that it was trained beside, and the denoiser.

    Raises:
        OutOfTime: the progress ended the call; a checkpoint is saved.
        ConfigError: vectors, which nobody draws.
        TrainingError: the training cannot go on.
    """
    if images.shape[-1] == 1:
        raise ConfigError(
            "data", got=f"vectors of {images.shape[1]} numbers", expected="images to draw"
        )
    tree = blank_tree(images)
    torch.manual_seed(seed)
    stage = DiffusionStage(
        images, tree, blank_config(config.diffusion), path, seed=seed, progress=progress
    )
    return tree, stage.run()


def blank_config(config: DiffusionConfig) -> DiffusionConfig:
    """A denoiser's settings without anything of a tree."""
    nothing = {"signal": "none", "reconstruction": "none", "path_dropout": 0.0}
    return config.model_copy(update=nothing | {"level_dropout": 0.0})


def blank_tree(images: TrainingImages) -> TreeVAE:
    """One node for images like these; the same weights each time, since checkpoints name them."""
    _, channels, side, _ = images.shape
    config = TreeConfig(
        codec="cnn1", codec_sizes=(side, 1), latent_channels=1, channels=1, levels=2, max_leaves=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tree = Chain(config, chain_topology(1), image_channels=channels, image_size=side)
    return tree.to(images.device).eval()
