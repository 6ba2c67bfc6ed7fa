"""A look at a denoiser in training: pictures of every leaf, from any kind of denoiser."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from treediffusion.config import DiffusionConfig, TreeConfig
from treediffusion.diffusion.denoiser import Denoiser
from treediffusion.diffusion.model import make_denoiser, make_schedule
from treediffusion.evaluate.diffusion_preview import (
    FILE,
    LEAF_IMAGES,
    diffusion_preview,
    leaf_images,
)
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology

TREE = TreeTopology.initial().grow("r0")
UNET = {"channels": 32, "multipliers": [1], "blocks": 1, "heads": 2}


def model(channels: int = 1, **settings: Any) -> tuple[TreeVAE, Denoiser, DiffusionConfig]:
    torch.manual_seed(0)
    tree_config = TreeConfig(latent_channels=2, channels=4, levels=3, max_leaves=4)
    tree = TreeVAE(tree_config, TREE, image_channels=channels, image_size=8).eval()
    config = DiffusionConfig.model_validate({"unet": UNET} | settings)
    return tree, make_denoiser(tree, config).eval(), config


class Oracle(torch.nn.Module):
    """Knows the noise in a flat grey image, whose brightness its condition is."""

    def __init__(self, denoiser: Denoiser, config: DiffusionConfig) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, make_schedule(config)

    @property
    def time(self) -> Any:
        """Timesteps are embedded as they are, in the embedding's first place."""
        return SimpleNamespace(table=lambda steps: torch.tensor([[t, 0.0] for t in steps]))

    def condition(self, z_path: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        return F.pad((nodes.max(dim=1).values[:, None] - 2) * 0.25, (1, 0))

    def predict(
        self, x: torch.Tensor, time: torch.Tensor, y: torch.Tensor, seen: torch.Tensor | None
    ) -> torch.Tensor:
        t, grey = int(time[0]), y[:, 1, None, None, None]
        return (x - self.schedule.alpha[t] * grey) / self.schedule.sigma[t]


def test_what_a_perfect_denoiser_knows_is_what_is_drawn() -> None:
    """Leaves end in the nodes 2, 3 and 4: grey of 0, 0.25 and 0.5 in -1..1."""
    tree, denoiser, config = model()
    oracle: Any = Oracle(denoiser, config).eval()
    images = leaf_images(tree, oracle, config)
    assert images.shape == (3, LEAF_IMAGES, 1, 8, 8)
    expected = np.floor(255 * (np.array([0.0, 0.25, 0.5]) + 1) / 2 + 0.5)
    found = images.reshape(3, -1)
    assert np.abs(found - expected[:, None]).max() <= 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pixel_range": "0..1", "signal": "leaf_id"},
        {"schedule": "edm", "prediction": "v", "signal": "none"},
        {"reconstruction": "concat"},
        {"reconstruction": "shift", "signal": "leaf_embedding"},
    ],
    ids=str,
)
def test_every_kind_of_denoiser_is_drawn_and_always_with_the_same_numbers(
    settings: dict[str, Any],
) -> None:
    tree, denoiser, config = model(**settings)
    state = torch.get_rng_state()
    first, second = (leaf_images(tree, denoiser, config) for _ in range(2))
    assert np.array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(np.unique(first)) > 10


def test_the_picture_is_replaced(tmp_path: Path) -> None:
    tree, denoiser, config = model(channels=3)
    draw, share = diffusion_preview(tmp_path), [1.0, 0.6, 0.4, 0.3, 0.3]
    draw(tree, config, share, 10, denoiser)
    first = (tmp_path / FILE).read_bytes()
    assert min(Image.open(tmp_path / FILE).size) > 50
    draw(tree, config, share, 20, denoiser)
    assert (tmp_path / FILE).read_bytes() != first


def test_other_than_grey_or_coloured_images_are_not_drawn(tmp_path: Path) -> None:
    tree, denoiser, config = model(channels=2)
    diffusion_preview(tmp_path)(tree, config, [1.0] * 5, 10, denoiser)
    assert not list(tmp_path.iterdir())
