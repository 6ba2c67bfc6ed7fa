"""A whole run in seconds: four kinds of bars, and settings that find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from treediffusion.config import Config, parse_config

SETTINGS = {
    "preset": "tiny",
    "threads": 1,
    "tree": {
        "latent_channels": 2,
        "channels": 8,
        "levels": 4,
        "max_leaves": 4,
        "batch_size": 32,
        "phases": {
            "initial": 8,
            "subtree": 6,
            "intermediate": 1,
            "final": 1,
            "intermediate_every": 1,
        },
        "learning_rate": 1e-2,
        "augmentation": "shifts",
        "contrastive": {"weight": 0.5},
    },
    "diffusion": {
        "unet": {"channels": 32, "multipliers": [1, 1], "blocks": 1, "heads": 2},
        "batch_size": 16,
        "steps": 30,
        "warmup": 5,
    },
}


def bars_config(folder: Path) -> Config:
    """Settings whose images lie in a folder: bars in four places, 160 images of 8x8."""
    rng = np.random.default_rng(0)
    images = np.zeros((160, 8, 8), np.uint8)
    for number, image in enumerate(images):
        place = 2 * (number % 4)
        image[:, place : place + 2] = rng.integers(150, 255)
    path = folder / "bars.npy"
    np.save(path, images, allow_pickle=False)
    return parse_config(SETTINGS | {"data": str(path)}, source="the test")
