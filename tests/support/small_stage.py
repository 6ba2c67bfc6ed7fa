"""A diffusion stage of seconds: an untrained tree, 23 images of 8x8, a network of one level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from treediffusion.config import DiffusionConfig, TreeConfig
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.progress import Progress
from treediffusion.topology import TreeTopology
from treediffusion.train.budget import OutOfTime
from treediffusion.train.diffusion_stage import DiffusionStage
from treediffusion.train.images import TrainingImages

IMAGES, STEPS = 23, 12
SETTINGS = {
    "unet": {"channels": 32, "multipliers": [1], "blocks": 1, "heads": 2, "dropout": 0.0},
    "timesteps": 50,
    "beta_end": 0.1,
    "batch_size": 5,
    "steps": STEPS,
    "warmup": 3,
    "learning_rate": 1e-2,
    "ema": 0.9,
}


class Impatient(Progress):
    """Time for so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(1.0, "", quiet=True)
        self.steps, self.made = steps, 0

    def advance(self, amount: float, description: str) -> None:
        self.made += 1
        if self.made >= self.steps:
            raise OutOfTime(description, 0.5, None)


def small_config(**settings: Any) -> DiffusionConfig:
    unet = SETTINGS["unet"] | settings.pop("unet", {})
    return DiffusionConfig.model_validate(SETTINGS | {"unet": unet} | settings)


def small_stage(
    path: Path, config: DiffusionConfig | None = None, device: str = "cpu", **keywords: Any
) -> DiffusionStage:
    """A stage whose tree, images and random numbers are the same in every call."""
    torch.manual_seed(0)
    tree_config = TreeConfig(latent_channels=2, channels=4, levels=3, max_leaves=4)
    tree = TreeVAE(tree_config, TreeTopology.initial(), image_channels=1, image_size=8)
    images = torch.rand(IMAGES, 1, 8, 8).round()
    placed = TrainingImages(images.numpy(), device)
    stage = DiffusionStage(
        placed, tree.to(device), config or small_config(), path, seed=7, **keywords
    )
    # Gradients of biases before norms are zero but for rounding, which Adam would divide by itself.
    stage._optimizer.param_groups[0]["eps"] = 1e-3
    return stage
